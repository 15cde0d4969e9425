//! The k best experts of each token.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, numerics};

use crate::select;

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
    /// [`Error::Router`] if `k` is 0.
    pub fn new(k: usize) -> Result<Self> {
        if k == 0 {
            return Err(Error::Router {
                setting: "top-k",
                expected: "k of at least 1".into(),
                found: "0".into(),
            });
        }
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
}

impl Router for TopK {
    /// Pushes k experts for every token, best first.
    ///
    /// A NaN or a positive infinity among the logits that softmax runs over, or nothing but negative infinities, makes weights
    /// NaN, which sealing reports.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if there are fewer than k experts.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let experts = input.experts();
        if self.k > experts {
            return Err(Error::Router {
                setting: "top-k",
                expected: format!("at least {} experts", self.k),
                found: experts.to_string(),
            });
        }
        out.with_scratch(|out, RouteScratch { values, keys }| {
            for (token, logits) in input.logits.rows().into_iter().enumerate() {
                select::best(logits.iter().copied(), self.k, keys);
                let chosen = keys.iter().map(|&key| select::index(key));
                values.clear();
                let weights = match self.normalization {
                    Normalization::OverChosen => {
                        values.extend(chosen.clone().map(|e| logits[e]));
                        numerics::softmax(values);
                        &values[..]
                    }
                    Normalization::OverAll | Normalization::OverAllRenormalized => {
                        values.extend(logits);
                        numerics::softmax(values);
                        // The weights of the chosen, by rank, after those of all.
                        chosen.clone().for_each(|e| values.push(values[e]));
                        &values[experts..]
                    }
                };
                let total = match self.normalization {
                    Normalization::OverAllRenormalized => numerics::sum(weights),
                    _ => 1.0,
                };
                for (expert, weight) in chosen.zip(weights) {
                    out.assign(token, expert, weight / total);
                }
            }
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}
