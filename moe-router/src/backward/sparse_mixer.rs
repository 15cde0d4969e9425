//! SparseMixer's gradient estimator.

use moe_core::Result;
use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::precise::{softmax, zeros};

/// The gradient of SparseMixer's two weights, as Phi-3.5-MoE trains with it (GRIN, [2409.12136]).
///
/// Each of the two choices is weighed by a softmax of its own over the experts near the best: with m the greatest logit still
/// in play, an expert is masked where `(m - l) / max(|l|, m) > 2·jitter`. For the second choice the first is out of play too. The
/// published backward of each is `∂L/∂l = u · p[c] · (onehot(c) - p)`, the two added up. At inference, where both choices are
/// greatest logits and the weight is `p[c]`, that is the derivative. In training the choices are sampled, and the weight of
/// one that is not the greatest is at times a third of `p[c]`, so that on average it is Heun's third-order rule: then this
/// is an estimator, and the factor stays out of the backward.
///
/// Masked experts, whose logits are negative infinity, are never chosen: whatever stands for a choice that a token lacks sends
/// nothing back.
///
/// [2409.12136]: https://arxiv.org/abs/2409.12136
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseMixer {
    jitter: f32,
}

impl SparseMixer {
    /// With the reference's `jitter_eps`; 0.01 in Phi-3.5-MoE.
    pub fn new(jitter: f32) -> Self {
        Self { jitter }
    }

    /// `∂L/∂logits`, `[T, E]`, of `upstream = ∂L/∂weight` for each token's first and second choice.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    ///
    /// # Panics
    ///
    /// If `chosen` or `upstream` is not of T tokens, or an expert is out of range.
    #[track_caller]
    pub fn gradient(
        &self,
        logits: ArrayView2<'_, f32>,
        chosen: &[[usize; 2]],
        upstream: &[[f32; 2]],
    ) -> Result<Array2<f64>> {
        assert_eq!([chosen.len(), upstream.len()], [logits.nrows(); 2], "two choices a token");
        let mut gradient = zeros(logits)?;
        for (t, row) in logits.rows().into_iter().enumerate() {
            for (slot, (&c, &u)) in chosen[t].iter().zip(&upstream[t]).enumerate() {
                let taken = (slot == 1).then_some(chosen[t][0]);
                let nothing_left = |(e, &l): (usize, &f32)| Some(e) == taken || l == f32::NEG_INFINITY;
                if row.indexed_iter().all(nothing_left) {
                    continue;
                }
                let p = self.probabilities(row, taken);
                let u = f64::from(u) * p[c];
                p.iter().enumerate().for_each(|(e, p)| gradient[[t, e]] -= u * p);
                gradient[[t, c]] += u;
            }
        }
        Ok(gradient)
    }

    /// Softmax over the experts that are in play and near the best of those. The mask is computed in f32, as the reference's.
    fn probabilities(&self, row: ArrayView1<'_, f32>, taken: Option<usize>) -> Vec<f64> {
        let in_play = |e: usize| Some(e) != taken;
        let best = row.indexed_iter().filter(|&(e, _)| in_play(e)).map(|(_, &l)| l);
        let best = best.fold(f32::NEG_INFINITY, f32::max);
        let masked = |l: f32| (best - l) / l.abs().max(best) > 2.0 * self.jitter;
        let near = |(e, &l): (usize, &f32)| {
            if in_play(e) && !masked(l) { f64::from(l) } else { f64::NEG_INFINITY }
        };
        let mut p = vec![];
        softmax(row.indexed_iter().map(near), &mut p);
        p
    }
}
