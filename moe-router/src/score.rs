//! How suited an expert is, and how the scores of the chosen become weights.

use moe_core::{Error, Result, numerics};
use ndarray::{ArrayView1, ArrayViewMut2};

/// The score sₑ of an expert, made of the token's logits l.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Score {
    /// `sₑ = lₑ`.
    Logit,
    /// `sₑ = exp(lₑ) / Σ exp(l)` over all experts.
    Softmax,
    /// `sₑ = 1 / (1 + exp(-lₑ))`.
    Sigmoid,
    /// `sₑ = √ln(1 + exp(lₑ))`, the square root of softplus.
    SqrtSoftplus,
}

impl Score {
    /// Turns the logits of one token, `[E]`, into its scores.
    ///
    /// Under [`Softmax`](Self::Softmax) a NaN or a positive infinity makes all scores NaN; otherwise NaN stays where it is.
    pub fn apply(self, logits: &mut [f32]) {
        match self {
            Self::Logit => {}
            Self::Softmax => numerics::softmax(logits),
            Self::Sigmoid => logits.iter_mut().for_each(|l| *l = numerics::sigmoid(*l)),
            Self::SqrtSoftplus => logits.iter_mut().for_each(|l| *l = numerics::softplus(*l).sqrt()),
        }
    }
}

impl Score {
    /// The scores of all tokens, `[T, E]`, as a router gives them to priorities; softmax where the score is the logit.
    pub(crate) fn apply_to_rows(self, mut logits: ArrayViewMut2<'_, f32>) {
        let score = if self == Self::Logit { Self::Softmax } else { self };
        for mut row in logits.rows_mut() {
            match row.as_slice_mut() {
                Some(row) => score.apply(row),
                None => {
                    let mut scores = row.to_vec();
                    score.apply(&mut scores);
                    row.assign(&ArrayView1::from(&scores));
                }
            }
        }
    }
}

/// What the scores s of a token's chosen experts are divided by, to become weights.
///
/// Sums run over the chosen, best first, in the order of [`numerics::sum`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Normalizer {
    /// By nothing: `wₑ = sₑ`.
    None,
    /// `wₑ = exp(sₑ) / Σ exp(s)`, meant for scores that are logits.
    Softmax,
    /// `wₑ = sₑ / (Σ s + epsilon)`.
    ///
    /// Scores that are all zero give weight 0, but NaN if `epsilon` is 0.
    Sum {
        /// Not negative; f32 absorbs a small one unless all scores are tiny.
        epsilon: f32,
    },
    /// `wₑ = sₑ / max(Σ s, floor)`.
    SumAtLeast {
        /// Not negative; 0 is no floor.
        floor: f32,
    },
    /// `wₑ = sₑ / (Σ |s|ᵖ)^(1/p)`, so that the weights have p-norm 1; the largest |s| for an infinite p.
    ///
    /// Computed as `m · (Σ |s/m|ᵖ)^(1/p)` with m the largest |s|, so that no power underflows. Scores that are all zero give NaN.
    Norm {
        /// Above 0.
        p: f32,
    },
}

impl Normalizer {
    /// Checks the setting.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `epsilon` or `floor` is negative or not finite, or `p` is not above 0.
    pub fn check(self) -> Result<()> {
        let (setting, expected, ok, found) = match self {
            Self::None | Self::Softmax => return Ok(()),
            Self::Sum { epsilon: e } => ("sum epsilon", "a finite number, not negative", is_floor(e), e),
            Self::SumAtLeast { floor: f } => ("sum floor", "a finite number, not negative", is_floor(f), f),
            Self::Norm { p } => ("norm p", "a number above 0", p > 0.0, p),
        };
        if ok {
            return Ok(());
        }
        Err(Error::Router { setting, expected: expected.into(), found: found.to_string() })
    }

    /// Turns the scores of the chosen, `[k]` by rank, into weights.
    pub fn apply(self, scores: &mut [f32]) {
        let divisor = match self {
            Self::None => return,
            Self::Softmax => return numerics::softmax(scores),
            Self::Sum { epsilon } => numerics::sum(scores) + epsilon,
            Self::SumAtLeast { floor } => {
                let sum = numerics::sum(scores);
                // Written so that NaN stays.
                if sum < floor { floor } else { sum }
            }
            Self::Norm { p } => norm(scores, p),
        };
        scores.iter_mut().for_each(|s| *s /= divisor);
    }
}

fn is_floor(v: f32) -> bool {
    v.is_finite() && v >= 0.0
}

