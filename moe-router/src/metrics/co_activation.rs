//! Which experts are chosen together.

use moe_core::Routed;
use ndarray::{Array2, ArrayView2};

use super::Proportion;
use crate::present::present;

/// For each pair of experts, the number of tokens that chose both; on the diagonal, those that chose the one.
///
/// The matrix `[E, E]` is symmetric. It counts tokens, not appearances: with k choices a token, a row sums to k times its diagonal
/// entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoActivation {
    counts: Array2<u64>,
    tokens: u64,
}

impl CoActivation {
    /// Of no tokens yet.
    pub fn new(experts: usize) -> Self {
        Self { counts: Array2::zeros((experts, experts)), tokens: 0 }
    }

    /// Adds the tokens of a batch, each in time k².
    ///
    /// # Panics
    ///
    /// If the batch has another number of experts.
    #[track_caller]
    pub fn add(&mut self, routed: &Routed<'_>) {
        assert_eq!(routed.plan.experts(), self.counts.nrows(), "experts");
        let mut choices = Vec::new();
        for t in present(&routed.input(), 0..routed.plan.tokens()) {
            choices.clear();
            choices.extend(routed.plan.requested(t));
            self.add_token(&choices);
        }
    }

    /// Adds one token, by its different choices.
    ///
    /// # Panics
    ///
    /// If one of them is no expert.
    #[track_caller]
    pub fn add_token(&mut self, choices: &[usize]) {
        self.tokens += 1;
        for &a in choices {
            choices.iter().for_each(|&b| self.counts[[a, b]] += 1);
        }
    }

    /// The counts, `[E, E]`.
    pub fn counts(&self) -> ArrayView2<'_, u64> {
        self.counts.view()
    }

    /// Tokens that were looked at.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Among the tokens that chose `a`, those that chose `b` too.
    pub fn given(&self, a: usize, b: usize) -> Proportion {
        Proportion { hits: self.counts[[a, b]], trials: self.counts[[a, a]] }
    }

    /// Among the tokens that chose either, those that chose both: 1 for an expert with itself.
    pub fn jaccard(&self, a: usize, b: usize) -> Proportion {
        let both = self.counts[[a, b]];
        Proportion { hits: both, trials: self.counts[[a, a]] + self.counts[[b, b]] - both }
    }
}
