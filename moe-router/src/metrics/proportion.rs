//! A share, as estimated by a sample.

use std::ops::{AddAssign, RangeInclusive};

/// How often something happened among so many occasions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proportion {
    /// Times it happened.
    pub hits: u64,
    /// Occasions.
    pub trials: u64,
}

impl Proportion {
    /// `hits / trials`; 0 without an occasion.
    pub fn rate(&self) -> f64 {
        if self.trials == 0 { 0.0 } else { self.hits as f64 / self.trials as f64 }
    }

    /// The share of occasions on which it did not happen.
    pub fn complement(&self) -> Self {
        Self { hits: self.trials - self.hits, ..*self }
    }

    /// Wilson's score interval for `z` standard deviations: 1.96 for 95 %. All of 0..=1 without an occasion.
    ///
    /// `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`. It supposes independent occasions. Tokens of one text are not: take it as
    /// the least uncertainty there is.
    pub fn interval(&self, z: f64) -> RangeInclusive<f64> {
        if self.trials == 0 {
            return 0.0..=1.0;
        }
        let (p, n) = (self.rate(), self.trials as f64);
        let centre = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        ((centre - half) / scale).max(0.0)..=((centre + half) / scale).min(1.0)
    }

    /// Counts one occasion.
    pub(crate) fn count(&mut self, hit: bool) {
        self.hits += u64::from(hit);
        self.trials += 1;
    }
}

impl AddAssign for Proportion {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.trials += other.trials;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        // 10 of 20 with z = 2: (0.5 + 0.1 ± 2 √(0.0125 + 0.0025)) / 1.2.
        let half = 2.0 * 0.015f64.sqrt() / 1.2;
        let interval = Proportion { hits: 10, trials: 20 }.interval(2.0);
        assert!(
            (interval.start() - (0.5 - half)).abs() < 1e-15 && (interval.end() - (0.5 + half)).abs() < 1e-15
        );
        // None of n: 0 to z²/(n + z²).
        assert_eq!(Proportion { hits: 0, trials: 12 }.interval(2.0), 0.0..=0.25);
        assert_eq!(Proportion { hits: 12, trials: 12 }.interval(2.0), 0.75..=1.0);
        assert_eq!(Proportion::default().interval(1.96), 0.0..=1.0);
        assert_eq!(Proportion { hits: 3, trials: 4 }.complement().rate(), 0.25);
    }
}
