//! Settings by name, for whoever may not write the structs out. Those of [`Sampling`] check what they set, those of [`Rules`] are
//! checked where they become a part of it.

use super::{Length, LengthDecay, Rules, Sampling};
use crate::Result;

/// The same settings but for one. A value that means nothing is an error where it is set, as it is for [`check`](Self::check)
/// where a field was written to.
impl Sampling {
    /// With logits divided by `temperature`; 0 is greedy.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) unless it is finite and not negative.
    pub fn with_temperature(self, temperature: f32) -> Result<Self> {
        Self { temperature, ..self }.checked()
    }

    /// Drawing from the `k` most probable tokens, and those as probable as the last of them; `None` is all.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for 0.
    pub fn with_top_k(self, k: impl Into<Option<usize>>) -> Result<Self> {
        Self { top_k: k.into(), ..self }.checked()
    }

    /// Drawing from the most probable tokens whose probabilities reach `share`; 1 is all.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) unless it is more than 0 and at most 1.
    pub fn with_top_p(self, share: f32) -> Result<Self> {
        Self { top_p: share, ..self }.checked()
    }

    /// Drawing from tokens at least `share` times as probable as the most probable; 0 is all.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) unless it is 0 to 1.
    pub fn with_min_p(self, share: f32) -> Result<Self> {
        Self { min_p: share, ..self }.checked()
    }

    /// Drawing from the tokens of the most expected information whose probabilities reach `share`; 1 is all.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) unless it is more than 0 and at most 1.
    pub fn with_typical_p(self, share: f32) -> Result<Self> {
        Self { typical_p: share, ..self }.checked()
    }

    /// Drawing from tokens at least this probable, and the most probable one; 0 is all.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) unless it is 0 or more and less than 1.
    pub fn with_epsilon_cutoff(self, probability: f32) -> Result<Self> {
        Self { epsilon_cutoff: probability, ..self }.checked()
    }

    /// Drawing from tokens at least as probable as this and the entropy [allow](Self::eta_cutoff); 0 is all.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) unless it is 0 or more and less than 1.
    pub fn with_eta_cutoff(self, probability: f32) -> Result<Self> {
        Self { eta_cutoff: probability, ..self }.checked()
    }

    /// With tokens that occurred made less likely by the factor `penalty`; 1 is none.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) unless it is finite and more than 0.
    pub fn with_repetition_penalty(self, penalty: f32) -> Result<Self> {
        Self { repetition_penalty: penalty, ..self }.checked()
    }

    /// With these rules, in place of all those that there were, biases too.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for an empty sequence, or a number that is not finite and means nothing. Whether the
    /// model has the tokens is known [when sampling](super::Sampler::sample).
    pub fn with_rules(self, rules: Rules) -> Result<Self> {
        Self { rules, ..self }.checked()
    }

    /// With draws from this seed.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    fn checked(self) -> Result<Self> {
        self.check()?;
        Ok(self)
    }
}

/// The same rules but for one. Together they are checked by [`Sampling::with_rules`].
impl Rules {
    /// With `bias` added to the logit of the sequence's last token where the others stand right before it, in place of the bias
    /// that the sequence had; negative infinity is never.
    pub fn with_bias(mut self, sequence: impl Into<Vec<u32>>, bias: f32) -> Self {
        self.biases.insert(sequence.into(), bias);
        self
    }

    /// With no sequence of `tokens` tokens twice; 0 is no such rule.
    pub fn with_no_repeat_ngram(self, tokens: usize) -> Self {
        Self { no_repeat_ngram: tokens, ..self }
    }

    /// Without these sequences, but for single tokens that end the generation.
    pub fn with_bad_words(self, sequences: impl Into<Vec<Vec<u32>>>) -> Self {
        Self { bad_words: sequences.into(), ..self }
    }

    /// With no end before this length.
    pub fn with_min_length(self, length: Length) -> Self {
        Self { min_length: length, ..self }
    }

    /// With this token at position 1, after a prompt of a single token; `None` is no such rule.
    pub fn with_forced_second(self, token: impl Into<Option<u32>>) -> Self {
        Self { forced_second: token.into(), ..self }
    }

    /// With one of these tokens at the last position, where there is a last one; none is no such rule.
    pub fn with_forced_last(self, tokens: impl Into<Vec<u32>>) -> Self {
        Self { forced_last: tokens.into(), ..self }
    }

    /// With ends that become more likely; `None` is no such rule.
    pub fn with_length_decay(self, decay: impl Into<Option<LengthDecay>>) -> Self {
        Self { length_decay: decay.into(), ..self }
    }

    /// Without these tokens.
    pub fn with_suppressed(self, tokens: impl Into<Vec<u32>>) -> Self {
        Self { suppressed: tokens.into(), ..self }
    }

    /// Without these tokens at a generation's [first](Self::suppressed_first) position.
    pub fn with_suppressed_first(self, tokens: impl Into<Vec<u32>>) -> Self {
        Self { suppressed_first: tokens.into(), ..self }
    }
}
