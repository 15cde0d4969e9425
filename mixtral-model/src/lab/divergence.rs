//! How far predictions are from those of a baseline.

use moe_core::memory;

use crate::Result;
use crate::perplexity::log_sum_exp;

/// Natural logarithms of the probabilities that logits `[V]` are, in f64, in a buffer.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub(crate) fn log_probabilities(logits: &[f32], into: &mut Vec<f64>) -> Result<()> {
    let total = log_sum_exp(logits);
    memory::refill_from(
        into,
        logits.len(),
        logits.iter().map(|&l| f64::from(l) - total),
        "log-probabilities",
    )?;
    Ok(())
}

/// One predicted token under two sets of predictions.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Difference {
    /// Kullback-Leibler divergence of what was found from the baseline, `Σ p · (ln p - ln q)` over the vocabulary with p the baseline's
    /// probabilities and q those found, in nats.
    pub kl: f64,
    /// Whether both have the same most likely token; of several equals, the one with the lowest id counts.
    pub same_top: bool,
    /// Probability found of the token that came, less the baseline's.
    pub p_difference: f64,
    /// Negative log-likelihood of the token that came, in nats.
    pub nll: f64,
    /// The baseline's.
    pub baseline_nll: f64,
}

impl Difference {
    /// Compares log-probabilities `[V]` of both for the token that came.
    ///
    /// Terms are added in the order of the vocabulary; those whose baseline log-probability is `floor` or less are left out: negative
    /// infinity, or what a file does not tell apart.
    ///
    /// # Panics
    ///
    /// If the token is not below V.
    #[track_caller]
    pub fn between(baseline: &[f64], found: &[f64], token: u32, floor: f64) -> Self {
        let mut kl = 0.0;
        for (&p, &q) in baseline.iter().zip(found) {
            if p > floor {
                kl += libm::exp(p) * (p - q);
            }
        }
        let (p, q) = (baseline[token as usize], found[token as usize]);
        Self {
            kl,
            same_top: top(baseline) == top(found),
            p_difference: libm::exp(q) - libm::exp(p),
            nll: -q,
            baseline_nll: -p,
        }
    }
}

/// The first of the greatest.
fn top(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// Differences of all predicted tokens of a text.
///
/// Sums are exact to rounding. Of the values themselves 8 bytes a token are kept, for percentiles.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    kl: Vec<f32>,
    p_difference: Vec<f32>,
    same_top: usize,
    sums: Sums,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    kl: [f64; 2],
    nll: [f64; 2],
    baseline: [f64; 2],
    product: f64,
    p: [f64; 2],
    p4: f64,
}

/// A mean and its standard error, from the variance over tokens as if they were independent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error; 0 for ten values or less.
    pub error: f64,
}

impl Estimate {
    fn of([sum, squares]: [f64; 2], count: usize) -> Self {
        let n = count as f64;
        let mean = sum / n;
        let variance = squares / n - mean * mean;
        let error = if count > 10 && variance > 0.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
        Self { mean, error }
    }
}

impl Divergence {
    /// Of no tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn add(&mut self, difference: &Difference) -> Result<()> {
        memory::reserve(&mut self.kl, 1, "divergences")?;
        memory::reserve(&mut self.p_difference, 1, "divergences")?;
        let Difference { kl, same_top, p_difference, nll, baseline_nll } = *difference;
        self.kl.push(kl as f32);
        self.p_difference.push(p_difference as f32);
        self.same_top += usize::from(same_top);
        let add = |sums: &mut [f64; 2], value: f64| {
            sums[0] += value;
            sums[1] += value * value;
        };
        add(&mut self.sums.kl, kl);
        add(&mut self.sums.nll, nll);
        add(&mut self.sums.baseline, baseline_nll);
        add(&mut self.sums.p, p_difference);
        self.sums.product += nll * baseline_nll;
        self.sums.p4 += p_difference.powi(4);
        Ok(())
    }

    /// Number of tokens.
    pub fn count(&self) -> usize {
        self.kl.len()
    }

    /// Mean divergence.
    pub fn kl(&self) -> Estimate {
        Estimate::of(self.sums.kl, self.count())
    }

    /// Mean negative log-likelihood.
    pub fn nll(&self) -> Estimate {
        Estimate::of(self.sums.nll, self.count())
    }

    /// The baseline's.
    pub fn baseline_nll(&self) -> Estimate {
        Estimate::of(self.sums.baseline, self.count())
    }

    /// Mean of the difference of negative log-likelihoods, which is ln of the ratio of perplexities. Its error is that of the difference: both
    /// are high on the same tokens.
    pub fn nll_difference(&self) -> Estimate {
        let (found, baseline) = (self.nll(), self.baseline_nll());
        let variance = found.error.powi(2) + baseline.error.powi(2) - 2.0 * self.covariance();
        Estimate { mean: found.mean - baseline.mean, error: variance.max(0.0).sqrt() }
    }

    /// Correlation of the two negative log-likelihoods over tokens.
    pub fn correlation(&self) -> f64 {
        self.covariance() / (self.nll().error * self.baseline_nll().error)
    }

    /// Of the two means.
    fn covariance(&self) -> f64 {
        let n = self.count() as f64;
        if self.count() < 10 {
            return 0.0;
        }
        let (found, baseline) = (self.sums.nll[0] / n, self.sums.baseline[0] / n);
        (self.sums.product / n - found * baseline) / (n - 1.0)
    }

    /// Share of tokens with the same most likely token.
    pub fn same_top(&self) -> Estimate {
        let n = self.count() as f64;
        let mean = self.same_top as f64 / n;
        let error = if self.count() > 10 { (mean * (1.0 - mean) / (n - 1.0)).sqrt() } else { 0.0 };
        Estimate { mean, error }
    }

    /// Mean difference of probabilities of the tokens that came.
    pub fn p_difference(&self) -> Estimate {
        Estimate::of(self.sums.p, self.count())
    }

    /// Root mean square of the same.
    pub fn p_difference_rms(&self) -> Estimate {
        let squares = Estimate::of([self.sums.p[1], self.sums.p4], self.count());
        let mean = squares.mean.sqrt();
        Estimate { mean, error: if mean > 0.0 { 0.5 / mean * squares.error } else { 0.0 } }
    }

    /// The values of [`kl`](Self::kl) and of [`p_difference`](Self::p_difference), ascending.
    pub fn sorted(mut self) -> (Percentiles, Percentiles) {
        self.kl.sort_by(f32::total_cmp);
        self.p_difference.sort_by(f32::total_cmp);
        (Percentiles(self.kl), Percentiles(self.p_difference))
    }
}

