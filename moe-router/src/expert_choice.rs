//! Experts choose their tokens.

use moe_core::{Assignments, Locality, Result, RouteInput, RouteScratch, Router, numerics};

use crate::Capacity;
use crate::select::{self, MASKED};

/// Each expert takes its C best tokens of the sequence (Zhou et al., [2202.09368]).
///
/// The scores are `S = softmax(l)` over the experts, for each token; expert e takes the C tokens with the greatest `S[t, e]`,
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
}

impl ExpertChoice {
    /// Experts that take as many tokens as `capacity` gives them places.
    ///
    /// # Errors
    ///
    /// If the capacity is [not valid](Capacity::check).
    pub fn new(capacity: Capacity) -> Result<Self> {
        capacity.check()?;
        Ok(Self { capacity })
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
        scores.clear();
        scores.extend(input.logits);
        scores.chunks_exact_mut(experts).for_each(numerics::softmax);

        // A score that its expert does not take becomes negative, and so does that of a masked expert.
        const NOT_TAKEN: f32 = -1.0;
        let masked = scores.iter_mut().zip(input.logits).filter(|(_, l)| **l == MASKED);
        masked.for_each(|(score, _)| *score = NOT_TAKEN);
        for expert in 0..experts {
            keys.clear();
            let open = (0..tokens).filter(present).map(|t| (t, scores[t * experts + expert]));
            let open = open.filter(|&(_, score)| score != NOT_TAKEN);
            keys.extend(open.map(|(t, score)| select::key(score, t)));
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
}
