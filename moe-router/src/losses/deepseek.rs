//! The balance losses of the DeepSeek models.

use moe_core::{Result, RouteInput, Routed};
use ndarray::Array2;

pub use super::groups::Affinity;
use super::groups::{mean, mean_by_tokens, pull_back, total_probability};
use crate::present::present;

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
        let experts = routed.input().experts();
        Self(Balanced::of(routed, affinity, |tokens| shares(tokens, experts)))
    }
}

/// What these losses have in common.
macro_rules! per_sequence {
    ($($loss:ident),+) => {$(
        impl $loss<'_> {
            /// The mean over sequences, all alike unless weighted.
            pub fn value(&self) -> f64 {
                self.0.value()
            }

            /// The same with the mean over sequences weighted by their tokens, of which padding is none.
            pub fn weighted_by_tokens(self) -> Self {
                Self(self.0.weighted_by_tokens())
            }

            /// The loss of each sequence; 0 where it has no tokens or no choices.
            pub fn per_sequence(&self) -> &[f64] {
                &self.0.values
            }

            /// `∂value/∂logits`, `[T, E]`.
            ///
            /// # Errors
            ///
            /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
            pub fn gradient(&self) -> Result<Array2<f64>> {
                self.0.gradient()
            }
        }
    )+};
}

per_sequence!(SequenceBalance, DeviceBalance, CommunicationBalance);

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
        let (device_of, devices) = numbered(device_of);
        // Σᵢ f'ᵢ P'ᵢ = Σₑ f'(device of e) Pₑ.
        let shared = |tokens: &mut OfTokens<'_>| {
            let (mut sums, mut sizes) = (vec![0.0; devices], vec![0.0; devices]);
            for (&device, f) in device_of.iter().zip(shares(tokens, device_of.len())) {
                sums[device] += f;
                sizes[device] += 1.0;
            }
            device_of.iter().map(|&device| sums[device] / sizes[device]).collect()
        };
        Self(Balanced::of(routed, affinity, shared))
    }
}

/// `Σᵢ f''ᵢ P''ᵢ` over devices, for each sequence, averaged: DeepSeek-V2's communication balance ([2405.04434], section 2.2.3).
///
/// Device i holds the experts Eᵢ, and a token is to be sent to at most M of the D devices. `f''ᵢ = D / (M n) · tokens sent to
/// device i`, once however many of its experts they chose, and `P''ᵢ` is the sum of their P. While [`DeviceBalance`]
/// evens out the work, this one evens out what devices receive. Tokens that all go to M devices, each of them equally often, give 1
/// where P is even; collapse onto one device D/M. (The formula follows the paper as commonly quoted; its text was not at hand.)
///
/// [2405.04434]: https://arxiv.org/abs/2405.04434
#[derive(Clone, Debug)]
pub struct CommunicationBalance<'a>(Balanced<'a>);

impl<'a> CommunicationBalance<'a> {
    /// With the device of each expert, `[E]`, and M, which is the number of groups that
    /// [`ExpertGroups`](crate::ExpertGroups) keeps.
    ///
    /// # Panics
    ///
    /// If there is not one device for each expert, or M is 0.
    #[track_caller]
    pub fn of(routed: &Routed<'a>, affinity: Affinity, device_of: &[usize], most_devices: usize) -> Self {
        assert_eq!(device_of.len(), routed.input().experts(), "one device an expert");
        assert!(most_devices > 0, "a token goes to one device or more");
        let (device_of, devices) = numbered(device_of);
        let shared = |tokens: &mut OfTokens<'_>| {
            let (mut sent, mut last, mut count) = (vec![0.0; devices], vec![0; devices], 0u64);
            tokens(&mut |experts| {
                count += 1;
                for e in experts {
                    let device = device_of[e];
                    if last[device] != count {
                        (last[device], sent[device]) = (count, sent[device] + 1.0);
                    }
                }
            });
            let each = devices as f64 / (most_devices as f64 * count as f64);
            device_of.iter().map(|&device| each * sent[device]).collect()
        };
        Self(Balanced::of(routed, affinity, shared))
    }
}

