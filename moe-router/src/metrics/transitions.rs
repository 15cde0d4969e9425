//! What one layer's choice says about the next one's.

use moe_core::Routed;
use ndarray::{Array2, ArrayView2, Axis};

use super::Proportion;
use crate::precise::entropy;
use crate::present::present;

/// For each pair of experts, the number of tokens whose first choice is the one in a layer and the other in another layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transitions {
    counts: Array2<u64>,
}

impl Transitions {
    /// Of no tokens yet, between layers of so many experts.
    pub fn new(from: usize, to: usize) -> Self {
        Self { counts: Array2::zeros((from, to)) }
    }

    /// Adds the tokens of a batch, seen in both layers. Those without a choice in either, and padding, are left out.
    ///
    /// # Panics
    ///
    /// If the two differ in their tokens, or their experts are not those given at the start.
    #[track_caller]
    pub fn add(&mut self, from: &Routed<'_>, to: &Routed<'_>) {
        assert_eq!(from.plan.tokens(), to.plan.tokens(), "tokens of two layers");
        assert_eq!((from.plan.experts(), to.plan.experts()), self.counts.dim(), "experts of two layers");
        for t in present(&from.input(), 0..from.plan.tokens()) {
            if let (Some(a), Some(b)) = (from.plan.requested(t).next(), to.plan.requested(t).next()) {
                self.add_token(a, b);
            }
        }
    }

    /// Adds one token, by its first choice in either layer.
    ///
    /// # Panics
    ///
    /// If one of them is no expert of its layer.
    #[track_caller]
    pub fn add_token(&mut self, from: usize, to: usize) {
        self.counts[[from, to]] += 1;
    }

    /// The counts, `[from, to]`.
    pub fn counts(&self) -> ArrayView2<'_, u64> {
        self.counts.view()
    }

    /// Among the tokens whose first choice is `from`, those whose first choice is `to` in the other layer.
    pub fn given(&self, from: usize, to: usize) -> Proportion {
        Proportion { hits: self.counts[[from, to]], trials: self.counts.row(from).sum() }
    }

    /// `Σ p(a, b) ln(p(a, b) / (p(a) p(b)))` in nats: 0 where the choices are independent, at most the smaller of the two entropies.
    ///
    /// It is that of the sample, which is above that of the source by about `(E₁ - 1)(E₂ - 1) / 2n` where they are independent.
    pub fn mutual_information(&self) -> f64 {
        let (from, to) = self.entropies();
        // Exactly 0 or a rounding error where it is 0.
        (from + to - self.nats(self.counts.iter().copied())).max(0.0)
    }

    /// The entropies of the first choices in the two layers, in nats.
    pub fn entropies(&self) -> (f64, f64) {
        let of = |axis| self.nats(self.counts.sum_axis(Axis(axis)));
        (of(1), of(0))
    }

    fn nats(&self, counts: impl IntoIterator<Item = u64>) -> f64 {
        let n = self.counts.sum().max(1) as f64;
        entropy(counts.into_iter().map(|c| c as f64 / n))
    }
}
