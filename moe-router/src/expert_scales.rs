//! A factor of each expert on its weights.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router, TokenContext};
use ndarray::ArrayViewMut2;

/// The choices of another router, each weight multiplied by a number of its expert: `wₑ · scaleₑ` (Gemma 4's
/// `per_expert_scale`).
///
/// The scales are learned and part of the model. They come after whatever the inner router divides by, so that a token's weights
/// need not sum to 1; around a [`Capped`](crate::Capped) that reroutes they are those of the experts that do the work. Choice
/// and priorities know nothing of them.
///
/// Locality: the inner router's.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertScales<R> {
    inner: R,
    scales: Vec<f32>,
}

impl<R: Router> ExpertScales<R> {
    /// Multiplies the weights of expert e by `scales[e]`.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if a scale is not finite.
    pub fn new(inner: R, scales: impl Into<Vec<f32>>) -> Result<Self> {
        let scales = scales.into();
        if let Some(scale) = scales.iter().find(|s| !s.is_finite()) {
            let expected = "finite numbers".into();
            return Err(Error::Router { setting: "expert scales", expected, found: scale.to_string() });
        }
        Ok(Self { inner, scales })
    }

    /// The router whose weights are multiplied.
    pub fn inner(&self) -> &R {
        &self.inner
    }
}

impl<R: Router> Router for ExpertScales<R> {
    /// Lets the inner router decide and multiplies what it pushed.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if there is not one scale an expert; what the inner router reports.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let experts = input.experts();
        if self.scales.len() != experts {
            return Err(Error::Router {
                setting: "expert scales",
                expected: format!("one for each of {experts} experts"),
                found: self.scales.len().to_string(),
            });
        }
        let mark = out.mark();
        self.inner.route(input, out)?;
        out.review(mark, |review| {
            for pair in review.pairs {
                // An expert out of range has no scale; sealing reports it.
                if let Some(scale) = self.scales.get(pair.expert as usize) {
                    pair.weight *= scale;
                }
            }
        })
    }

    fn locality(&self) -> Locality {
        self.inner.locality()
    }

    fn perturb(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.inner.perturb(context, logits)
    }

    fn scores(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.inner.scores(context, logits);
    }
}