/// Hands over the choices of each token of a sequence that is not padding, one after the other.
type OfTokens<'a> = dyn FnMut(&mut dyn FnMut(&mut dyn Iterator<Item = usize>)) + 'a;

/// `fₑ = E / (k n) · choices of e`, of the choices of each token; zeros where there are none.
fn shares(tokens: &mut OfTokens<'_>, experts: usize) -> Vec<f64> {
    let mut f = vec![0.0; experts];
    tokens(&mut |choices| choices.for_each(|e| f[e] += 1.0));
    let all: f64 = f.iter().sum();
    let each = if all == 0.0 { 0.0 } else { experts as f64 / all };
    f.iter_mut().for_each(|f| *f *= each);
    f
}

/// The same devices by numbers from 0 on, and how many there are.
fn numbered(device_of: &[usize]) -> (Vec<usize>, usize) {
    let mut names = device_of.to_vec();
    names.sort_unstable();
    names.dedup();
    (device_of.iter().map(|name| names.partition_point(|n| n < name)).collect(), names.len())
}

/// `Σₑ cₑ Pₑ` for each sequence, c made of the choices of its tokens.
#[derive(Clone, Debug)]
struct Balanced<'a> {
    input: RouteInput<'a>,
    affinity: Affinity,
    values: Vec<f64>,
    /// Tokens of each sequence.
    tokens: Vec<usize>,
    by_tokens: bool,
    /// `∂value/∂p` in each sequence, `[E]`; none where it is left out.
    slopes: Vec<Vec<f64>>,
}

impl<'a> Balanced<'a> {
    /// `coefficients` makes c, `[E]`, of the choices of a sequence's tokens; there is at least one token.
    fn of(
        routed: &Routed<'a>,
        affinity: Affinity,
        coefficients: impl Fn(&mut OfTokens<'_>) -> Vec<f64>,
    ) -> Self {
        let input = routed.input();
        let (mut values, mut tokens_of, mut slopes) = (vec![], vec![], vec![]);
        for range in input.sequences() {
            let (total, tokens) = total_probability(&input, range.clone(), affinity);
            tokens_of.push(tokens);
            if tokens == 0 {
                values.push(0.0);
                slopes.push(vec![]);
                continue;
            }
            let c = coefficients(&mut |visit| {
                present(&input, range.clone()).for_each(|t| visit(&mut routed.plan.requested(t)));
            });
            let c: Vec<f64> = c.into_iter().map(|c| c / tokens as f64).collect();
            values.push(c.iter().zip(&total).map(|(c, p)| c * p).sum());
            slopes.push(c);
        }
        let counted = slopes.iter().filter(|c| !c.is_empty()).count() as f64;
        slopes.iter_mut().flatten().for_each(|c| *c /= counted);
        Self { input, affinity, values, tokens: tokens_of, by_tokens: false, slopes }
    }

    fn weighted_by_tokens(mut self) -> Self {
        if !self.by_tokens {
            let counted = self.slopes.iter().filter(|c| !c.is_empty()).count() as f64;
            let all = self.tokens.iter().sum::<usize>() as f64;
            for (slope, &n) in self.slopes.iter_mut().zip(&self.tokens) {
                slope.iter_mut().for_each(|c| *c *= counted * n as f64 / all);
            }
        }
        Self { by_tokens: true, ..self }
    }

    fn value(&self) -> f64 {
        if self.by_tokens {
            return mean_by_tokens(self.tokens.iter().copied().zip(self.values.iter().copied()));
        }
        let counted = self.values.iter().zip(&self.slopes).filter(|(_, c)| !c.is_empty());
        mean(counted.map(|(v, _)| *v))
    }

    fn gradient(&self) -> Result<Array2<f64>> {
        pull_back(&self.input, self.affinity, |s| &self.slopes[s])
    }
}
