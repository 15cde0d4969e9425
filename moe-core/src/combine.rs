//! Back from the experts' rows to token order.

use ndarray::{ArrayView2, ArrayViewMut2, Zip};

use crate::RoutingPlan;

/// Sums each token's expert outputs: `y[t] = Σ weight · out[row]` over [`RoutingPlan::token_terms`].
///
/// `out` is `[R, D]`, `y` is `[T, D]` and is overwritten; a token without experts becomes zero.
/// Terms are added in ascending expert order, each product rounded before it is added, so the result depends on nothing
/// but the token's own rows. With `weighted` false every weight counts as 1.
///
/// # Panics
///
/// If the shapes do not fit the plan.
#[track_caller]
pub fn combine(plan: &RoutingPlan, out: ArrayView2<'_, f32>, weighted: bool, y: ArrayViewMut2<'_, f32>) {
    assert_eq!(y.nrows(), plan.tokens(), "one output a token");
    combine_from(0, plan, out, weighted, y);
}

/// [`combine`] for a stretch of tokens, the first of which is `first`: `y` is their outputs, `[N, D]`. Stretches may be
/// computed in parallel, and give the same bits however they are cut.
///
/// # Panics
///
/// If the plan does not have these tokens, or the shapes do not fit.
#[track_caller]
pub fn combine_from(
    first: usize,
    plan: &RoutingPlan,
    out: ArrayView2<'_, f32>,
    weighted: bool,
    mut y: ArrayViewMut2<'_, f32>,
) {
    assert_eq!(out.dim(), (plan.rows(), y.ncols()), "one row a kept pair, as wide as the output");
    for (t, mut sum) in (first..).zip(y.rows_mut()) {
        sum.fill(0.0);
        for term in plan.token_terms(t) {
            let weight = if weighted { term.weight } else { 1.0 };
            Zip::from(&mut sum).and(out.row(term.row)).for_each(|to, &from| *to += weight * from);
        }
    }
}
