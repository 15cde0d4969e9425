//! What is done to logits before a token is chosen.
//!
//! A score of negative infinity is a token that cannot be chosen; nothing makes it one that can, but forcing.

use std::collections::BTreeMap;

use super::{Span, setting_error};
use crate::Result;

/// Tokens that should, may not or must come.
///
/// But for the biases, which come before the repetition penalty, they are applied in the order of the fields. Tokens that are
/// suppressed may be any ids; those of the others must be the model's.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Rules {
    /// What is added to the logit of a sequence's last token where the others stand right before it. That of a single token is
    /// added always; negative infinity is never. Biases of one token are added up, and then added to its logit.
    pub biases: BTreeMap<Vec<u32>, f32>,
    /// No sequence of so many tokens comes twice; 0 is no such rule.
    pub no_repeat_ngram: usize,
    /// Sequences that do not come, but for single tokens that end the generation.
    pub bad_words: Vec<Vec<u32>>,
    /// No token that ends the generation comes before this length.
    pub min_length: Length,
    /// The token at position 1, after a prompt of a single token.
    pub forced_second: Option<u32>,
    /// One of these comes last, where the generation has a last position; empty is no such rule.
    pub forced_last: Vec<u32>,
    /// Tokens that end the generation become more likely with its length.
    pub length_decay: Option<LengthDecay>,
    /// Tokens that do not come.
    pub suppressed: Vec<u32>,
    /// Tokens that do not come first in a generation, where "first" is position 2 if the token at position 1 is forced.
    pub suppressed_first: Vec<u32>,
}

/// A length of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Of what is drawn.
    New(usize),
    /// Of the whole sequence, the prompt included.
    Total(usize),
}

impl Default for Length {
    /// None.
    fn default() -> Self {
        Self::New(0)
    }
}

impl Length {
    /// The length of the whole sequence, if generation begins at `begin`.
    pub fn total(self, begin: usize) -> usize {
        match self {
            Self::New(tokens) => begin.saturating_add(tokens),
            Self::Total(tokens) => tokens,
        }
    }
}

/// From `after` generated tokens on, a logit l of a token that ends the generation becomes l + |l| (factorⁿ - 1), where n counts the
/// tokens after those.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthDecay {
    /// Generated tokens without an effect.
    pub after: usize,
    /// More than 1 makes ends more likely.
    pub factor: f64,
}

impl Rules {
    /// `Ok` where every rule means something.
    pub(super) fn check(&self) -> Result<()> {
        for (sequence, bias) in &self.biases {
            if sequence.is_empty() {
                return Err(setting_error("bias", "a sequence of at least one token", "none"));
            }
            if bias.is_nan() || *bias == f32::INFINITY {
                return Err(setting_error("bias", "a finite number or negative infinity", bias));
            }
        }
        if self.bad_words.iter().any(Vec::is_empty) {
            return Err(setting_error("bad words", "sequences of at least one token", "none"));
        }
        match self.length_decay {
            Some(LengthDecay { factor, .. }) if !factor.is_finite() => {
                Err(setting_error("length decay", "a finite factor", factor))
            }
            _ => Ok(()),
        }
    }

    /// `Ok` where all tokens that rules speak of are below the vocabulary's size.
    pub(crate) fn check_tokens(&self, vocabulary: usize) -> Result<()> {
        let biased = self.biases.keys().flatten().map(|token| ("bias", token));
        let bad = self.bad_words.iter().flatten().map(|token| ("bad words", token));
        let forced = self.forced_second.iter().chain(&self.forced_last).map(|token| ("forced token", token));
        match biased.chain(bad).chain(forced).find(|(_, token)| **token as usize >= vocabulary) {
            Some((setting, token)) => {
                Err(setting_error(setting, format!("token ids less than {vocabulary}"), token))
            }
            None => Ok(()),
        }
    }

