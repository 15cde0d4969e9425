//! Reading the reference data, and the report of a comparison.

use std::sync::LazyLock;

use ndarray::Array2;
use serde_json::Value;

static TRANSFORMERS: LazyLock<Value> = LazyLock::new(|| parse(include_str!("../fixtures/transformers.json")));
static JAX: LazyLock<Value> = LazyLock::new(|| parse(include_str!("../fixtures/jax.json")));
static DEEPSPEED: LazyLock<Value> = LazyLock::new(|| parse(include_str!("../fixtures/deepspeed.json")));
static PAPERS: LazyLock<Value> = LazyLock::new(|| parse(include_str!("../fixtures/papers.json")));
static MEGATRON: LazyLock<Value> = LazyLock::new(|| parse(include_str!("../fixtures/megatron.json")));

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The cases of a group, from whichever file has it.
pub(crate) fn cases(group: &str) -> Vec<Case> {
    let files = [&JAX, &TRANSFORMERS, &MEGATRON, &DEEPSPEED, &PAPERS];
    let group = files.into_iter().find_map(|file| file["groups"].get(group)).unwrap();
    group["cases"].as_array().unwrap().iter().map(Case).collect()
}

/// One case: settings, inputs, outputs.
#[derive(Clone, Copy)]
pub(crate) struct Case(pub(crate) &'static Value);

impl Case {
    pub(crate) fn name(self) -> &'static str {
        self.0["name"].as_str().unwrap()
    }

    pub(crate) fn setting(self, name: &str) -> &'static Value {
        &self.0["settings"][name]
    }

    pub(crate) fn size(self, name: &str) -> usize {
        self.setting(name).as_u64().unwrap() as usize
    }

    pub(crate) fn flag(self, name: &str) -> bool {
        self.setting(name).as_bool().unwrap()
    }

    pub(crate) fn input(self, name: &str) -> &'static Value {
        &self.0["inputs"][name]
    }

    pub(crate) fn output(self, name: &str) -> &'static Value {
        &self.0["outputs"][name]
    }

    /// Tokens or experts whose order the reference leaves in doubt, as flat indices of rows of length `inner`.
    pub(crate) fn doubtful(self, exact: &str, near: &str, inner: usize) -> Vec<usize> {
        let flat = |v: &Value| match v.as_array() {
            Some(pair) => pair[0].as_u64().unwrap() as usize * inner + pair[1].as_u64().unwrap() as usize,
            None => v.as_u64().unwrap() as usize,
        };
        let list = |name: &str| self.0[name].as_array().unwrap().iter().map(flat);
        list(exact).chain(list(near)).collect()
    }

    /// `[..., E]` logits as `[T, E]`. With noise, as V-MoE adds it: `noise_std / E · standard_normal`.
    pub(crate) fn logits(self) -> Array2<f32> {
        let experts = self.size("num_experts");
        let mut logits = numbers(self.input("logits"));
        if let Some(noise) = self.0["inputs"].get("standard_normal").filter(|v| !v.is_null()) {
            let std = self.setting("noise_std").as_f64().unwrap() as f32 / experts as f32;
            logits.iter_mut().zip(numbers(noise)).for_each(|(l, n)| *l += std * n);
        }
        Array2::from_shape_vec((logits.len() / experts, experts), logits).unwrap()
    }
}

/// All numbers of nested lists, in order.
pub(crate) fn numbers(v: &Value) -> Vec<f32> {
    match v {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        Value::Number(n) => vec![n.as_f64().unwrap() as f32],
        Value::Bool(b) => vec![f32::from(u8::from(*b))],
        Value::String(s) => vec![s.parse().unwrap()],
        other => panic!("expected a number, found {other}"),
    }
}

/// All whole numbers of nested lists, in order.
pub(crate) fn indices(v: &Value) -> Vec<usize> {
    numbers(v).into_iter().map(|n| n as usize).collect()
}

/// Counts what is compared, and keeps every disagreement.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) cases: usize,
    pub(crate) weights: usize,
    failures: Vec<String>,
}

impl Report {
    pub(crate) fn check(&mut self, ok: bool, message: impl FnOnce() -> String) {
        if !ok {
            self.failures.push(message());
        }
    }

    /// Compares a weight, within `relative` of the expected one or where both are as good as zero.
    pub(crate) fn weight(&mut self, case: Case, at: usize, expected: f32, found: f32, relative: f64) {
        self.weights += 1;
        let (expected, found) = (f64::from(expected), f64::from(found));
        let ok = (expected - found).abs() <= expected.abs() * relative + FLUSHED;
        self.check(ok, || {
            let off = (expected - found).abs() / expected.abs() / relative;
            format!("{}: token {at}: expected weight {expected}, found {found}: {off} bounds", case.name())
        });
    }

    /// Fails with everything that disagreed, or if other than `cases` cases were compared.
    pub(crate) fn finish(self, cases: usize) {
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
        assert_eq!(self.cases, cases, "cases compared");
        assert!(self.weights >= cases, "no case goes without a weight: {}", self.weights);
    }
}

/// XLA on the CPU flushes subnormal numbers to zero.
const FLUSHED: f64 = f32::MIN_POSITIVE as f64;

/// Bound of the relative distance of two softmax values over `experts`, ours and a reference's, with 2⁻²⁴ as the unit.
///
/// Both subtract the same maximum, so that exp has the same argument: ours is 1.05 ulp off (2.1 units), the reference's is
/// taken to be 1 (2 units), each in numerator and denominator. A sum of positive numbers is off by a unit for each addition in
/// a row: ours E/16 and the 4 of the tree, the reference's at most E. Each divides once.
pub(crate) fn softmax_bound(experts: usize) -> f64 {
    units(2.0 * (2.1 + 2.0) + (experts as f64 / 16.0 + 5.0) + experts as f64 + 2.0)
}

/// The same for values that are then divided by the sum of `k` of them: another two sums and divisions, and the
/// distances of the terms once more.
pub(crate) fn renormalized_bound(experts: usize, k: usize) -> f64 {
    2.0 * softmax_bound(experts) + units((k as f64 / 16.0 + 5.0) + k as f64 + 2.0)
}

pub(crate) fn units(n: f64) -> f64 {
    n / f64::from(1 << 24)
}
