//! Two routings of the same tokens.

use moe_core::Routed;

use super::Proportion;
use crate::precise::{log_sum_exp, widened};
use crate::present::present;

/// How often the experts of the same tokens are the same, by whatever they were chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ChoiceAgreement {
    /// The first choice is the same; two tokens without a choice agree.
    pub first: Proportion,
    /// The set of experts is the same, in whatever order. Its [complement](Self::flips) is the flip rate.
    pub set: Proportion,
    overlap: f64,
}

impl ChoiceAgreement {
    /// Adds a token, by its experts in either routing, best first and each once; says whether the sets are the same.
    pub fn add<E: PartialEq>(
        &mut self,
        a: impl Iterator<Item = E> + Clone,
        b: impl Iterator<Item = E> + Clone,
    ) -> bool {
        let common = a.clone().filter(|e| b.clone().any(|other| other == *e)).count();
        let either = a.clone().count() + b.clone().count() - common;
        self.first.count(a.clone().next() == b.clone().next());
        self.set.count(common == either);
        self.overlap += if either == 0 { 1.0 } else { common as f64 / either as f64 };
        common == either
    }

    /// Tokens that were compared.
    pub fn tokens(&self) -> u64 {
        self.first.trials
    }

    /// The flip rate: tokens whose set of experts differs.
    pub fn flips(&self) -> Proportion {
        self.set.complement()
    }

    /// The mean over tokens of the experts chosen by both over those chosen by either; 1 where none is chosen by either. 0 without
    /// tokens.
    pub fn overlap(&self) -> f64 {
        self.mean(self.overlap)
    }

    fn mean(&self, sum: f64) -> f64 {
        if self.tokens() == 0 { 0.0 } else { sum / self.tokens() as f64 }
    }
}

/// How far a routing is from another of the same tokens: two routers, two engines, two checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Agreement {
    /// Of what was chosen, refused or not.
    pub choices: ChoiceAgreement,
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
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for t in present(&a.input(), 0..a.plan.tokens()) {
            x.clear();
            x.extend(a.plan.requested(t));
            y.clear();
            y.extend(b.plan.requested(t));
            self.choices.add(x.iter(), y.iter());

            let (row_a, row_b) = (a.logits.row(t), b.logits.row(t));
            self.kl += divergence(widened(row_a), widened(row_b));
            if !x.is_empty() {
                let of_chosen = |e: &usize| (f64::from(row_a[*e]), f64::from(row_b[*e]));
                let both = x.iter().map(of_chosen);
                self.kl_over_chosen += divergence(both.clone().map(|l| l.0), both.map(|l| l.1));
            }
        }
    }

    /// The mean over tokens of `Σ p ln(p / q)` over all experts, p the first routing's softmax and q the second's, in nats.
    pub fn kl(&self) -> f64 {
        self.choices.mean(self.kl)
    }

    /// The same with both softmaxes over the experts that the first routing chose for the token: how differently the two would
    /// weigh that choice. 0 for k = 1.
    pub fn kl_over_chosen(&self) -> f64 {
        self.choices.mean(self.kl_over_chosen)
    }
}

/// `Σ p ln(p / q)` of the softmaxes p and q of two rows of logits: never negative, infinite where q is 0 and p is not.
fn divergence(a: impl Iterator<Item = f64> + Clone, b: impl Iterator<Item = f64> + Clone) -> f64 {
    let (of_a, of_b) = (log_sum_exp(a.clone()), log_sum_exp(b.clone()));
    let term = |(a, b): (f64, f64)| {
        let p = libm::exp(a - of_a);
        // In logarithms: q may underflow where ln q does not.
        match (p, b) {
            (0.0, _) => 0.0,
            // Masked in the second, which may have nothing else.
            (p, f64::NEG_INFINITY) if p > 0.0 => f64::INFINITY,
            _ => p * ((a - of_a) - (b - of_b)),
        }
    };
    let sum: f64 = a.zip(b).map(term).sum();
    // Written so that NaN stays.
    if sum < 0.0 { 0.0 } else { sum }
}