    /// Applies all rules but the biases to the scores of the token at `position`, after the tokens `before`.
    pub(super) fn apply(&self, scores: &mut [f32], before: &[u32], position: usize, span: &Span) {
        forbid_repeated_ngrams(scores, before, self.no_repeat_ngram);
        for word in &self.bad_words {
            if let [start @ .., last] = &word[..]
                && before.ends_with(start)
                && !(start.is_empty() && span.stop.contains(last))
            {
                suppress(scores, *last);
            }
        }
        if position < self.min_length.total(span.begin) {
            span.stop.iter().for_each(|&token| suppress(scores, token));
        }
        if position == 1
            && let Some(token) = self.forced_second
        {
            force(scores, &[token]);
        }
        if span.end.is_some_and(|end| end.checked_sub(1) == Some(position)) && !self.forced_last.is_empty() {
            force(scores, &self.forced_last);
        }
        if let Some(decay) = self.length_decay {
            let length = position.saturating_sub(span.begin.saturating_add(decay.after));
            decay.apply(scores, length, &span.stop);
        }
        self.suppressed.iter().for_each(|&token| suppress(scores, token));
        let forced = self.forced_second.is_some() && span.begin <= 1;
        if position == span.begin.saturating_add(usize::from(forced)) {
            self.suppressed_first.iter().for_each(|&token| suppress(scores, token));
        }
    }
}

impl LengthDecay {
    /// `stop` has no token twice.
    fn apply(self, scores: &mut [f32], length: usize, stop: &[u32]) {
        if length == 0 {
            return;
        }
        let growth = finite((libm::pow(self.factor, length as f64) - 1.0) as f32);
        for &token in stop {
            if let Some(score) = scores.get_mut(token as usize)
                && score.is_finite()
            {
                *score = finite(*score + score.abs() * growth);
            }
        }
    }
}

/// A bias as it is applied.
#[derive(Clone, Debug)]
pub(super) struct Bias {
    /// The tokens that must stand before.
    start: Vec<u32>,
    /// The token whose logit it is added to.
    last: u32,
    bias: f32,
}

impl Bias {
    /// The biases of each token together, that of the token alone first.
    pub(super) fn sorted(biases: &BTreeMap<Vec<u32>, f32>) -> Vec<Self> {
        let split = |(sequence, &bias): (&Vec<u32>, &f32)| {
            let (&last, start) = sequence.split_last()?;
            Some(Self { start: start.to_vec(), last, bias })
        };
        let mut sorted: Vec<_> = biases.iter().filter_map(split).collect();
        sorted.sort_by_key(|bias| (bias.last, bias.start.len()));
        sorted
    }
}

/// Adds the biases of sequences that the tokens before begin.
pub(super) fn add_biases(scores: &mut [f32], biases: &[Bias], before: &[u32]) {
    for of_token in biases.chunk_by(|a, b| a.last == b.last) {
        let begun = of_token.iter().filter(|bias| before.ends_with(&bias.start));
        let bias = begun.map(|bias| bias.bias).fold(0.0, sum);
        if let Some(score) = scores.get_mut(of_token[0].last as usize) {
            *score = sum(*score, bias);
        }
    }
}

/// Makes tokens that came before less likely, from their scores without a penalty, so that none is punished twice.
pub(super) fn punish_repetition(scores: &mut [f32], unpunished: &[f32], penalty: f32, before: &[u32]) {
    for &token in before {
        let Some(&v) = unpunished.get(token as usize) else { continue };
        let punished = if v > 0.0 { v / penalty } else { v * penalty };
        scores[token as usize] = if v == f32::NEG_INFINITY { v } else { finite(punished) };
    }
}

/// Suppresses the tokens with which an n-gram that came before would come again.
fn forbid_repeated_ngrams(scores: &mut [f32], before: &[u32], n: usize) {
    if n == 0 || before.len() < n {
        return;
    }
    let start = &before[before.len() + 1 - n..];
    for ngram in before.windows(n) {
        if ngram.starts_with(start) {
            suppress(scores, ngram[n - 1]);
        }
    }
}

fn suppress(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = f32::NEG_INFINITY;
    }
}

/// Leaves these tokens alone, one as likely as the other.
fn force(scores: &mut [f32], tokens: &[u32]) {
    scores.fill(f32::NEG_INFINITY);
    for &token in tokens {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = 0.0;
        }
    }
}

/// The sum of a score and a bias: never stays never.
fn sum(a: f32, b: f32) -> f32 {
    if a == f32::NEG_INFINITY || b == f32::NEG_INFINITY { f32::NEG_INFINITY } else { finite(a + b) }
}

/// Beyond any float there is still an order.
fn finite(score: f32) -> f32 {
    score.clamp(f32::MIN, f32::MAX)
}
