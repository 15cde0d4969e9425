//! The squared coefficients of variation of importance and of load.

use moe_core::RouteInput;
use ndarray::{Array2, ArrayView2};

use super::groups::{Affinity, mean, pull_back, total_probability};
use crate::asked::present;
use crate::precise::{cv_squared, normal_density, normal_tail};
use crate::select;

/// `CV²(Iₑ)`, `Iₑ = Σₜ softmax(l)[t, e]`, for each sequence, averaged (Shazeer et al., [1701.06538]; V-MoE, [2106.05974]).
///
/// CV² is population variance over squared mean: uniform routing gives 0, all probability on one expert E - 1. The choice
/// plays no part. Shazeer takes the whole batch, V-MoE each group of it: what the context calls a sequence. Shazeer's
/// gates are softmax over the chosen; these are V-MoE's, over all experts and before any noise.
///
/// At 0 the gradient is 0; a reference that squares `std / mean` has NaN there.
///
/// [1701.06538]: https://arxiv.org/abs/1701.06538
/// [2106.05974]: https://arxiv.org/abs/2106.05974
#[derive(Clone, Debug)]
pub struct Importance<'a> {
    input: RouteInput<'a>,
    values: Vec<f64>,
    /// `∂value/∂p` in each sequence, `[E]`; none without tokens.
    slopes: Vec<Vec<f64>>,
}

impl<'a> Importance<'a> {
    /// Over each sequence of the context.
    pub fn of(input: &RouteInput<'a>) -> Self {
        let (mut values, mut slopes) = (vec![], vec![]);
        for range in input.sequences() {
            let (importance, tokens) = total_probability(input, range, Affinity::Softmax);
            let (value, slope) = cv_squared(&importance);
            values.push(value);
            slopes.push(if tokens == 0 { vec![] } else { slope });
        }
        let counted = slopes.iter().filter(|c| !c.is_empty()).count() as f64;
        slopes.iter_mut().flatten().for_each(|c| *c /= counted);
        Self { input: *input, values, slopes }
    }

    /// The mean over sequences.
    pub fn value(&self) -> f64 {
        let counted = self.values.iter().zip(&self.slopes).filter(|(_, c)| !c.is_empty());
        mean(counted.map(|(v, _)| *v))
    }

    /// The loss of each sequence; 0 where it has no tokens.
    pub fn per_sequence(&self) -> &[f64] {
        &self.values
    }

    /// `∂value/∂logits`, `[T, E]`.
    pub fn gradient(&self) -> Array2<f64> {
        pull_back(&self.input, Affinity::Softmax, |s| &self.slopes[s])
    }
}

/// `CV²(Loadₑ)` for each sequence, averaged: the load of noisy top-k routing, made smooth (Shazeer et al., [1701.06538]; V-MoE,
/// [2106.05974]).
///
/// The choice is the k greatest of `l + noise`. With the k-th greatest noisy logit of a token held fixed, another draw of noise for
/// expert e would be chosen with probability `1 - Φ((threshold - l[e]) / σ)`; Loadₑ is its mean over tokens. Uniform
/// routing gives 0. All tokens sure of the same k experts give at least E/k - 1, a little more for k > 1: the one that is the
/// threshold itself has about half a chance.
///
/// This is V-MoE's form: one threshold for all experts of a token. Shazeer leaves the expert itself out when the k-th greatest is
/// taken, and has a learned σ for each expert.
///
/// The gradient flows through the logits and, as in V-MoE, through the noisy logit that is the threshold.
///
/// [1701.06538]: https://arxiv.org/abs/1701.06538
/// [2106.05974]: https://arxiv.org/abs/2106.05974
#[derive(Clone, Debug)]
pub struct Load<'a> {
    input: RouteInput<'a>,
    sigma: f64,
    /// The threshold of each token, and whose noisy logit it is.
    thresholds: Vec<(f64, usize)>,
    chances: Vec<Vec<f64>>,
    values: Vec<f64>,
    /// `∂value/∂(chance[t, e])` in each sequence, `[E]`; none without tokens.
    slopes: Vec<Vec<f64>>,
}

