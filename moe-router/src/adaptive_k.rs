//! As many experts as the entropy of a token's probabilities asks for.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router, numerics};

use crate::dynamic::each_sorted;

/// The k most probable experts, k by the entropy of the token's probabilities: Adaptive-K (Balsamo, VertexData, 2026).
///
/// From a token's logits l, `[E]`, with `p = softmax(l)` and `H = -Σ p ln p` in nats,
///
/// ```text
/// k = ks[0] if H < at[0], ks[1] if at[0] ≤ H < at[1], …, the last of ks from the last of at on
/// wₑ = pₑ                                        over the k greatest l, ties to the lower expert
/// ```
///
/// [`Renormalized`](crate::Renormalized) around it divides by their sum, as Adaptive-K does. A token with fewer experts that are
/// not masked takes those. This is the rule as its page states it: the loop of the package `adaptive-k-routing` 0.1.5 gives a
/// token whose entropy is below several thresholds the k of the last of them, and routes all tokens of a batch to the
/// greatest k among theirs. H is summed over the experts in descending order, in f32; a NaN makes it NaN, and k the last.
///
/// Locality: token.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptiveK {
    ks: Vec<usize>,
    at: Vec<f32>,
}

impl AdaptiveK {
    /// The numbers of experts, and the entropies from which the second and later ones apply.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless there is one number more than entropies, none of them 0, and the entropies ascend.
    pub fn new(ks: impl Into<Vec<usize>>, at: impl Into<Vec<f32>>) -> Result<Self> {
        let (ks, at) = (ks.into(), at.into());
        let wrong =
            |expected: String, found: String| Err(Error::Router { setting: "adaptive k", expected, found });
        if ks.len() != at.len() + 1 {
            return wrong(format!("{} numbers of experts", at.len() + 1), ks.len().to_string());
        }
        if ks.contains(&0) {
            return wrong("k of at least 1".into(), "0".into());
        }
        if at.iter().any(|h| h.is_nan()) || at.windows(2).any(|w| w[0] >= w[1]) {
            return wrong("entropies that ascend".into(), format!("{at:?}"));
        }
        Ok(Self { ks, at })
    }
}

impl Router for AdaptiveK {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        each_sorted(input, out, numerics::softmax, |probabilities| {
            let nats = |p: f32| if p == 0.0 { 0.0 } else { -p * numerics::ln(p) };
            let entropy: f32 = probabilities.map(nats).sum();
            self.ks[self.at.iter().take_while(|&&h| entropy >= h || entropy.is_nan()).count()]
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}
