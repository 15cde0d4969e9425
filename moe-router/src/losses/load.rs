//! The squared coefficients of variation of importance and of load.

use moe_core::{Result, RouteInput, memory};
use ndarray::{Array2, ArrayView2};

use super::groups::{Affinity, counted, mean, pull_back, total_probability};
use crate::precise::{cv_squared, matrix, normal_density, normal_tail, zeros};
use crate::present::present;
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
#[derive(Clone, Copy, Debug)]
pub struct Importance<'a> {
    input: RouteInput<'a>,
}

impl<'a> Importance<'a> {
    /// Over each sequence of the context.
    pub fn of(input: &RouteInput<'a>) -> Self {
        Self { input: *input }
    }

    /// The tokens of each sequence, its loss, and `∂loss/∂p`, `[E]`. Of sequences there may be as many as tokens: nothing is kept
    /// of them.
    fn sequences(&self) -> impl Iterator<Item = (usize, f64, Vec<f64>)> {
        self.input.sequences().map(|range| {
            let (importance, tokens) = total_probability(&self.input, range, Affinity::Softmax);
            let (value, slope) = cv_squared(&importance);
            (tokens, value, slope)
        })
    }

    /// The mean over sequences.
    pub fn value(&self) -> f64 {
        mean(self.sequences().filter(|(tokens, ..)| *tokens > 0).map(|(_, value, _)| value))
    }

    /// The loss of each sequence; 0 where it has no tokens.
    pub fn per_sequence(&self) -> impl Iterator<Item = f64> {
        self.sequences().map(|(_, value, _)| value)
    }

    /// `∂value/∂logits`, `[T, E]`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    pub fn gradient(&self) -> Result<Array2<f64>> {
        let counted = counted(&self.input) as f64;
        let slopes = self.input.sequences().zip(self.sequences());
        let slopes =
            slopes.map(|(range, (_, _, slope))| (range, slope.into_iter().map(|c| c / counted).collect()));
        pull_back(&self.input, Affinity::Softmax, slopes)
    }
}

/// `CV²(Loadₑ)` for each sequence, averaged: the load of noisy top-k routing, made smooth (Shazeer et al., [1701.06538]; V-MoE,
/// [2106.05974]).
///
/// The choice is the k greatest of `l + noise`. Were the noise of one expert drawn anew, all else held fixed, it would be chosen
/// with probability `1 - Φ((threshold - l[e]) / σ)`; Loadₑ is the mean of that over tokens. The two papers' code differ in the
/// threshold:
///
/// - [`excluding_self`](Self::excluding_self), Shazeer's: the k-th greatest noisy logit of the *other* experts, and a σ for each
///   token and expert, which is learned;
/// - [`of`](Self::of), V-MoE's: the k-th greatest of all, the same for each expert of a token, and one σ.
///
/// Uniform routing gives 0. All tokens sure of the same k experts give E/k - 1; in V-MoE's form a little more for k > 1, since
/// the expert that is the threshold itself has about half a chance.
///
/// The gradient flows through the logits, through the noisy logit that is the threshold, and through σ.
///
/// [1701.06538]: https://arxiv.org/abs/1701.06538
/// [2106.05974]: https://arxiv.org/abs/2106.05974
#[derive(Clone, Debug)]
pub struct Load<'a> {
    input: RouteInput<'a>,
    sigma: Array2<f64>,
    /// For each token and expert what it has to reach, and whose noisy logit that is.
    thresholds: Array2<(f64, usize)>,
    /// `[S, E]`.
    chances: Array2<f64>,
    values: Vec<f64>,
    /// `∂value/∂(chance[t, e])` in each sequence, `[S, E]`.
    slopes: Array2<f64>,
}

/// The parts of [`Load`]'s gradient. Where the noise does not depend on the logits, `logits + noisy` is the derivative by them.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadGradient {
    /// By the logits without noise, `[T, E]`.
    pub logits: Array2<f64>,
    /// By the logits with noise, `[T, E]`.
    pub noisy: Array2<f64>,
    /// By σ as it stands in the chance (the noisy logits held fixed), `[T, E]`; to be summed where σ is one number.
    pub sigma: Array2<f64>,
}

/// What the memory is for.
const DEVIATIONS: &str = "standard deviations";

impl<'a> Load<'a> {
    /// V-MoE's, of logits without noise (in `input`) and with it, `k` choices a token, and noise of standard deviation `sigma`.
    /// Equal noisy logits rank by index.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    ///
    /// # Panics
    ///
    /// If the two arrays differ in shape, k is not in 1..=E, or σ is not positive.
    #[track_caller]
    pub fn of(input: &RouteInput<'a>, noisy: ArrayView2<'_, f32>, k: usize, sigma: f64) -> Result<Self> {
        let experts = input.experts();
        assert!((1..=experts).contains(&k), "k of 1 to {experts}, found {k}");
        let sigma = std::iter::repeat_n(sigma, noisy.len());
        Self::new(input, noisy, k, matrix(noisy.dim(), sigma, DEVIATIONS)?, |ranked, _| ranked[k - 1])
    }