/// The p-norm, `(Σ |s|ᵖ)^(1/p)`.
fn norm(scores: &[f32], p: f32) -> f32 {
    let largest = scores.iter().fold(0.0f32, |m, s| if s.abs() > m { s.abs() } else { m });
    if p == f32::INFINITY || largest == 0.0 {
        return largest;
    }
    let power = |s: &f32| {
        let share = s.abs() / largest;
        match p {
            1.0 => share,
            2.0 => share * share,
            _ => numerics::exp(p * numerics::ln(share)),
        }
    };
    let sum: f32 = scores.iter().map(power).sum();
    let root = match p {
        1.0 => sum,
        2.0 => sum.sqrt(),
        _ => numerics::exp(numerics::ln(sum) / p),
    };
    largest * root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized(normalizer: Normalizer, scores: [f32; 3]) -> [f32; 3] {
        let mut weights = scores;
        normalizer.apply(&mut weights);
        weights
    }

    #[test]
    fn scores_of_zero_and_of_the_far_ends() {
        let of = |score: Score| {
            let mut logits = [0.0, 1e4, -1e4];
            score.apply(&mut logits);
            logits
        };
        assert_eq!(of(Score::Logit), [0.0, 1e4, -1e4]);
        assert_eq!(of(Score::Softmax), [0.0, 1.0, 0.0]);
        assert_eq!(of(Score::Sigmoid), [0.5, 1.0, 0.0]);
        assert_eq!(of(Score::SqrtSoftplus), [2f32.ln().sqrt(), 100.0, 0.0]);
    }

    #[test]
    fn divisors() {
        let scores = [0.5, 0.25, 0.25];
        assert_eq!(normalized(Normalizer::None, scores), scores);
        assert_eq!(normalized(Normalizer::Sum { epsilon: 1.0 }, scores), [0.25, 0.125, 0.125]);
        assert_eq!(normalized(Normalizer::SumAtLeast { floor: 2.0 }, scores), [0.25, 0.125, 0.125]);
        assert_eq!(normalized(Normalizer::SumAtLeast { floor: 0.5 }, scores), scores);
        assert_eq!(normalized(Normalizer::Norm { p: f32::INFINITY }, scores), [1.0, 0.5, 0.5]);
        assert_eq!(
            normalized(Normalizer::Norm { p: 2.0 }, [2e-30, 1e-30, 2e-30]),
            [2.0 / 3.0, 1.0 / 3.0, 2.0 / 3.0]
        );
        assert_eq!(normalized(Normalizer::Softmax, [1.0; 3]), [1.0 / 3.0; 3]);
    }

    #[test]
    fn zeros_are_zero_or_nan_as_documented() {
        for normalizer in [Normalizer::Sum { epsilon: 1e-20 }, Normalizer::SumAtLeast { floor: 1e-12 }] {
            assert_eq!(normalized(normalizer, [0.0; 3]), [0.0; 3]);
        }
        for normalizer in [Normalizer::Sum { epsilon: 0.0 }, Normalizer::Norm { p: 3.0 }] {
            assert!(normalized(normalizer, [0.0; 3]).iter().all(|w| w.is_nan()));
        }
    }

    /// The powers are off by little: `p ln(share)` rounds to within |p ln(share)|·2⁻²³, which changes a power t ≤ 1 by at most
    /// |t ln t|·2⁻²³ ≤ 2⁻²³/e; ln and exp add an ulp each; the root divides the logarithm's error by p, or shrinks ours k-fold.
    #[test]
    fn p_norms_against_f64() {
        const BOUND: f64 = 12.0 / (1 << 24) as f64;
        for p in [0.5, 1.0, 1.5, 2.0, 3.0, 7.5, 40.0] {
            for (i, scores) in (0..200).map(|i| (i, [0.9, 0.9 / (1.0 + i as f32), 1e-3 * i as f32])) {
                let exact: f64 = scores.iter().map(|&s| f64::from(s).powf(f64::from(p))).sum();
                let exact = exact.powf(1.0 / f64::from(p));
                let off = (f64::from(norm(&scores, p)) / exact - 1.0).abs();
                assert!(off <= BOUND, "p {p}, case {i}: {off:e}");
            }
        }
    }

    #[test]
    fn settings_that_cannot_work() {
        for wrong in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(Normalizer::Sum { epsilon: wrong }.check().is_err());
            assert!(Normalizer::SumAtLeast { floor: wrong }.check().is_err());
        }
        for wrong in [0.0, -2.0, f32::NAN] {
            assert!(Normalizer::Norm { p: wrong }.check().is_err());
        }
        let message = Normalizer::Norm { p: 0.0 }.check().unwrap_err().to_string();
        assert_eq!(message, "router: norm p: expected a number above 0, found 0");
        assert!(Normalizer::Norm { p: f32::INFINITY }.check().is_ok());
    }
}
