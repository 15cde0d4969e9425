//! The balance losses of the DeepSeek models.

use moe_core::{RouteInput, Routed};
use ndarray::Array2;

pub use super::groups::Affinity;
use super::groups::{mean, pull_back, total_probability};
use crate::asked::{Asked, present};

/// `Σₑ fₑ Pₑ` for each sequence, averaged over sequences: DeepSeek-V2's expert-level balance ([2405.04434]) with
/// [`Affinity::Softmax`], DeepSeek-V3's sequence-wise balance ([2412.19437]) with [`Affinity::Sigmoid`].
///
/// `fₑ = E / (k n) · choices of e` sums to E, not to k as [`LoadBalance`](super::LoadBalance)'s: uniform routing gives 1 whatever
/// k is, collapse E/k. k n is the number of choices that the sequence's tokens have. Pₑ is the mean of the affinity.
///
/// V3 chooses by score plus bias and defines f by that choice; here it is whatever the plan says.
///
/// [2405.04434]: https://arxiv.org/abs/2405.04434
/// [2412.19437]: https://arxiv.org/abs/2412.19437
#[derive(Clone, Debug)]
pub struct SequenceBalance<'a>(Balanced<'a>);

impl<'a> SequenceBalance<'a> {
    /// Over each sequence of the context.
    pub fn of(routed: &Routed<'a>, affinity: Affinity) -> Self {
        Self(Balanced::of(routed, affinity, |f| f))
    }

    /// The mean over sequences.
    pub fn value(&self) -> f64 {
        self.0.value()
    }

    /// The loss of each sequence; 0 where it has no tokens or no choices.
    pub fn per_sequence(&self) -> &[f64] {
        &self.0.values
    }

    /// `∂value/∂logits`, `[T, E]`.
    pub fn gradient(&self) -> Array2<f64> {
        self.0.gradient()
    }
}

/// `Σᵢ f'ᵢ P'ᵢ` over devices, for each sequence, averaged: DeepSeek-V2's device-level balance ([2405.04434]).
///
/// Device i holds the experts Eᵢ; `f'ᵢ` is the mean over them of [`SequenceBalance`]'s f, and `P'ᵢ` the sum of their P. Uniform
/// routing gives 1. Collapse onto one of D devices of equal size gives D: within a device nothing is asked for.
///
/// [2405.04434]: https://arxiv.org/abs/2405.04434
#[derive(Clone, Debug)]
pub struct DeviceBalance<'a>(Balanced<'a>);

impl<'a> DeviceBalance<'a> {
    /// With the device of each expert, `[E]`.
    ///
    /// # Panics
    ///
    /// If there is not one device for each expert.
    #[track_caller]
    pub fn of(routed: &Routed<'a>, affinity: Affinity, device_of: &[usize]) -> Self {
        assert_eq!(device_of.len(), routed.input().experts(), "one device an expert");
        let mut order: Vec<usize> = (0..device_of.len()).collect();
        order.sort_by_key(|&e| device_of[e]);
        // Σᵢ f'ᵢ P'ᵢ = Σₑ f'(device of e) Pₑ.
        let shared = |mut f: Vec<f64>| {
            for experts in order.chunk_by(|&a, &b| device_of[a] == device_of[b]) {
                let mean = experts.iter().map(|&e| f[e]).sum::<f64>() / experts.len() as f64;
                experts.iter().for_each(|&e| f[e] = mean);
            }
            f
        };
        Self(Balanced::of(routed, affinity, shared))
    }

    /// The mean over sequences.
    pub fn value(&self) -> f64 {
        self.0.value()
    }

    /// The loss of each sequence; 0 where it has no tokens or no choices.
    pub fn per_sequence(&self) -> &[f64] {
        &self.0.values
    }

    /// `∂value/∂logits`, `[T, E]`.
    pub fn gradient(&self) -> Array2<f64> {
        self.0.gradient()
    }
}

/// `Σₑ cₑ Pₑ` for each sequence, c made of its f.
#[derive(Clone, Debug)]
struct Balanced<'a> {
    input: RouteInput<'a>,
    affinity: Affinity,
    values: Vec<f64>,
    /// `∂value/∂p` in each sequence, `[E]`; none where it is left out.
    slopes: Vec<Vec<f64>>,
}

impl<'a> Balanced<'a> {
    fn of(routed: &Routed<'a>, affinity: Affinity, coefficients: impl Fn(Vec<f64>) -> Vec<f64>) -> Self {
        let (input, asked) = (routed.input(), Asked::of(routed.plan));
        let (mut values, mut slopes) = (vec![], vec![]);
        for range in input.sequences() {
            let mut f = vec![0.0; input.experts()];
            present(&input, range.clone()).flat_map(|t| asked.experts(t)).for_each(|&e| f[e] += 1.0);
            let choices: f64 = f.iter().sum();
            let (total, tokens) = total_probability(&input, range, affinity);
            if tokens == 0 {
                values.push(0.0);
                slopes.push(vec![]);
                continue;
            }
            let each = if choices == 0.0 { 0.0 } else { f.len() as f64 / choices };
            f.iter_mut().for_each(|f| *f *= each);
            let c: Vec<f64> = coefficients(f).into_iter().map(|c| c / tokens as f64).collect();
            values.push(c.iter().zip(&total).map(|(c, p)| c * p).sum());
            slopes.push(c);
        }
        let counted = slopes.iter().filter(|c| !c.is_empty()).count() as f64;
        slopes.iter_mut().flatten().for_each(|c| *c /= counted);
        Self { input, affinity, values, slopes }
    }

    fn value(&self) -> f64 {
        let counted = self.values.iter().zip(&self.slopes).filter(|(_, c)| !c.is_empty());
        mean(counted.map(|(v, _)| *v))
    }

    fn gradient(&self) -> Array2<f64> {
        pull_back(&self.input, self.affinity, |s| &self.slopes[s])
    }
}
