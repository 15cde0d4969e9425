//! From a layer's output back to its combination weights.

use moe_core::memory::refill_from;
use moe_core::{Result, RoutingPlan};
use ndarray::ArrayView2;

/// `∂L/∂weight` of each row of the plan, `[R]`, of `upstream = ∂L/∂y`, `[T, D]`: its token's row of it, times the row of the experts'
/// `outputs`, `[R, D]`, summed in f64.
///
/// It is of `y = Σ weight · out[row]`, as layers combine that apply weights to outputs;
/// [`Workspace`](moe_core::Workspace) has plan and outputs after a pass.
///
/// # Errors
///
/// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
///
/// # Panics
///
/// If the shapes do not fit the plan.
#[track_caller]
pub fn weight_gradient(
    plan: &RoutingPlan,
    outputs: ArrayView2<'_, f32>,
    upstream: ArrayView2<'_, f32>,
) -> Result<Vec<f32>> {
    assert_eq!(upstream.nrows(), plan.tokens(), "one upstream row a token");
    assert_eq!(outputs.dim(), (plan.rows(), upstream.ncols()), "one output a row of the plan");
    let rows = outputs.rows().into_iter().zip(plan.row_tokens());
    let products = rows.map(|(out, &token)| {
        let products = out.iter().zip(upstream.row(token as usize));
        products.map(|(out, up)| f64::from(*out) * f64::from(*up)).sum::<f64>() as f32
    });
    let mut gradient = Vec::new();
    refill_from(&mut gradient, plan.rows(), products, "gradient of weights")?;
    Ok(gradient)
}
