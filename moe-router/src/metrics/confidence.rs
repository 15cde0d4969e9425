//! How sure a router is, and how full the experts are.

use moe_core::{RouteInput, RoutingPlan};

use crate::precise::{entropy, log_sum_exp, softmax, widened};
use crate::present::present;

/// How peaked the probabilities `p = softmax(l)` of tokens are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Confidence {
    /// Tokens that were looked at.
    pub tokens: u64,
    top: f64,
    margin: f64,
    z: f64,
    entropy: f64,
}

impl Confidence {
    /// Adds the tokens of a batch.
    pub fn add(&mut self, input: &RouteInput<'_>) {
        let mut p = vec![];
        for t in present(input, 0..input.tokens()) {
            let row = input.logits.row(t);
            softmax(widened(row), &mut p);
            let (mut first, mut second) = (0.0, 0.0);
            for &p in &p {
                if p > first {
                    (first, second) = (p, first);
                } else if p > second {
                    second = p;
                }
            }
            self.tokens += 1;
            self.top += first;
            self.margin += first - second;
            self.z += log_sum_exp(widened(row)).powi(2);
            self.entropy += entropy(p.iter().copied());
        }
    }

    /// Router confidence: the mean of the greatest probability, in 1/E..=1.
    pub fn top_probability(&self) -> f64 {
        self.mean(self.top)
    }

    /// The mean distance of the two greatest probabilities, in 0..=1. With one expert the second is 0.
    pub fn margin(&self) -> f64 {
        self.mean(self.margin)
    }

    /// The mean of `(ln Σ exp(l))²`: the value of [`ZLoss`](crate::losses::ZLoss) over all that was added.
    pub fn z(&self) -> f64 {
        self.mean(self.z)
    }

    /// The mean of `-Σ p ln p`, in 0..=ln E: the value of [`Entropy`](crate::losses::Entropy) over all that was added.
    pub fn entropy(&self) -> f64 {
        self.mean(self.entropy)
    }

    fn mean(&self, sum: f64) -> f64 {
        if self.tokens == 0 { 0.0 } else { sum / self.tokens as f64 }
    }
}

/// The share of all experts' places that are taken: rows over `E · places`, where every expert has `places`. 0 without a place.
///
/// Where each sequence is a group of its own, an expert's places are those of all sequences together.
pub fn capacity_utilisation(plan: &RoutingPlan, places: usize) -> f64 {
    let all = plan.experts() * places;
    if all == 0 { 0.0 } else { plan.rows() as f64 / all as f64 }
}
