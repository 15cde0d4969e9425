//! Choosing the next token from logits: [`rules`] change them, [`limits`] say which are left to draw from.

mod limits;
mod rules;
mod setters;
#[cfg(test)]
mod tests;

use moe_core::numerics;

use crate::{Error, Result};
use limits::Candidate;
use rules::Bias;

pub use rules::{Length, LengthDecay, Rules};

/// How a token is chosen.
///
/// The steps come in this order, as in Transformers 5:
///
/// 1. what changes logits: biases, repetition penalty, and then the other [`Rules`] in the order of their fields;
/// 2. if greedy, the largest; otherwise what limits the tokens to draw from: temperature, top-k, top-p, min-p, typical-p,
///    epsilon, eta. Each works on the probabilities of the tokens that those before it have left.
///
/// ```
/// use mixtral_model::{Rules, Sampling};
///
/// let rules = Rules::default().with_no_repeat_ngram(3);
/// let sampling = Sampling::greedy().with_temperature(0.7)?.with_top_k(40)?.with_top_p(0.95)?.with_rules(rules)?.with_seed(7);
/// assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (0.7, Some(40), 7));
/// assert!(sampling.with_min_p(1.5).is_err());
/// # Ok::<(), mixtral_model::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// What logits are divided by; 0 is greedy: the largest logit, ties to the lower id, whatever the limits below.
    pub temperature: f32,
    /// Only the k most probable tokens, and those as probable as the last of them; `None` is all.
    pub top_k: Option<usize>,
    /// Only the most probable tokens whose probabilities reach this sum, at least one; 1 is all.
    pub top_p: f32,
    /// Only tokens at least this share as probable as the most probable; 0 is all.
    pub min_p: f32,
    /// Only the tokens whose information is nearest to the expected one and whose probabilities reach this sum (Meister et al.,
    /// 2202.00666); 1 is all.
    pub typical_p: f32,
    /// Only tokens at least this probable, and the most probable one; 0 is all.
    pub epsilon_cutoff: f32,
    /// Only tokens at least as probable as the lesser of this and its root times exp(-entropy), and the most probable one (Hewitt
    /// et al., 2210.15191); 0 is all.
    pub eta_cutoff: f32,
    /// Positive logits of tokens that occurred are divided by this, negative ones multiplied (Keskar et al., 1909.05858); 1 is none.
    pub repetition_penalty: f32,
    /// What else is done to logits.
    pub rules: Rules,
    /// Seed of the draws. A draw is a function of seed and position.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            rules: Rules::default(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Greedy choice.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// The same, with these biases added to the logits of tokens; negative infinity is never.
    /// [`check`](Self::check) sees to them.
    pub fn with_logit_bias(mut self, biases: impl IntoIterator<Item = (u32, f32)>) -> Self {
        self.rules.biases.extend(biases.into_iter().map(|(token, bias)| (vec![token], bias)));
        self
    }

    /// `Ok` where every setting means something.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<()> {
        let check = |setting, ok: bool, expected: &str, found: f32| {
            if ok { Ok(()) } else { Err(setting_error(setting, expected, found)) }
        };
        let share = |setting, value: f32| {
            check(setting, value > 0.0 && value <= 1.0, "more than 0, at most 1", value)
        };
        let cutoff = |setting, value: f32| {
            check(setting, (0.0..1.0).contains(&value), "0 or more, less than 1", value)
        };
        let (temperature, penalty) = (self.temperature, self.repetition_penalty);
        check("temperature", temperature.is_finite() && temperature >= 0.0, "0 or more", temperature)?;
        check("top-k", self.top_k != Some(0), "1 or more", 0.0)?;
        share("top-p", self.top_p)?;
        check("min-p", (0.0..=1.0).contains(&self.min_p), "0 to 1", self.min_p)?;
        share("typical-p", self.typical_p)?;
        cutoff("epsilon cutoff", self.epsilon_cutoff)?;
        cutoff("eta cutoff", self.eta_cutoff)?;
        check("repetition penalty", penalty.is_finite() && penalty > 0.0, "more than 0", penalty)?;
        self.rules.check()
    }
}

fn setting_error(setting: &'static str, expected: impl Into<String>, found: impl ToString) -> Error {
    Error::Setting { setting, expected: expected.into(), found: found.to_string() }
}

