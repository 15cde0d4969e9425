//! Moving rows between token order and expert order.

use ndarray::{ArrayView2, ArrayViewMut2, Zip};

use crate::RoutingPlan;

/// Copies each row's token: `rows[r] = hidden[token(r)]`.
///
/// `hidden` is `[T, D]`, `rows` is `[R, D]` and is overwritten.
///
/// # Panics
///
/// If the shapes do not fit the plan.
#[track_caller]
pub fn gather(plan: &RoutingPlan, hidden: ArrayView2<'_, f32>, mut rows: ArrayViewMut2<'_, f32>) {
    check(plan, hidden.dim(), rows.dim());
    for (mut row, &token) in rows.rows_mut().into_iter().zip(plan.row_tokens()) {
        row.assign(&hidden.row(token as usize));
    }
}

/// Copies each row's token times its combination weight: `rows[r] = weight(r) · hidden[token(r)]`.
///
/// For models that weigh the experts' input instead of their output; [`combine`] is then told to use weights of 1.
///
/// # Panics
///
/// If the shapes do not fit the plan.
#[track_caller]
pub fn gather_weighted(plan: &RoutingPlan, hidden: ArrayView2<'_, f32>, mut rows: ArrayViewMut2<'_, f32>) {
    check(plan, hidden.dim(), rows.dim());
    let sources = plan.row_tokens().iter().zip(plan.row_weights());
    for (row, (&token, &weight)) in rows.rows_mut().into_iter().zip(sources) {
        Zip::from(row).and(hidden.row(token as usize)).for_each(|to, &from| *to = weight * from);
    }
}

/// Sums each token's expert outputs: `y[t] = Σ weight · out[row]` over [`RoutingPlan::token_parts`].
///
/// `out` is `[R, D]`, `y` is `[T, D]` and is overwritten; a token without experts becomes zero.
/// Terms are added in ascending expert order, each product rounded before it is added, so the result depends on nothing
/// but the token's own rows. With `weighted` false every weight counts as 1.
///
/// # Panics
///
/// If the shapes do not fit the plan.
#[track_caller]
pub fn combine(plan: &RoutingPlan, out: ArrayView2<'_, f32>, weighted: bool, mut y: ArrayViewMut2<'_, f32>) {
    check(plan, y.dim(), out.dim());
    for (t, mut sum) in y.rows_mut().into_iter().enumerate() {
        sum.fill(0.0);
        for part in plan.token_parts(t) {
            let weight = if weighted { part.weight } else { 1.0 };
            Zip::from(&mut sum).and(out.row(part.row)).for_each(|to, &from| *to += weight * from);
        }
    }
}

#[track_caller]
fn check(plan: &RoutingPlan, tokens: (usize, usize), rows: (usize, usize)) {
    assert_eq!(tokens.0, plan.tokens(), "one hidden state a token");
    assert_eq!(rows, (plan.rows(), tokens.1), "one row a kept pair, as wide as the hidden states");
}
