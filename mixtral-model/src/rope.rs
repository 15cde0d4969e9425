//! Rotary position embedding (Su et al., 2104.09864), in the half-split form of Hugging Face.

use moe_core::memory::{grow, reserve};

use crate::layout::RowOrder;
use crate::{Config, Error, Result};

/// The inverse frequencies of a head, and the table of a batch.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `1 / theta^(2i / head_dim)` with exponent, power and quotient rounded to f32; `[head_dim / 2]`.
    inverse_frequencies: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &Config) -> Self {
        // Hugging Face rounds the exponent to f32, which tells where head_dim is no power of two: for 80 and 112, angles at
        // position 32,000 are up to 0.002 from those of an exact exponent.
        let dim = config.head_dim as f32;
        let exponent = |i: usize| f64::from((2 * i) as f32 / dim);
        let inverse = |i: usize| 1.0 / libm::pow(config.rope_theta, exponent(i)) as f32;
        Self { inverse_frequencies: (0..config.head_dim / 2).map(inverse).collect() }
    }

    /// Fills `table` with `(cos, sin)` of `position · frequency`, `[T, head_dim / 2]`.
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
                (libm::cosf(angle), libm::sinf(angle))
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

/// Checks that tokens may follow those a session holds.
pub(crate) fn check_context(position: usize, tokens: usize, context: usize) -> Result<()> {
    match position.checked_add(tokens) {
        Some(end) if end <= context => Ok(()),
        _ => Err(Error::ContextOverflow { position, tokens, context }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_those_of_hugging_face() {
        // `1.0 / theta ** (torch.arange(0, 24, 2).float() / 24)`, as bits: an exponent rounded later gives other ones.
        let expected = [
            0x3f800000, 0x3ea1e89b, 0x3dcccccc, 0x3d0186e3, 0x3c23d709, 0x3b4f3e39, 0x3a83126f, 0x39a5cb62,
            0x38d1b713, 0x3804a2b2, 0x3727c5b0, 0x36543781,
        ];
        let rope = Rope::new(&Config { head_dim: 24, ..Config::mixtral_8x7b() });
        assert_eq!(rope.inverse_frequencies.iter().map(|f| f.to_bits()).collect::<Vec<_>>(), expected);
    }
}