/// The positions of a sequence that a generation fills, and what ends it: what [`Rules`] that count tokens go by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Position of the first token that is drawn: the length of the prompt.
    pub begin: usize,
    /// The position after the last one that may be drawn; `None` is no limit.
    pub end: Option<usize>,
    /// Tokens that end the generation.
    pub stop: Vec<u32>,
}

/// Draws tokens; keeps its memory between draws.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    biases: Vec<Bias>,
    span: Span,
    scores: Vec<f32>,
    /// The scores before the repetition penalty.
    unpunished: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler with these settings, for a generation that begins at position 0 and nothing ends.
    ///
    /// # Errors
    ///
    /// Those of [`Sampling::check`].
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        Ok(Self {
            biases: Bias::sorted(&sampling.rules.biases),
            span: Span::default(),
            scores: Vec::new(),
            unpunished: Vec::new(),
            candidates: Vec::new(),
            sampling,
        })
    }

    /// The same, for a generation of its own.
    pub fn with_span(self, mut span: Span) -> Self {
        span.stop.sort_unstable();
        span.stop.dedup();
        Self { span, ..self }
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
    /// [`Error::NotFinite`] if no logit is finite or one is NaN or positive infinity; [`Error::AllSuppressed`] if the rules leave
    /// no token; [`Error::Setting`] if a rule speaks of a token that there is not.
    pub fn sample(&mut self, logits: &[f32], before: &[u32], position: usize) -> Result<u32> {
        self.score(logits, before, position)?;
        if self.sampling.temperature == 0.0 {
            return Ok(argmax(&self.scores));
        }
        self.limit();
        Ok(limits::draw(&self.candidates, numerics::uniform(self.sampling.seed, &[position as u64])))
    }

    /// The tokens that [`sample`](Self::sample) chooses from, with their probabilities, best first.
    ///
    /// # Errors
    ///
    /// Those of `sample`.
    pub fn probabilities(
        &mut self,
        logits: &[f32],
        before: &[u32],
        position: usize,
    ) -> Result<impl Iterator<Item = (u32, f32)>> {
        self.score(logits, before, position)?;
        if self.sampling.temperature == 0.0 {
            let token = argmax(&self.scores);
            self.candidates.clear();
            self.candidates.push(Candidate { token, score: 0.0 });
        } else {
            self.limit();
        }
        let total = limits::total(&self.candidates);
        Ok(self.candidates.iter().map(move |c| (c.token, c.weight() / total)))
    }

    /// Fills the scores with what the rules make of logits; at least one is finite.
    fn score(&mut self, logits: &[f32], before: &[u32], position: usize) -> Result<()> {
        let bad = logits.iter().find(|v| v.is_nan() || **v == f32::INFINITY);
        if bad.is_some() || !logits.iter().any(|v| v.is_finite()) {
            let value = bad.copied().unwrap_or(f32::NEG_INFINITY);
            return Err(Error::NotFinite { layer: None, stage: "sampling", token: 0, value });
        }
        let Self { sampling, biases, span, scores, unpunished, .. } = self;
        sampling.rules.check_tokens(logits.len())?;
        scores.clear();
        scores.extend_from_slice(logits);
        rules::add_biases(scores, biases, before);
        if sampling.repetition_penalty != 1.0 {
            unpunished.clear();
            unpunished.extend_from_slice(scores);
            rules::punish_repetition(scores, unpunished, sampling.repetition_penalty, before);
        }
        sampling.rules.apply(scores, before, position, span);
        if scores.iter().any(|v| v.is_finite()) { Ok(()) } else { Err(Error::AllSuppressed { position }) }
    }

    /// Fills the candidates with the tokens that the limits leave.
    fn limit(&mut self) {
        let Self { sampling, scores, candidates, .. } = self;
        // Relative to the best, which stays finite at any temperature.
        let top = numerics::max(scores);
        let scaled = scores.iter().map(|v| (v - top) / sampling.temperature);
        candidates.clear();
        candidates.extend(
            (0..)
                .zip(scaled)
                .filter(|(_, score)| *score > f32::NEG_INFINITY)
                .map(|(token, score)| Candidate { token, score }),
        );
        limits::apply(candidates, sampling);
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
