//! Back from the experts' rows to token order.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Zip};

use crate::RoutingPlan;

/// Columns of a token's rows that are summed before the next ones.
const COLUMNS: usize = 128;

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
        // All of a token's rows side by side: memory brings several of them at a time, where it brings one only slowly.
        let columns = sum.axis_chunks_iter_mut(Axis(0), COLUMNS).zip(out.axis_chunks_iter(Axis(1), COLUMNS));
        for (mut sum, out) in columns {
            sum.fill(0.0);
            for term in plan.token_terms(t) {
                let weight = if weighted { term.weight } else { 1.0 };
                Zip::from(&mut sum).and(out.row(term.row)).for_each(|to, &from| *to += weight * from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::Assignments;
    use crate::numerics::uniform;

    #[test]
    fn columns_do_not_depend_on_the_columns_beside_them() {
        let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
        assignments.reset(5, 4).expect("few enough");
        for (t, e) in [(0, 3), (0, 1), (1, 0), (2, 2), (2, 0), (2, 1), (4, 3)] {
            assignments.assign(t, e, uniform(1, &[t as u64, e as u64]));
        }
        plan.seal(&assignments).expect("a valid plan");
        for columns in [1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 44] {
            let out =
                Array2::from_shape_fn((plan.rows(), columns), |(r, c)| uniform(2, &[r as u64, c as u64]));
            let mut y = Array2::from_elem((5, columns), f32::NAN);
            combine(&plan, out.view(), true, y.view_mut());
            for ((t, c), y) in y.indexed_iter() {
                let sum = plan.token_terms(t).fold(0.0, |sum, term| sum + term.weight * out[[term.row, c]]);
                assert_eq!(*y, sum, "token {t}, column {c} of {columns}");
            }
        }
    }
}