/// The two parts of [`Load`]'s gradient; where the noise does not depend on the logits, their sum is the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadGradient {
    /// By the logits without noise, `[T, E]`.
    pub logits: Array2<f64>,
    /// By the logits with noise, `[T, E]`.
    pub noisy: Array2<f64>,
}

impl<'a> Load<'a> {
    /// Of logits without noise (in `input`) and with it, of `k` choices a token and noise of standard deviation `sigma`.
    /// Equal noisy logits rank by index.
    ///
    /// # Panics
    ///
    /// If the two arrays differ in shape, k is not in 1..=E, or σ is not positive.
    #[track_caller]
    pub fn of(input: &RouteInput<'a>, noisy: ArrayView2<'_, f32>, k: usize, sigma: f64) -> Self {
        assert_eq!(input.logits.dim(), noisy.dim(), "as many noisy logits as logits");
        assert!((1..=input.experts()).contains(&k), "k of 1 to {}, found {k}", input.experts());
        assert!(sigma > 0.0, "a positive standard deviation, found {sigma}");
        let mut keys = vec![];
        let threshold = |row: ndarray::ArrayView1<'_, f32>| {
            select::best(row.iter().copied(), k, &mut keys);
            let last = select::index(keys[k - 1]);
            (f64::from(row[last]), last)
        };
        let thresholds: Vec<_> = noisy.rows().into_iter().map(threshold).collect();
        let mut load =
            Self { input: *input, sigma, thresholds, chances: vec![], values: vec![], slopes: vec![] };
        for range in input.sequences() {
            let (mut chance, mut tokens) = (vec![0.0; input.experts()], 0u32);
            for t in present(input, range) {
                chance.iter_mut().enumerate().for_each(|(e, c)| *c += normal_tail(load.needed(t, e)));
                tokens += 1;
            }
            let n = f64::from(tokens.max(1));
            chance.iter_mut().for_each(|c| *c /= n);
            let (value, slope) = cv_squared(&chance);
            load.values.push(value);
            load.slopes.push(if tokens == 0 { vec![] } else { slope.into_iter().map(|d| d / n).collect() });
            load.chances.push(chance);
        }
        let counted = load.slopes.iter().filter(|c| !c.is_empty()).count() as f64;
        load.slopes.iter_mut().flatten().for_each(|c| *c /= counted);
        load
    }

    /// The noise, in units of σ, with which expert e of token t reaches the threshold.
    fn needed(&self, t: usize, e: usize) -> f64 {
        (self.thresholds[t].0 - f64::from(self.input.logits[[t, e]])) / self.sigma
    }

    /// The mean over sequences.
    pub fn value(&self) -> f64 {
        let counted = self.values.iter().zip(&self.slopes).filter(|(_, c)| !c.is_empty());
        mean(counted.map(|(v, _)| *v))
    }

    /// The loss of each sequence; 0 where it has no tokens.
    pub fn per_sequence(&self) -> &[f64] {
        &self.values
    }

    /// Loadₑ for each sequence, `[E]`: how probably a token is for the expert. 0 in a sequence without tokens.
    pub fn chances(&self) -> &[Vec<f64>] {
        &self.chances
    }

    /// `∂value/∂logits`, both ways.
    pub fn gradient(&self) -> LoadGradient {
        let mut logits = Array2::zeros(self.input.logits.raw_dim());
        let mut noisy = logits.clone();
        for (slope, range) in self.slopes.iter().zip(self.input.sequences()) {
            for t in present(&self.input, range) {
                for (e, c) in slope.iter().enumerate() {
                    // d(1 - Φ(x))/dx = -φ(x).
                    let d = c * normal_density(self.needed(t, e)) / self.sigma;
                    logits[[t, e]] += d;
                    noisy[[t, self.thresholds[t].1]] -= d;
                }
            }
        }
        LoadGradient { logits, noisy }
    }
}
