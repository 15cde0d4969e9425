//! The logits that a router with noise decides on.

use moe_core::{Result, RouteInput, Router};
use ndarray::Array2;

use crate::precise::matrix;

/// The logits that `router` decides on, `[T, E]`: those of the input with the noise that it draws for it
/// ([`Router::perturb`]), for losses that are of them.
///
/// ```
/// use moe_core::{Assignments, RouteInput, Routed, Router, RoutingPlan, TokenContext};
/// use moe_router::{Perturbed, TopK, losses::{Importance, LoadBalance, noisy}};
/// use ndarray::array;
///
/// let router = Perturbed::gaussian(TopK::new(1)?, 0.5)?;
/// let logits = array![[2.0f32, 0.0], [0.0, 2.0]];
/// let context = TokenContext::new().with_seed(3);
/// let input = RouteInput::new(logits.view(), context)?;
/// let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
/// out.reset(2, 2)?;
/// router.route(&input, &mut out)?;
/// plan.seal(&out)?;
///
/// // As V-MoE has them: GShard's loss with noise, importance without.
/// let noisy = noisy(&router, &input)?;
/// let balance = LoadBalance::of_first_choices(&Routed::new(noisy.view(), &plan, context)?);
/// let importance = Importance::of(&input);
/// # assert!(balance.value() > 0.0 && importance.value() == 0.0);
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// # Errors
///
/// What [`Router::perturb`] reports; [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
pub fn noisy(router: &dyn Router, input: &RouteInput<'_>) -> Result<Array2<f32>> {
    let mut logits = matrix(input.logits.dim(), input.logits.iter().copied(), "noisy logits")?;
    router.perturb(&input.context, logits.view_mut())?;
    Ok(logits)
}
