//! Weights that sum to one.

use moe_core::memory::refill;
use moe_core::{Assignments, Locality, Result, RouteInput, Router, TokenContext};
use ndarray::ArrayViewMut2;

/// The choices of another router, each token's weights divided by their sum: `wₑ / max(Σ w, 2⁻²³)`.
///
/// Around [`Capped`](crate::Capped) a token's weights sum to 1 over what is left of its experts; inside it, over what it asked
/// for. These are NLLB's ([2207.04672]) two settings of `normalize_router_prob_before_dropping`, and so is the floor, which
/// keeps a token whose weights are all zero from dividing by it. The sum is taken in the order of pushes.
///
/// Locality: the inner router's.
///
/// [2207.04672]: https://arxiv.org/abs/2207.04672
#[derive(Clone, Copy, Debug)]
pub struct Renormalized<R>(R);

impl<R: Router> Renormalized<R> {
    /// Renormalises `inner`, whose weights must not be negative.
    pub fn new(inner: R) -> Self {
        Self(inner)
    }

    /// The router whose weights are divided.
    pub fn inner(&self) -> &R {
        &self.0
    }
}

impl<R: Router> Router for Renormalized<R> {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let mark = out.mark();
        self.0.route(input, out)?;
        out.with_scratch(|out, scratch| {
            let sums = &mut scratch.values;
            refill(sums, input.tokens(), 0.0, "sums of weights")?;
            out.review(mark, |review| {
                // A token out of range has no sum; sealing reports it.
                for pair in &*review.pairs {
                    if let Some(sum) = sums.get_mut(pair.token as usize) {
                        *sum += pair.weight;
                    }
                }
                for pair in review.pairs {
                    if let Some(sum) = sums.get(pair.token as usize) {
                        pair.weight /= sum.max(f32::EPSILON);
                    }
                }
            })
        })
    }

    fn locality(&self) -> Locality {
        self.0.locality()
    }

    fn perturb(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.0.perturb(context, logits)
    }

    fn scores(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.0.scores(context, logits);
    }
}
