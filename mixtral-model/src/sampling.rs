//! Choosing the next token from logits.

use moe_core::numerics;

use crate::{Error, Result};

/// How a token is drawn. The steps come in this order, as in Hugging Face: repetition penalty, temperature, top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// What logits are divided by; 0 is greedy: the largest logit, ties to the lower id, whatever the limits below.
    pub temperature: f32,
    /// Only the k most probable tokens; `None` is all.
    pub top_k: Option<usize>,
    /// Only the most probable tokens whose probabilities reach this sum, at least one; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable; 0 is all.
    pub min_p: f32,
    /// Positive logits of tokens that occurred are divided by this, negative ones multiplied (Keskar et al., 1909.05858); 1 is none.
    pub repetition_penalty: f32,
    /// Seed of the draws. A draw is a function of seed and position.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Greedy choice.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// `Ok` where every setting means something.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let check = |setting, ok: bool, expected: &str, found: String| {
            if ok { Ok(()) } else { Err(Error::Setting { setting, expected: expected.into(), found }) }
        };
        let Self { temperature, top_k, top_p, min_p, repetition_penalty: penalty, .. } = *self;
        check(
            "temperature",
            temperature.is_finite() && temperature >= 0.0,
            "0 or more",
            temperature.to_string(),
        )?;
        check("top-k", top_k != Some(0), "1 or more", "0".into())?;
        check("top-p", top_p > 0.0 && top_p <= 1.0, "more than 0, at most 1", top_p.to_string())?;
        check("min-p", (0.0..=1.0).contains(&min_p), "0 to 1", min_p.to_string())?;
        check("repetition penalty", penalty.is_finite() && penalty > 0.0, "more than 0", penalty.to_string())
    }
}

/// Draws tokens; keeps its memory between draws.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    scores: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    score: f32,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    ///
    /// Those of [`Sampling::check`].
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        Ok(Self { sampling, scores: Vec::new(), candidates: Vec::new() })
    }

    /// The settings.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Chooses the token at `position` from its logits, `[V]`, given the tokens before it.
    ///
    /// The result is a function of the arguments and the settings: sampling again gives the same token.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] if no logit is finite or one is NaN or positive infinity.
    pub fn sample(&mut self, logits: &[f32], before: &[u32], position: usize) -> Result<u32> {
        let bad = logits.iter().find(|v| v.is_nan() || **v == f32::INFINITY);
        if bad.is_some() || !logits.iter().any(|v| v.is_finite()) {
            let value = bad.copied().unwrap_or(f32::NEG_INFINITY);
            return Err(Error::NotFinite { layer: None, stage: "sampling", token: 0, value });
        }
        let Sampling { temperature, repetition_penalty: penalty, .. } = self.sampling;
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        if penalty != 1.0 {
            for &token in before {
                // Taken from the logits, so that a token that occurs twice is not punished twice.
                let Some(&v) = logits.get(token as usize) else { continue };
                let punished = if v > 0.0 { v / penalty } else { v * penalty };
                self.scores[token as usize] = punished.clamp(f32::MIN, f32::MAX);
            }
        }
        if temperature == 0.0 {
            return Ok(argmax(&self.scores));
        }
        // Relative to the best, which stays finite at any temperature.
        let top = numerics::max(&self.scores);
        self.scores.iter_mut().for_each(|v| *v = (*v - top) / temperature);
        Ok(self.draw(position))
    }

    /// Draws from the softmax of the scores that the limits leave; the best score is 0.
    fn draw(&mut self, position: usize) -> u32 {
        let Self { sampling, scores, candidates } = self;
        candidates.clear();
        candidates.extend((0..).zip(scores.iter()).map(|(token, &score)| Candidate { token, score }));
        let better = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score).then(a.token.cmp(&b.token));
        if let Some(k) = sampling.top_k
            && k < candidates.len()
        {
            candidates.select_nth_unstable_by(k - 1, better);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(better);
        let probability = |c: &Candidate| numerics::exp(c.score);
        if sampling.top_p < 1.0 {
            let total: f32 = candidates.iter().map(probability).sum();
            let mut reached = 0.0;
            let enough = candidates.iter().position(|c| {
                reached += probability(c);
                reached >= sampling.top_p * total
            });
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
        }
        let likely = candidates.iter().take_while(|c| probability(c) >= sampling.min_p).count();
        candidates.truncate(likely.max(1));

        let total: f32 = candidates.iter().map(probability).sum();
        let target = numerics::uniform(sampling.seed, &[position as u64]) * total;
        let mut reached = 0.0;
        let drawn = candidates.iter().find(|c| {
            reached += probability(c);
            reached > target
        });
        drawn.unwrap_or(&candidates[0]).token
    }
}

