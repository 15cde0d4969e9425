//! What the losses share: statistics of a group of tokens, and the way back from them to the logits.

use std::borrow::Cow;
use std::ops::Range;

use moe_core::{Result, RouteInput};
use ndarray::{Array2, ArrayViewMut1};

use crate::backward::Weighting;
use crate::precise::zeros;
use crate::present::present;
use crate::{Normalizer, Score};

/// Probabilities over all experts: softmax, or sigmoids divided by their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// `exp(lₑ) / Σ exp(l)`.
    #[default]
    Softmax,
    /// `σ(lₑ) / Σ σ(l)`: DeepSeek-V3.
    Sigmoid,
}

impl Affinity {
    fn weighting(self) -> Weighting {
        match self {
            Self::Softmax => Weighting::new(Score::Softmax),
            Self::Sigmoid => Weighting::of(Score::Sigmoid, Normalizer::Sum { epsilon: 0.0 }, 1.0),
        }
    }
}

/// `Σ p[t]` over the tokens of a range that are not padding, and their number.
pub(crate) fn total_probability(
    input: &RouteInput<'_>,
    range: Range<usize>,
    affinity: Affinity,
) -> (Vec<f64>, usize) {
    let experts: Vec<usize> = (0..input.experts()).collect();
    let weighting = affinity.weighting();
    let (mut total, mut tokens) = (vec![0.0; experts.len()], 0);
    for t in present(input, range) {
        let p = weighting.of_token(input.logits.row(t), &experts);
        total.iter_mut().zip(p).for_each(|(total, p)| *total += p);
        tokens += 1;
    }
    (total, tokens)
}

/// How many tokens of a range are not padding.
pub(crate) fn count(input: &RouteInput<'_>, range: Range<usize>) -> usize {
    present(input, range).count()
}

/// How many sequences have tokens that are not padding.
pub(crate) fn counted(input: &RouteInput<'_>) -> usize {
    input.sequences().filter(|range| present(input, range.clone()).next().is_some()).count()
}

/// `∂L/∂logits` of a loss that has the same `∂L/∂p[t]`, `[E]`, for all tokens of a range.
///
/// Padding, and what is in no range, has gradient zero.
///
/// # Errors
///
/// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
pub(crate) fn pull_back<'c>(
    input: &RouteInput<'_>,
    affinity: Affinity,
    slopes: impl Iterator<Item = (Range<usize>, Cow<'c, [f64]>)>,
) -> Result<Array2<f64>> {
    let experts: Vec<usize> = (0..input.experts()).collect();
    let weighting = affinity.weighting();
    let mut gradient = zeros(input.logits)?;
    for (range, c) in slopes {
        for t in present(input, range) {
            let mut to: ArrayViewMut1<'_, f64> = gradient.row_mut(t);
            weighting.pull_back(input.logits.row(t), &experts, &c, |e, d| to[e] += d);
        }
    }
    Ok(gradient)
}

/// The mean of some values weighted by their numbers of tokens, 0 of none.
pub(crate) fn mean_by_tokens(values: impl Iterator<Item = (usize, f64)>) -> f64 {
    let add = |(sum, all), (n, value)| (sum + n as f64 * value, all + n);
    let (sum, all) = values.filter(|(n, _)| *n > 0).fold((0.0, 0), add);
    if all == 0 { 0.0 } else { sum / all as f64 }
}

/// The mean of some values, 0 of none.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
    if n == 0.0 { 0.0 } else { sum / n }
}
