//! Losses that are a mean over tokens.

use moe_core::{Result, RouteInput};
use ndarray::{Array2, ArrayView1};

use crate::precise::{entropy, log_sum_exp, softmax, widened, zeros};
use crate::present::present;

/// The router z-loss: the mean over tokens of `(ln Σ exp(l))²`, which keeps logits small (ST-MoE, [2202.08906]).
///
/// It looks at the size of logits, not at balance: zeros give (ln E)², adding a constant to a row changes it.
///
/// Tokens of all sequences weigh the same, and padding is left out. Flaxformer keeps padding as rows of zeros: its value is
/// `(n · value + (T - n) · (ln E)²) / T`, and its gradient n/T times this one.
///
/// [2202.08906]: https://arxiv.org/abs/2202.08906
#[derive(Clone, Copy, Debug)]
pub struct ZLoss<'a>(RouteInput<'a>);

impl<'a> ZLoss<'a> {
    /// Over all tokens that are not padding.
    pub fn of(input: &RouteInput<'a>) -> Self {
        Self(*input)
    }

    /// The loss.
    pub fn value(&self) -> f64 {
        mean(&self.0, |row| log_sum_exp(widened(row)).powi(2))
    }

    /// `∂value/∂logits`, `[T, E]`: `2 z p / n` with `z = ln Σ exp(l)`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    pub fn gradient(&self) -> Result<Array2<f64>> {
        let mut p = vec![];
        gradient(&self.0, |row, to| {
            softmax(widened(row), &mut p);
            let z = log_sum_exp(widened(row));
            to.extend(p.iter().map(|p| 2.0 * z * p));
        })
    }
}

/// The mean over tokens of `-Σ p ln p`, in nats: minimised, it sharpens a router that chooses experts until their probabilities
/// reach a threshold (dynamic top-p, [2403.07652]).
///
/// Even probabilities give ln E, certainty 0. Padding is left out. It is the entropy within a token; that of the load over experts
/// is [`PlanStats::entropy`](moe_core::PlanStats).
///
/// [2403.07652]: https://arxiv.org/abs/2403.07652
#[derive(Clone, Copy, Debug)]
pub struct Entropy<'a>(RouteInput<'a>);

impl<'a> Entropy<'a> {
    /// Over all tokens that are not padding.
    pub fn of(input: &RouteInput<'a>) -> Self {
        Self(*input)
    }

    /// The loss.
    pub fn value(&self) -> f64 {
        let mut p = vec![];
        mean(&self.0, |row| {
            softmax(widened(row), &mut p);
            entropy(p.iter().copied())
        })
    }

    /// `∂value/∂logits`, `[T, E]`: `-p (ln p + H) / n` with H the token's entropy.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    pub fn gradient(&self) -> Result<Array2<f64>> {
        let mut p = vec![];
        gradient(&self.0, |row, to| {
            softmax(widened(row), &mut p);
            let h = entropy(p.iter().copied());
            to.extend(p.iter().map(|&p| if p == 0.0 { 0.0 } else { -p * (libm::log(p) + h) }));
        })
    }
}

fn mean(input: &RouteInput<'_>, of_token: impl FnMut(ArrayView1<'_, f32>) -> f64) -> f64 {
    let mut of_token = of_token;
    super::groups::mean(present(input, 0..input.tokens()).map(|t| of_token(input.logits.row(t))))
}

/// Rows of `of_token` over n.
fn gradient(
    input: &RouteInput<'_>,
    mut of_token: impl FnMut(ArrayView1<'_, f32>, &mut Vec<f64>),
) -> Result<Array2<f64>> {
    let mut gradient = zeros(input.logits)?;
    let n = present(input, 0..input.tokens()).count() as f64;
    let mut row = vec![];
    for t in present(input, 0..input.tokens()) {
        row.clear();
        of_token(input.logits.row(t), &mut row);
        gradient.row_mut(t).iter_mut().zip(&row).for_each(|(to, d)| *to = d / n);
    }
    Ok(gradient)
}
