//! Routing by changed logits.

use moe_core::memory::refill_from;
use moe_core::{Assignments, Result, RouteInput, RouteScratch, Router, TokenContext};
use ndarray::ArrayViewMut2;

/// Lets a router decide, in this context, on a copy of the logits `[T, E]` that `change` has changed.
pub(crate) fn route(
    router: &impl Router,
    input: &RouteInput<'_>,
    context: TokenContext<'_>,
    out: &mut Assignments,
    change: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<()>,
) -> Result<()> {
    out.with_scratch(|out, RouteScratch { values, .. }| {
        refill_from(values, input.logits.len(), input.logits.iter().copied(), "changed logits")?;
        #[allow(clippy::unwrap_used, reason = "one number was pushed for each token and expert")]
        let mut logits = ArrayViewMut2::from_shape(input.logits.raw_dim(), values).unwrap();
        change(logits.view_mut())?;
        router.route(&RouteInput::new(logits.view(), context)?, out)
    })
}