    /// Shazeer's, with a standard deviation for each token and expert, `[T, E]`: `softplus` of the noise gate.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    ///
    /// # Panics
    ///
    /// If the arrays differ in shape, k is not in 1..E, or a σ is not positive.
    #[track_caller]
    pub fn excluding_self(
        input: &RouteInput<'a>,
        noisy: ArrayView2<'_, f32>,
        k: usize,
        sigma: ArrayView2<'_, f32>,
    ) -> Result<Self> {
        let experts = input.experts();
        assert!((1..experts).contains(&k), "k of 1 to {experts} exclusive, found {k}");
        // Without an expert among the k best, the next one moves up.
        let of_others =
            |ranked: &[usize], e| if ranked[..k].contains(&e) { ranked[k] } else { ranked[k - 1] };
        let sigma = matrix(sigma.dim(), sigma.iter().map(|&s| f64::from(s)), DEVIATIONS)?;
        Self::new(input, noisy, k + 1, sigma, of_others)
    }

    /// `threshold(experts of the `best` greatest noisy logits, e)` is the expert whose noisy logit e has to reach.
    #[track_caller]
    fn new(
        input: &RouteInput<'a>,
        noisy: ArrayView2<'_, f32>,
        best: usize,
        sigma: Array2<f64>,
        threshold: impl Fn(&[usize], usize) -> usize,
    ) -> Result<Self> {
        assert_eq!(input.logits.dim(), noisy.dim(), "as many noisy logits as logits");
        assert_eq!(input.logits.dim(), sigma.dim(), "a standard deviation for each logit");
        let positive = |t| sigma.row(t).iter().all(|&s| s > 0.0);
        assert!(input.present().all(positive), "positive standard deviations");
        let none = std::iter::repeat_n((0.0, 0), noisy.len());
        let mut thresholds = matrix(noisy.dim(), none, "thresholds of experts")?;
        let (mut keys, mut ranked) = (vec![], vec![]);
        for (row, mut of_row) in noisy.rows().into_iter().zip(thresholds.rows_mut()) {
            select::best(row.iter().copied(), best, &mut keys);
            ranked.clear();
            ranked.extend(keys.iter().map(|&key| select::index(key)));
            for (e, to) in of_row.iter_mut().enumerate() {
                let at = threshold(&ranked, e);
                *to = (f64::from(row[at]), at);
            }
        }
        let (sequences, experts) = (input.context.sequences(), input.experts());
        let of_sequences = |what| {
            let zeros = std::iter::repeat_n(0.0, sequences.saturating_mul(experts));
            matrix((sequences, experts), zeros, what)
        };
        let (chances, slopes) = (of_sequences("chances of sequences")?, of_sequences("slopes of sequences")?);
        let mut values = Vec::new();
        memory::reserve(&mut values, sequences, "losses of sequences")?;
        let mut load = Self { input: *input, sigma, thresholds, chances, values, slopes };
        let counted = counted(input) as f64;
        for (s, range) in input.sequences().enumerate() {
            let (mut chance, mut tokens) = (vec![0.0; experts], 0u32);
            for t in present(input, range) {
                chance.iter_mut().enumerate().for_each(|(e, c)| *c += normal_tail(load.needed(t, e)));
                tokens += 1;
            }
            let n = f64::from(tokens.max(1));
            chance.iter_mut().for_each(|c| *c /= n);
            let (value, slope) = cv_squared(&chance);
            load.values.push(value);
            load.slopes.row_mut(s).iter_mut().zip(slope).for_each(|(to, d)| *to = d / n / counted);
            load.chances.row_mut(s).iter_mut().zip(chance).for_each(|(to, c)| *to = c);
        }
        Ok(load)
    }

    /// The noise, in units of σ, with which expert e of token t reaches the threshold.
    fn needed(&self, t: usize, e: usize) -> f64 {
        if self.input.is_masked(t, e) {
            // No noise reaches it, not even where the threshold is masked too.
            return f64::INFINITY;
        }
        (self.thresholds[[t, e]].0 - f64::from(self.input.logits[[t, e]])) / self.sigma[[t, e]]
    }

    /// The mean over sequences.
    pub fn value(&self) -> f64 {
        let of_tokens = |range| present(&self.input, range).next().is_some();
        let counted =
            self.values.iter().zip(self.input.sequences()).filter(|(_, range)| of_tokens(range.clone()));
        mean(counted.map(|(value, _)| *value))
    }

    /// The loss of each sequence; 0 where it has no tokens.
    pub fn per_sequence(&self) -> impl Iterator<Item = f64> {
        self.values.iter().copied()
    }

    /// Loadₑ for each sequence, `[S, E]`: how probably a token is for the expert. 0 in a sequence without tokens.
    pub fn chances(&self) -> ArrayView2<'_, f64> {
        self.chances.view()
    }

    /// `∂value/∂logits`, by all ways.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    pub fn gradient(&self) -> Result<LoadGradient> {
        let zeros = || zeros(self.input.logits);
        let mut gradient = LoadGradient { logits: zeros()?, noisy: zeros()?, sigma: zeros()? };
        for (slope, range) in self.slopes.rows().into_iter().zip(self.input.sequences()) {
            for t in present(&self.input, range) {
                for (e, c) in slope.iter().enumerate() {
                    // d(1 - Φ(x))/dx = -φ(x), x = (threshold - l) / σ.
                    let x = self.needed(t, e);
                    let d = c * normal_density(x) / self.sigma[[t, e]];
                    gradient.logits[[t, e]] += d;
                    gradient.noisy[[t, self.thresholds[[t, e]].1]] -= d;
                    if d != 0.0 {
                        gradient.sigma[[t, e]] += d * x;
                    }
                }
            }
        }
        Ok(gradient)
    }
}
