//! Rotary position embedding (Su et al., 2104.09864), in the half-split form of Hugging Face.

use std::f64::consts::TAU;

use moe_core::memory::{grow, reserve};

use crate::layout::RowOrder;
use crate::{Error, Result, RopeScaling};

/// The inverse frequencies of a head, and the table of a batch.
#[derive(Debug)]
pub(crate) struct Rope {
    /// Angles of one position: `[head_dim / 2]`.
    inverse_frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by.
    magnitude: f32,
}

impl Rope {
    /// The embedding of heads of a width, with a base and a scaling of its frequencies.
    pub(crate) fn new(head_dim: usize, theta: f64, scaling: RopeScaling) -> Self {
        // Hugging Face rounds base and exponent to f32. The exponent's rounding tells where head_dim is no power of two: for 80
        // and 112, angles at position 32,000 are up to 0.002 from those of an exact exponent.
        let dim = head_dim as f32;
        let rounded = f64::from(theta as f32);
        let period = |i: usize| libm::pow(rounded, f64::from((2 * i) as f32 / dim)) as f32;
        let periods = (0..head_dim / 2).map(period);
        let (inverse_frequencies, magnitude) = match scaling {
            RopeScaling::None => (periods.map(|p| 1.0 / p).collect(), 1.0),
            RopeScaling::Linear { factor } => (periods.map(|p| 1.0 / p / factor as f32).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let turns = (low_freq_factor, high_freq_factor);
                let scale = |p| llama3(1.0 / p, factor, turns, original_max_positions as f64);
                (periods.map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                truncate,
                original_max_positions,
            } => {
                let turns = (beta_slow, beta_fast);
                let (first, last) =
                    yarn_ends(head_dim, theta, turns, truncate, original_max_positions as f64);
                let scale = |(i, p): (usize, f32)| {
                    let divided = ((i as f32 - first as f32) / (last - first) as f32).clamp(0.0, 1.0);
                    let kept = 1.0 - divided;
                    1.0 / (factor as f32 * p) * (1.0 - kept) + 1.0 / p * kept
                };
                (periods.enumerate().map(scale).collect(), attention_factor as f32)
            }
        };
        Self { inverse_frequencies, magnitude }
    }

    /// Fills `table` with `(cos, sin)` of `position · frequency`, times the magnitude; `[T, head_dim / 2]`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub(crate) fn fill(&self, positions: &[usize], table: &mut Vec<(f32, f32)>) -> Result<()> {
        table.clear();
        let len = positions.len().saturating_mul(self.inverse_frequencies.len());
        reserve(table, len, "angles of positions")?;
        for &position in positions {
            table.extend(self.inverse_frequencies.iter().map(|f| {
                let angle = position as f32 * f;
                (libm::cosf(angle) * self.magnitude, libm::sinf(angle) * self.magnitude)
            }));
        }
        Ok(())
    }

    /// Rotates every head of every row in place: components i and i + head_dim / 2 are a plane, after they were brought into that
    /// order. `x` is `[T, heads · head_dim]`; `copy` is memory for a head.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub(crate) fn rotate(
        &self,
        table: &[(f32, f32)],
        x: &mut [f32],
        row_len: usize,
        order: RowOrder,
        copy: &mut Vec<f32>,
    ) -> Result<()> {
        let half = self.inverse_frequencies.len();
        if order == RowOrder::Pairs {
            grow(copy, 2 * half, 0.0, "a head of queries or keys")?;
        }
        for (row, angles) in x.chunks_mut(row_len).zip(table.chunks(half)) {
            for head in row.chunks_mut(2 * half) {
                if order == RowOrder::Pairs {
                    copy[..2 * half].copy_from_slice(head);
                    for (i, pair) in copy[..2 * half].chunks(2).enumerate() {
                        (head[i], head[i + half]) = (pair[0], pair[1]);
                    }
                }
                let (a, b) = head.split_at_mut(half);
                for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
        Ok(())
    }
}

/// A frequency under [`RopeScaling::Llama3`]; what lies between `turns` in the `original` context is blended.
///
/// As in Transformers, settings meet each other in f64, and frequencies in f32.
fn llama3(frequency: f32, factor: f64, turns: (f64, f64), original: f64) -> f32 {
    let (low, high) = turns;
    let wavelength = 1.0 / frequency * TAU as f32;
    if wavelength > (original / low) as f32 {
        return frequency / factor as f32;
    }
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let kept = (1.0 / wavelength * original as f32 - low as f32) / (high - low) as f32;
    (1.0 - kept) * frequency / factor as f32 + kept * frequency
}

/// The indices of frequencies between which [`RopeScaling::Yarn`] blends: the first is kept, the last divided by the factor.
fn yarn_ends(head_dim: usize, theta: f64, turns: (f64, f64), truncate: bool, original: f64) -> (f64, f64) {
    let (slow, fast) = turns;
    let dim = head_dim as f64;
    // The index, not whole, of the frequency that turns so often in the original context.
    let index = |turns: f64| dim * libm::log(original / (turns * TAU)) / (2.0 * libm::log(theta));
    let (mut first, mut last) = (index(fast), index(slow));
    if truncate {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min(dim - 1.0));
    if first == last {
        last += 0.001;
    }
    (first, last)
}

/// Checks that tokens may follow those a session holds.
pub(crate) fn check_context(position: usize, tokens: usize, context: usize) -> Result<()> {
    match position.checked_add(tokens) {
        Some(end) if end <= context => Ok(()),
        _ => Err(Error::ContextOverflow { position, tokens, context }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::Config;

    fn word(bits: &Value) -> u32 {
        u32::from_str_radix(bits.as_str().unwrap(), 16).unwrap()
    }

    /// The embedding of a complete small config with these fields.
    fn rope(fields: &Value) -> Rope {
        let mut config = json!({
            "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2,
            "vocab_size": 64,
        });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let config = Config::from_json(config.to_string().as_bytes(), Path::new("config.json")).unwrap();
        Rope::new(config.head_dim, config.rope_theta, config.rope_scaling)
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        let goldens: Value =
            serde_json::from_str(include_str!("../tests/fixtures/rope/frequencies.json")).unwrap();
        let cases = goldens["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 27);
        let mut failures = Vec::new();
        for case in cases {
            let rope = rope(&case["config"]);
            let found: Vec<_> = rope.inverse_frequencies.iter().map(|f| f.to_bits()).collect();
            let words = |name: &str| case[name].as_array().unwrap().iter().map(word).collect::<Vec<_>>();
            if found != words("rounded") || rope.magnitude.to_bits() != word(&case["attention_factor"]) {
                failures.push(case["config"].to_string());
            }
            // torch's own power is off by two last bits at most.
            if found.iter().zip(words("torch")).any(|(a, b)| a.abs_diff(b) > 2) {
                failures.push(format!("{}, torch", case["config"]));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    #[test]
    fn yarn_lengthens_queries_and_keys() {
        let rope = rope(&json!({
            "max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 1.5},
        }));
        let mut table = Vec::new();
        rope.fill(&[0, 3], &mut table).unwrap();
        assert_eq!(table[0], (1.5, 0.0));
        let (cos, sin) = table[4];
        assert_eq!((cos, sin), (libm::cosf(3.0) * 1.5, libm::sinf(3.0) * 1.5));
    }
}
