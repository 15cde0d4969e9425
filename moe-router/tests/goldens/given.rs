//! Choices taken from the reference data, and the comparison of derivatives.

use moe_core::{Assignments, RoutingPlan};
use ndarray::{Array2, ArrayView2};
use serde_json::Value;

use crate::fixture::{Case, Report, indices, numbers};

/// A sealed plan of (token, expert, kept); the order within a token is the rank.
pub(crate) fn plan(
    tokens: usize,
    experts: usize,
    pairs: impl IntoIterator<Item = (usize, usize, bool)>,
) -> RoutingPlan {
    let mut out = Assignments::new();
    out.reset(tokens, experts).unwrap();
    for (t, e, kept) in pairs {
        if kept { out.assign(t, e, 1.0) } else { out.refuse(t, e) }
    }
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    plan
}

/// `outputs.ids`, `[..., k]`, as (token, expert) by rank.
pub(crate) fn ids(case: Case, k: usize) -> Vec<(usize, usize)> {
    indices(case.output("ids")).into_iter().enumerate().map(|(i, e)| (i / k, e)).collect()
}

/// `[..., E]` numbers as `[T, E]`, without noise.
pub(crate) fn table(v: &Value, experts: usize) -> Array2<f32> {
    let list = numbers(v);
    Array2::from_shape_vec((list.len() / experts, experts), list).unwrap()
}

/// The gradient of a scalar.
pub(crate) fn grads(case: Case, name: &str) -> &'static Value {
    &case.0["grads"][name]
}

/// 2⁻²⁴: half an ulp of a number just above 1, and the unit of all bounds.
pub(crate) const UNIT: f64 = 1.0 / 16_777_216.0;

/// A comparison of derivatives, all in f64 here and all in f32 there, so that bounds are those of the reference's rounding.
#[derive(Default)]
pub(crate) struct Derivatives {
    pub(crate) report: Report,
    /// Derivatives that are NaN in the reference.
    pub(crate) undefined: usize,
    /// The greatest distance, in bounds.
    pub(crate) worst: f64,
}

impl Derivatives {
    /// Compares `[..., E]` derivatives, row t within `bound(t)`.
    pub(crate) fn compare(
        &mut self,
        case: Case,
        expected: &Value,
        found: ArrayView2<'_, f64>,
        bound: impl Fn(usize) -> f64,
    ) {
        let expected = numbers(expected);
        self.report.check(expected.len() == found.len(), || format!("{}: shape", case.name()));
        for (i, (e, f)) in expected.iter().zip(found.iter()).enumerate() {
            if e.is_nan() {
                self.undefined += 1;
                continue;
            }
            self.report.weights += 1;
            let (e, t) = (f64::from(*e), i / found.ncols());
            let off = (e - f).abs() / (bound(t) + f64::from(f32::MIN_POSITIVE));
            self.worst = self.worst.max(off);
            self.report.check(off <= 1.0, || {
                let at = i % found.ncols();
                format!("{}: row {t}, expert {at}: expected {e:e}, found {f:e}: {off} bounds", case.name())
            });
        }
    }

    /// Compares a scalar.
    pub(crate) fn value(&mut self, case: Case, expected: &Value, found: f64, bound: f64) {
        let expected = f64::from(numbers(expected)[0]);
        self.report.weights += 1;
        let off = (expected - found).abs() / bound;
        self.worst = self.worst.max(off);
        let message = || format!("{}: expected {expected}, found {found}: {off} bounds", case.name());
        self.report.check(off <= 1.0, message);
    }

    /// Fails with everything that disagreed, or if other than `cases` cases and `undefined` NaN were met.
    pub(crate) fn finish(self, cases: usize, undefined: usize) {
        println!("worst: {} bounds of {} numbers", self.worst, self.report.weights);
        self.report.finish(cases);
        assert_eq!(self.undefined, undefined, "derivatives that are NaN in the reference");
    }
}
