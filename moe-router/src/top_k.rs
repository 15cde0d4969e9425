//! The k best experts of each token.

use moe_core::{Assignments, Locality, Result, RouteInput, Router};

use crate::backward::Weighting;
use crate::{Normalizer, Score, ScoredTopK};

/// How the weights of the chosen experts are made of the logits l.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Normalization {
    /// `exp(lₑ) / Σ exp(l)` over the chosen: Mixtral, Granite, JetMoE. Sums to 1.
    #[default]
    OverChosen,
    /// `exp(lₑ) / Σ exp(l)` over all experts: Switch, OLMoE, Qwen2-MoE, Jamba. Sums to less than 1 where k < E.
    OverAll,
    /// As [`OverAll`](Self::OverAll), then divided by the sum over the chosen: `norm_topk_prob` of OLMoE and Qwen2-MoE.
    ///
    /// The same as [`OverChosen`](Self::OverChosen) in exact arithmetic. Hugging Face writes Mixtral this way.
    OverAllRenormalized,
}

/// Each token goes to the k experts with its greatest logits.
///
/// `TopK::new(2)` is Mixtral's router ([2401.04088], section 2.1): `w = softmax(top2(l))`. [`Normalization`] has the other
/// ways to make weights. The choice is by logits, best first, ties to the lower expert, NaN last. Where two different logits
/// have equal f32 softmax values, an implementation that selects on those sees a tie, this one does not.
///
/// [`ScoredTopK`] has what these three do not cover: other scores, biases, groups of experts.
///
/// Locality: token.
///
/// [2401.04088]: https://arxiv.org/abs/2401.04088
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    k: usize,
    normalization: Normalization,
}

impl TopK {
    /// The `k` best, weighted by softmax over their logits.
    ///
    /// # Errors
    ///
    /// [`Error::Router`](moe_core::Error::Router) if `k` is 0.
    pub fn new(k: usize) -> Result<Self> {
        ScoredTopK::new(k, Score::Logit)?;
        Ok(Self { k, normalization: Normalization::default() })
    }

    /// The same choice with other weights.
    pub fn normalized(self, normalization: Normalization) -> Self {
        Self { normalization, ..self }
    }

    /// Choices per token, k.
    pub fn k(&self) -> usize {
        self.k
    }

    /// How the weights depend on the logits, for their gradient.
    pub fn weighting(&self) -> Weighting {
        self.in_pieces().weighting()
    }

    fn in_pieces(&self) -> ScoredTopK {
        let (weigh_by, normalizer) = match self.normalization {
            Normalization::OverChosen => (Score::Logit, Normalizer::Softmax),
            Normalization::OverAll => (Score::Softmax, Normalizer::None),
            Normalization::OverAllRenormalized => (Score::Softmax, Normalizer::Sum { epsilon: 0.0 }),
        };
        ScoredTopK::plain(self.k, Score::Logit, weigh_by, normalizer)
    }
}

impl Router for TopK {
    /// Pushes k experts for every token that is not padding, best first; fewer where fewer are not masked.
    ///
    /// A NaN or a positive infinity among the logits that softmax runs over makes weights NaN, which sealing reports.
    ///
    /// # Errors
    ///
    /// [`Error::Router`](moe_core::Error::Router) if there are fewer than k experts.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        self.in_pieces().route(input, out)
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}