/// Values in ascending order.
#[derive(Clone, Debug)]
pub struct Percentiles(Vec<f32>);

impl Percentiles {
    /// The value below which a fraction of all lies, between two of them in proportion; NaN where there are none.
    pub fn at(&self, fraction: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        let place = fraction.clamp(0.0, 1.0) * last as f64;
        let below = place as usize;
        let (a, b) = (f64::from(self.0[below]), f64::from(self.0[(below + 1).min(last)]));
        let part = place - below as f64;
        (1.0 - part) * a + part * b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let (mut p, mut q) = (Vec::new(), Vec::new());
        log_probabilities(&[0.0, 0.0], &mut p).unwrap();
        log_probabilities(&[3f32.ln(), 0.0], &mut q).unwrap();
        let half = 0.5f64.ln();
        assert!(p.iter().all(|p| (p - half).abs() < 1e-15));
        let found = Difference::between(&p, &q, 1, f64::NEG_INFINITY);
        // ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4/3).
        assert!((found.kl - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-7);
        assert!((found.p_difference + 0.25).abs() < 1e-7 && (found.nll - 4f64.ln()).abs() < 1e-7);
        // Equal logits: the first is the top of both.
        assert!(found.same_top);
        assert!(!Difference::between(&q, &[half, -0.1], 0, f64::NEG_INFINITY).same_top);
        assert_eq!(Difference::between(&p, &p, 0, f64::NEG_INFINITY).kl, 0.0);
        assert_eq!(Difference::between(&p, &q, 0, half).kl, 0.0, "below the floor");
        let impossible = [0.0, f64::NEG_INFINITY];
        assert_eq!(Difference::between(&impossible, &impossible, 0, f64::NEG_INFINITY).kl, 0.0);

        let mut all = Divergence::new();
        for kl in [4.0, 1.0, 2.0, 3.0] {
            let nll = kl + 1.0;
            all.add(&Difference { kl, same_top: kl > 1.0, p_difference: 0.5, nll, baseline_nll: 1.0 })
                .unwrap();
        }
        assert_eq!((all.count(), all.kl().mean, all.same_top().mean), (4, 2.5, 0.75));
        assert_eq!((all.nll_difference().mean, all.p_difference_rms().mean), (2.5, 0.5));
        let (kl, _) = all.sorted();
        assert_eq!([0.0, 0.5, 1.0, 0.1].map(|f| (kl.at(f) * 1e6).round() / 1e6), [1.0, 2.5, 4.0, 1.3]);
        assert!(Divergence::new().sorted().0.at(0.5).is_nan());
    }

    #[test]
    fn errors_are_those_of_means() {
        let values: Vec<f64> = (0..100).map(|n| ((n * 37) % 101) as f64 / 10.0).collect();
        let mut all = Divergence::new();
        for &value in &values {
            let baseline_nll = 0.5 * value + 1.0;
            let kl = value;
            all.add(&Difference { kl, same_top: true, p_difference: 0.0, nll: value, baseline_nll }).unwrap();
        }
        let mean = values.iter().sum::<f64>() / 100.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 100.0;
        let error = (variance / 99.0).sqrt();
        assert!((all.nll().error - error).abs() < 1e-12);
        assert!((all.correlation() - 1.0).abs() < 1e-9);
        // The difference is half of the value, less 1.
        assert!((all.nll_difference().error - error / 2.0).abs() < 1e-9);
    }
}
