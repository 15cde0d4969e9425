//! Experts choose their tokens.

use moe_core::memory::{refill_from, reserve};
use moe_core::{Assignments, Locality, Result, RouteInput, RouteScratch, Router, TokenContext};
use ndarray::ArrayViewMut2;

use crate::select::{self, MASKED};
use crate::{Capacity, Score};

/// Each expert takes its C best tokens of the sequence (Zhou et al., [2202.09368]).
///
/// The scores are `S = softmax(l)` over the experts, for each token, or [others](Self::scored_by); expert e takes the C tokens with the greatest `S[t, e]`,
/// ties to the lower token, NaN last, masked ones never, and the weight is that score. [`Capacity`] gives C, where a choice is a token, so that both
/// factors give the paper's `k = n·c/e`; there are never more than the sequence has tokens. Every expert is filled to C,
/// unless it is masked for all but fewer tokens, and
/// a token gets between none and all of the experts: its output may be zero.
///
/// A token's experts are pushed by descending score, ties to the lower expert. Padding is not chosen and does not count.
/// (Flaxformer sets the scores of padding to zero but may choose it; then it takes a place, with weight 0.)
///
/// Locality: batch.
///
/// # In a decoder
///
/// Whether an expert takes a token depends on the tokens after it. A decoder trained so sees the future, and cannot do so
/// when it generates: over the single token of a step every expert takes it. The authors of the reference implementation
/// warn of the same. Use it in encoders.
///
/// [2202.09368]: https://arxiv.org/abs/2202.09368
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertChoice {
    capacity: Capacity,
    score: Score,
}

impl ExpertChoice {
    /// Experts that take as many tokens as `capacity` gives them places.
    ///
    /// # Errors
    ///
    /// If the capacity is [not valid](Capacity::check).
    pub fn new(capacity: Capacity) -> Result<Self> {
        capacity.check()?;
        Ok(Self { capacity, score: Score::Softmax })
    }

    /// The same by another score than softmax over the experts: experts rank tokens by it, and it is the weight.
    ///
    /// With one expert a softmax is 1 for every token. Mixture-of-Depths ([2404.02258]), whose expert is the block itself, takes the
    /// logit, or in later work its sigmoid. Of scores that rise with the logit alone, the logit decides.
    ///
    /// [2404.02258]: https://arxiv.org/abs/2404.02258
    pub fn scored_by(self, score: Score) -> Self {
        Self { score, ..self }
    }

    /// Chooses for one sequence.
    fn choose(
        &self,
        input: &RouteInput<'_>,
        scratch: &mut RouteScratch,
        out: &mut Assignments,
    ) -> Result<()> {
        let (tokens, experts) = (input.tokens(), input.experts());
        let present = |t: &usize| !input.context.is_padding(*t);
        let candidates = (0..tokens).filter(present).count();
        if candidates == 0 || experts == 0 {
            return Ok(());
        }
        let places = self.capacity.places(candidates, candidates, experts)?.min(candidates);

        // Scores, [T, E].
        let RouteScratch { values: scores, keys, .. } = scratch;
        refill_from(scores, input.logits.len(), input.logits.iter().copied(), "scores")?;
        // An expert's candidates, or a token's experts.
        reserve(keys, candidates.max(experts), "keys of scores")?;
        scores.chunks_exact_mut(experts).for_each(|row| self.score.apply(row));

        // What an expert does not take becomes as a masked one.
        const NOT_TAKEN: f32 = MASKED;
        let masked = scores.iter_mut().zip(input.logits).filter(|(_, l)| **l == MASKED);
        masked.for_each(|(score, _)| *score = NOT_TAKEN);
        let rank = |t: usize, e: usize, score: f32| match self.score {
            Score::Softmax => score,
            // Scores that round to the same number stay distinct.
            _ => input.logits[[t, e]],
        };
        for expert in 0..experts {
            keys.clear();
            let open = (0..tokens).filter(present).map(|t| (t, scores[t * experts + expert]));
            let open = open.filter(|&(_, score)| score != NOT_TAKEN);
            keys.extend(open.map(|(t, score)| select::key(rank(t, expert, score), t)));
            if keys.len() > places {
                keys.select_nth_unstable_by(places - 1, |a, b| b.cmp(a));
                for &key in &keys[places..] {
                    scores[select::index(key) * experts + expert] = NOT_TAKEN;
                }
            }
        }

        for t in (0..tokens).filter(present) {
            let scores = &scores[t * experts..][..experts];
            keys.clear();
            let taken = scores.iter().enumerate().filter(|&(_, &score)| score != NOT_TAKEN);
            keys.extend(taken.map(|(expert, &score)| select::key(score, expert)));
            keys.sort_unstable_by(|a, b| b.cmp(a));
            for &key in &*keys {
                out.assign(t, select::index(key), scores[select::index(key)]);
            }
        }
        Ok(())
    }
}

impl Router for ExpertChoice {
    /// Pushes the chosen pairs, token by token.
    ///
    /// Logits whose softmax is NaN make weights NaN once all other tokens are taken, which sealing reports.
    ///
    /// # Errors
    ///
    /// If the capacity leaves no place.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        input.each_sequence(out, |input, scratch, out| self.choose(input, scratch, out))
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }

    /// What is chosen by; softmax where that is the logit.
    fn scores(&self, _: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.score.apply_to_rows(logits);
    }
}
