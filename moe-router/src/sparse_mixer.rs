//! SparseMixer: two experts, each weighed among its near rivals.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, numerics};

use crate::draw::{self, Stream};
use crate::select::{self, MASKED};

/// Phi-3.5-MoE's router, which is trained with SparseMixer (GRIN, [2409.12136]).
///
/// Each token gets two experts, one after the other. Among the logits s not yet taken with maximum m, those with
/// `(m - s) / max(|s|, m) > 2ε` are masked; the choice is the greatest (ties to the lower expert), and its weight is
/// its softmax over the unmasked ones. For the second choice the first one is out, and m is the maximum of the rest. The two
/// weights come of two softmaxes and do not sum to 1. A NaN is chosen last.
///
/// Where the first choice leaves nothing but logits of negative infinity, there is no second one; a token that has no other
/// logits at all has no choice. (The reference chooses the lowest such expert and divides 0 by 0: its weight is NaN.)
///
/// In [training](Self::sampling) each choice is drawn from that softmax: the greatest of `s - ln x` over the unmasked, x
/// exponential with mean 1. Its weight is its softmax again, times 0.3333 unless it is the greatest s or a uniform number is
/// above 0.75. (That factor belongs to the midpoint method of the backward pass, which is not computed here.)
///
/// The draws of a token are the `2·E + 2` columns of [`TokenContext::noise`](moe_core::TokenContext) where the input has it: E
/// exponentials for the first choice, E for the second, a uniform for each. Else they come of (seed, layer, sequence, position,
/// column). Without sampling, noise is not looked at.
///
/// Locality: token.
///
/// [2409.12136]: https://arxiv.org/abs/2409.12136
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseMixer {
    epsilon: f32,
    sampling: bool,
}

impl SparseMixer {
    /// The greatest logits, masked with this ε (`router_jitter_noise`; 0.01 in Phi-3.5-MoE).
    ///
    /// # Errors
    ///
    /// If ε is negative or NaN.
    pub fn new(epsilon: f32) -> Result<Self> {
        if epsilon >= 0.0 {
            return Ok(Self { epsilon, sampling: false });
        }
        let expected = "a number of at least 0".into();
        Err(Error::Router { setting: "jitter", expected, found: epsilon.to_string() })
    }

    /// The same with choices drawn, as in training.
    pub fn sampling(self) -> Self {
        Self { sampling: true, ..self }
    }

    /// Makes a choice among `scores`, where the expert taken by the first choice, if this is the second, is negative infinity.
    fn choose(
        &self,
        input: &RouteInput<'_>,
        t: usize,
        taken: Option<usize>,
        scores: &[f32],
        p: &mut [f32],
    ) -> (usize, f32) {
        let experts = scores.len();
        let top = numerics::max(scores);
        for (p, &s) in p.iter_mut().zip(scores) {
            let masked = (top - s) / s.abs().max(top) > 2.0 * self.epsilon;
            *p = if masked { f32::NEG_INFINITY } else { s };
        }
        let best = |scores: &[f32]| {
            let free = scores.iter().enumerate().filter(|&(e, &s)| Some(e) != taken && s != MASKED);
            let keys = free.map(|(e, &s)| select::key(s, e));
            keys.max().map_or(0, select::index)
        };
        if !self.sampling {
            let choice = best(scores);
            numerics::softmax(p);
            return (choice, p[choice]);
        }
        let rank = usize::from(taken.is_some());
        let uniform = |column| draw::uniform(&input.context, Stream::SparseMixer, t, column);
        let column = rank * experts;
        let exponential = |e| match input.context.noise {
            Some(noise) => noise.row(t)[column + e],
            None => draw::exponential(uniform(column + e)),
        };
        let sampled = p.iter().enumerate().map(|(e, &s)| {
            // What is masked or taken, or NaN, is not drawn.
            if s.is_nan() || s == f32::NEG_INFINITY {
                0
            } else {
                select::key(s - numerics::ln(exponential(e)), e)
            }
        });
        let choice = match sampled.max() {
            None | Some(0) => best(scores),
            Some(key) => select::index(key),
        };
        let column = 2 * experts + rank;
        let lucky = input.context.noise.map_or_else(|| uniform(column), |noise| noise.row(t)[column]) > 0.75;
        numerics::softmax(p);
        (choice, if lucky || choice == best(scores) { p[choice] } else { p[choice] * 0.3333 })
    }
}

impl Router for SparseMixer {
    /// Pushes two experts for every token that is not padding; fewer where fewer are not masked.
    ///
    /// # Errors
    ///
    /// If there are fewer than two experts; if sampling is on and given noise is not `[T, 2·E + 2]`.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let experts = input.experts();
        if experts < 2 {
            let expected = "at least 2 experts".into();
            return Err(Error::Router { setting: "SparseMixer", expected, found: experts.to_string() });
        }
        if self.sampling {
            draw::check_columns(&input.context, 2 * experts + 2)?;
        }
        out.with_scratch(|out, RouteScratch { values, .. }| {
            for t in input.present() {
                let logits = input.logits.row(t);
                // Scores of those not taken, then their softmax.
                values.clear();
                values.extend(logits);
                values.resize(2 * experts, 0.0);
                let (scores, p) = values.split_at_mut(experts);
                let mut taken = None;
                for _ in 0..2 {
                    if scores.iter().all(|&s| s == MASKED) {
                        break;
                    }
                    let (expert, weight) = self.choose(input, t, taken, scores, p);
                    out.assign(t, expert, weight);
                    scores[expert] = MASKED;
                    taken = Some(expert);
                }
            }
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}
