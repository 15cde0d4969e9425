//! Two routings of the same tokens.

use moe_core::Routed;

use super::Proportion;
use crate::asked::{Asked, present};
use crate::precise::{softmax, widened};

/// How far a routing is from another of the same tokens: two routers, two engines, two checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Agreement {
    /// The first choice is the same; two tokens without a choice agree.
    pub first: Proportion,
    /// The set of experts is the same, in whatever order. Its [complement](Self::flips) is the flip rate.
    pub set: Proportion,
    overlap: f64,
    kl: f64,
    kl_over_chosen: f64,
}

impl Agreement {
    /// Adds the tokens of a batch, routed in two ways. Padding is that of the first.
    ///
    /// # Panics
    ///
    /// If the two differ in their tokens or experts.
    #[track_caller]
    pub fn add(&mut self, a: &Routed<'_>, b: &Routed<'_>) {
        assert_eq!(a.logits.dim(), b.logits.dim(), "two routings of the same tokens and experts");
        let (asked_a, asked_b) = (Asked::of(a.plan), Asked::of(b.plan));
        let (mut p, mut q) = (vec![], vec![]);
        for t in present(&a.input(), 0..a.plan.tokens()) {
            let (x, y) = (asked_a.experts(t), asked_b.experts(t));
            let common = x.iter().filter(|e| y.contains(e)).count();
            let either = x.len() + y.len() - common;
            self.first.count(x.first() == y.first());
            self.set.count(common == either);
            self.overlap += if either == 0 { 1.0 } else { common as f64 / either as f64 };

            let (row_a, row_b) = (a.logits.row(t), b.logits.row(t));
            softmax(widened(row_a), &mut p);
            softmax(widened(row_b), &mut q);
            self.kl += divergence(&p, &q);
            if !x.is_empty() {
                softmax(x.iter().map(|&e| f64::from(row_a[e])), &mut p);
                softmax(x.iter().map(|&e| f64::from(row_b[e])), &mut q);
                self.kl_over_chosen += divergence(&p, &q);
            }
        }
    }

    /// The flip rate: tokens whose set of experts differs.
    pub fn flips(&self) -> Proportion {
        self.set.complement()
    }

    /// The mean over tokens of the experts chosen by both over those chosen by either; 1 where none is chosen by either.
    pub fn overlap(&self) -> f64 {
        self.mean(self.overlap)
    }

    /// The mean over tokens of `Σ p ln(p / q)` over all experts, p the first routing's softmax and q the second's, in nats.
    pub fn kl(&self) -> f64 {
        self.mean(self.kl)
    }

    /// The same with both softmaxes over the experts that the first routing chose for the token: how differently the two would
    /// weigh that choice. 0 for k = 1.
    pub fn kl_over_chosen(&self) -> f64 {
        self.mean(self.kl_over_chosen)
    }

    fn mean(&self, sum: f64) -> f64 {
        if self.first.trials == 0 { 0.0 } else { sum / self.first.trials as f64 }
    }
}

/// `Σ p ln(p / q)`: never negative, infinite where q is 0 and p is not.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let terms = p.iter().zip(q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p * libm::log(p / q));
    terms.sum::<f64>().max(0.0)
}
