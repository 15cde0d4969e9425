//! Whether reading ahead pays.

use std::time::Duration;

/// Passes of each kind that are compared.
const COMPARED: usize = 16;
/// Passes in which the better kind is kept before both are compared again.
const KEPT: usize = 512;

/// Compares the time of passes that read ahead with that of passes that do not, which take turns: what else the machine does, and
/// how full the cache is, is then the same for both.
#[derive(Debug, Default)]
pub(super) struct Trial {
    without: Vec<Duration>,
    with: Vec<Duration>,
    /// What the last comparison came to.
    pays: Option<bool>,
    /// Passes for which that is kept.
    kept: usize,
}

impl Trial {
    /// Whether the next pass is to read ahead.
    pub(super) fn next(&self) -> bool {
        match self.pays {
            Some(pays) if self.kept > 0 => pays,
            _ => self.with.len() <= self.without.len(),
        }
    }

    /// Takes up what a pass took, which did what [`next`](Self::next) said.
    pub(super) fn passed(&mut self, took: Duration) {
        if self.kept > 0 {
            self.kept -= 1;
            return;
        }
        let times = if self.next() { &mut self.with } else { &mut self.without };
        times.push(took);
        if self.with.len() + self.without.len() == 2 * COMPARED {
            self.pays = Some(middle(&mut self.with) < middle(&mut self.without));
            self.kept = KEPT;
            self.with.clear();
            self.without.clear();
        }
    }

    /// Whether it paid when that was last seen.
    pub(super) fn pays(&self) -> Option<bool> {
        self.pays
    }
}

/// What the middle half of these takes: a machine that is disturbed for a moment decides nothing.
fn middle(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 4..times.len() - times.len() / 4].iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it pays, as passes with it take `with` milliseconds, and those without it `without`.
    fn found(trial: &mut Trial, with: u64, without: u64) -> bool {
        for n in 0..2 * COMPARED as u64 {
            // One in eight takes far longer, whatever it does.
            let noise = if n % 8 < 2 { 1000 - 100 * u64::from(trial.next()) } else { n / 2 };
            let took = noise + if trial.next() { with } else { without };
            trial.passed(Duration::from_millis(took));
        }
        trial.pays().unwrap()
    }

    #[test]
    fn the_faster_kind_is_kept_and_then_tried_again() {
        let mut trial = Trial::default();
        assert!(trial.next() && trial.pays().is_none());
        assert!(!found(&mut trial, 20, 10));
        for _ in 0..KEPT {
            assert!(!trial.next());
            trial.passed(Duration::ZERO);
        }
        assert!(trial.next(), "both are tried again");
        assert!(found(&mut trial, 10, 20) && trial.next());
    }
}
