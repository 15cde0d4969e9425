//! The balance losses of the DeepSeek models.

use std::ops::Range;

use moe_core::{Result, Routed};
use ndarray::Array2;

pub use super::groups::Affinity;
use super::groups::{count, counted, mean, mean_by_tokens, pull_back, total_probability};
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
        Self(Balanced { routed: *routed, affinity, sharing: Sharing::Experts, by_tokens: false })
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
                Self(Balanced { by_tokens: true, ..self.0 })
            }

            /// The loss of each sequence; 0 where it has no tokens or no choices.
            pub fn per_sequence(&self) -> impl Iterator<Item = f64> {
                self.0.values().map(|(_, value)| value)
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
        let sharing = Sharing::Devices(numbered(device_of));
        Self(Balanced { routed: *routed, affinity, sharing, by_tokens: false })
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
        let sharing = Sharing::Sent(numbered(device_of), most_devices);
        Self(Balanced { routed: *routed, affinity, sharing, by_tokens: false })
    }
}

/// The device of each expert, by numbers from 0 on, and how many there are.
#[derive(Clone, Debug)]
struct Devices {
    of_expert: Vec<usize>,
    count: usize,
}

fn numbered(device_of: &[usize]) -> Devices {
    let mut names = device_of.to_vec();
    names.sort_unstable();
    names.dedup();
    let of_expert = device_of.iter().map(|name| names.partition_point(|n| n < name)).collect();
    Devices { of_expert, count: names.len() }
}

/// What the choices of a sequence are to the loss.
#[derive(Clone, Debug)]
enum Sharing {
    Experts,
    Devices(Devices),
    /// With the most devices that a token goes to.
    Sent(Devices, usize),
}

/// `Σₑ cₑ Pₑ` for each sequence, c made of the choices of its tokens. Of sequences there may be as many as tokens: nothing is kept
/// of them.
#[derive(Clone, Debug)]
struct Balanced<'a> {
    routed: Routed<'a>,
    affinity: Affinity,
    sharing: Sharing,
    by_tokens: bool,
}

impl Balanced<'_> {
    /// The tokens of each sequence, and its loss.
    fn values(&self) -> impl Iterator<Item = (usize, f64)> {
        let input = self.routed.input();
        input.sequences().map(move |range| {
            let (total, tokens) = total_probability(&input, range.clone(), self.affinity);
            if tokens == 0 {
                return (0, 0.0);
            }
            let c = self.coefficients(range, tokens);
            (tokens, c.iter().zip(&total).map(|(c, p)| c * p).sum())
        })
    }

    fn value(&self) -> f64 {
        if self.by_tokens {
            return mean_by_tokens(self.values());
        }
        mean(self.values().filter(|(tokens, _)| *tokens > 0).map(|(_, value)| value))
    }

    fn gradient(&self) -> Result<Array2<f64>> {
        let input = self.routed.input();
        let (counted, all) = (counted(&input), count(&input, 0..input.tokens()));
        let slopes = input.sequences().filter_map(|range| {
            let tokens = count(&input, range.clone());
            let share = if self.by_tokens { tokens as f64 / all as f64 } else { 1.0 / counted as f64 };
            let slope = |c: f64| c * share;
            (tokens > 0)
                .then(|| (range.clone(), self.coefficients(range, tokens).into_iter().map(slope).collect()))
        });
        pull_back(&input, self.affinity, slopes)
    }

    /// `cₑ / n`, `[E]`, of the choices of a sequence's n tokens, of which there is one or more.
    fn coefficients(&self, range: Range<usize>, tokens: usize) -> Vec<f64> {
        let n = tokens as f64;
        let c = match &self.sharing {
            Sharing::Experts => self.shares(range),
            Sharing::Devices(Devices { of_expert, count }) => {
                // Σᵢ f'ᵢ P'ᵢ = Σₑ f'(device of e) Pₑ.
                let (mut sums, mut sizes) = (vec![0.0; *count], vec![0.0; *count]);
                for (&device, f) in of_expert.iter().zip(self.shares(range)) {
                    sums[device] += f;
                    sizes[device] += 1.0;
                }
                of_expert.iter().map(|&device| sums[device] / sizes[device]).collect()
            }
            Sharing::Sent(Devices { of_expert, count }, most) => {
                let (mut sent, mut last) = (vec![0.0; *count], vec![None; *count]);
                for t in present(&self.routed.input(), range) {
                    for e in self.routed.plan.requested(t) {
                        let device = of_expert[e];
                        if last[device] != Some(t) {
                            (last[device], sent[device]) = (Some(t), sent[device] + 1.0);
                        }
                    }
                }
                let each = *count as f64 / (*most as f64 * n);
                of_expert.iter().map(|&device| each * sent[device]).collect()
            }
        };
        c.into_iter().map(|c| c / n).collect()
    }

    /// `fₑ = E / (k n) · choices of e`, of the choices of each token; zeros where there are none.
    fn shares(&self, range: Range<usize>) -> Vec<f64> {
        let input = self.routed.input();
        let mut f = vec![0.0; input.experts()];
        present(&input, range).for_each(|t| self.routed.plan.requested(t).for_each(|e| f[e] += 1.0));
        let all: f64 = f.iter().sum();
        let each = if all == 0.0 { 0.0 } else { input.experts() as f64 / all };
        f.iter_mut().for_each(|f| *f *= each);
        f
    }
}