/// Index of the largest value; ties go to the lower, NaN is passed over.
pub fn argmax(values: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &v) in (0..).zip(values) {
        if v > best.1 {
            best = (i, v);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], before: &[u32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0; logits.len()];
        for position in 0..4000 {
            counts[sampler.sample(logits, before, position).unwrap() as usize] += 1;
        }
        counts
    }

    fn at(temperature: f32) -> Sampling {
        Sampling { temperature, ..Sampling::default() }
    }

    /// Logits of the probabilities 0.4, 0.3, 0.2, 0.1, not in order.
    fn logits() -> [f32; 4] {
        [0.2f32.ln(), 0.4f32.ln(), 0.1f32.ln(), 0.3f32.ln()]
    }

    #[test]
    fn frequencies_are_probabilities() {
        // Five standard deviations of a binomial of 4000 are at most 158.
        let close = |counts: &[usize], p: [f32; 4]| {
            counts.iter().zip(p).all(|(&n, p)| (n as f32 - 4000.0 * p).abs() < 158.0)
        };
        let all = draws(at(1.0), &logits(), &[]);
        assert!(close(&all, [0.2, 0.4, 0.1, 0.3]), "{all:?}");
        let cool = draws(at(0.5), &logits(), &[]);
        let s = 0.04 + 0.16 + 0.01 + 0.09;
        assert!(close(&cool, [0.04 / s, 0.16 / s, 0.01 / s, 0.09 / s]), "{cool:?}");
    }

    #[test]
    fn limits_leave_the_right_tokens() {
        let left = |sampling: Sampling| -> Vec<usize> {
            let counts = draws(sampling, &logits(), &[]);
            (0..4).filter(|&i| counts[i] > 0).collect()
        };
        assert_eq!(left(Sampling { top_k: Some(2), ..at(1.0) }), [1, 3]);
        assert_eq!(left(Sampling { top_k: Some(9), ..at(1.0) }), [0, 1, 2, 3]);
        assert_eq!(left(Sampling { top_p: 0.69, ..at(1.0) }), [1, 3]);
        assert_eq!(left(Sampling { top_p: 0.71, ..at(1.0) }), [0, 1, 3]);
        assert_eq!(left(Sampling { top_p: 1e-9, ..at(1.0) }), [1]);
        assert_eq!(left(Sampling { min_p: 0.6, ..at(1.0) }), [1, 3]);
        assert_eq!(left(Sampling { min_p: 1.0, ..at(1.0) }), [1]);
        assert_eq!(left(at(0.0)), [1]);
        assert_eq!(left(at(1e-40)), [1]);
    }

    #[test]
    fn repetition_counts_once() {
        let mut greedy = Sampler::new(Sampling { repetition_penalty: 2.0, ..at(0.0) }).unwrap();
        assert_eq!(greedy.sample(&[3.0, 2.0, -1.0], &[], 0).unwrap(), 0);
        assert_eq!(greedy.sample(&[3.0, 2.0, -1.0], &[0], 0).unwrap(), 1);
        assert_eq!(greedy.sample(&[3.0, 1.4, -1.0], &[0, 0, 0], 0).unwrap(), 0);
        assert_eq!(greedy.sample(&[-1.0, -1.5], &[0, 77], 0).unwrap(), 1);
        // Beyond any float there is still an order.
        let mut extreme = Sampler::new(Sampling { repetition_penalty: 1e-38, ..at(1.0) }).unwrap();
        assert_eq!(extreme.sample(&[3e38, 1.0, 2.0], &[0], 0).unwrap(), 0);
        let mut harsh = Sampler::new(Sampling { repetition_penalty: 10.0, ..at(1.0) }).unwrap();
        assert_eq!(harsh.sample(&[-3e38, 1.0], &[0], 0).unwrap(), 1);
    }

    #[test]
    fn ties_extremes_and_nonsense() {
        let mut greedy = Sampler::new(Sampling::greedy()).unwrap();
        assert_eq!(greedy.sample(&[1.0, 5.0, 5.0], &[], 0).unwrap(), 1);
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -3.0], &[], 0).unwrap(), 1);
        for bad in [vec![], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0], vec![f32::NEG_INFINITY; 3]] {
            assert!(greedy.sample(&bad, &[], 0).is_err(), "{bad:?}");
        }
        for bad in [
            at(f32::NAN),
            at(-1.0),
            at(f32::INFINITY),
            Sampling { top_p: 0.0, ..at(1.0) },
            Sampling { top_p: f32::NAN, ..at(1.0) },
            Sampling { min_p: -0.1, ..at(1.0) },
            Sampling { top_k: Some(0), ..at(1.0) },
            Sampling { repetition_penalty: 0.0, ..at(1.0) },
        ] {
            assert!(Sampler::new(bad).is_err(), "{bad:?}");
        }
    }
}
