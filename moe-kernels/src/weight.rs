//! A weight matrix where it lies.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use half::bf16;
use moe_core::numerics::BF16_LEAST;
use rayon::prelude::*;

use crate::{Activations, Dtype, Error, Result, element};

/// How a row of a weight matrix is stored. Block-quantised formats will stand beside the plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// One element after the other.
    Plain(Dtype),
}

impl WeightFormat {
    /// Bytes that a row of `columns` takes; `None` if that is no number, or the format has no rows of that length.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            Self::Plain(dtype) => columns.checked_mul(dtype.bytes()),
        }
    }
}

impl From<Dtype> for WeightFormat {
    fn from(dtype: Dtype) -> Self {
        Self::Plain(dtype)
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
        }
    }
}

/// A row-major matrix `[rows, columns]` in shared bytes: a part of a mapped file, or memory of its own. Cloning shares it.
///
/// A linear map from K to N has N rows of K columns, as checkpoints store it. No alignment is asked of the bytes.
#[derive(Clone)]
pub struct WeightMatrix {
    bytes: Bytes,
    format: WeightFormat,
    /// Bytes of a row.
    stride: usize,
    rows: usize,
    columns: usize,
    /// Where the first weight is that bfloat16 activations do not allow, once that was asked.
    too_small: Arc<OnceLock<Option<usize>>>,
}

impl WeightMatrix {
    /// A matrix from its little-endian bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Bytes`] unless there are `rows · columns` elements, exactly.
    pub fn new(bytes: Bytes, format: impl Into<WeightFormat>, rows: usize, columns: usize) -> Result<Self> {
        let format = format.into();
        let stride = format.row_bytes(columns);
        let expected = stride.and_then(|stride| stride.checked_mul(rows));
        match (stride, expected) {
            (Some(stride), Some(expected)) if expected == bytes.len() => {
                Ok(Self { bytes, format, stride, rows, columns, too_small: Arc::default() })
            }
            _ => {
                let expected = expected.map_or_else(|| "too many".to_owned(), |n| n.to_string());
                Err(Error::Bytes { rows, columns, format, expected, found: bytes.len() })
            }
        }
    }

    /// An f32 matrix with memory of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Bytes`] unless there are `rows · columns` values.
    pub fn from_f32(values: &[f32], rows: usize, columns: usize) -> Result<Self> {
        Self::rounded(values, Dtype::F32, rows, columns)
    }

    /// A matrix with memory of its own, each value rounded to nearest even.
    ///
    /// # Errors
    ///
    /// [`Error::Bytes`] unless there are `rows · columns` values.
    pub fn rounded(values: &[f32], dtype: Dtype, rows: usize, columns: usize) -> Result<Self> {
        let mut bytes = vec![0; values.len() * dtype.bytes()];
        element::narrow_row(dtype, values, &mut bytes);
        Self::new(bytes.into(), dtype, rows, columns)
    }

    /// Number of rows: the width of the output of a linear map.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the width of the input of a linear map.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How rows are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes from one row to the next.
    #[inline(always)]
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The bytes of row `i`.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[track_caller]
    pub fn row(&self, i: usize) -> &[u8] {
        &self.bytes[i * self.stride..(i + 1) * self.stride]
    }

    /// Whether products of this kind can be made with it: reads the matrix the first time it is asked for bfloat16, and
    /// remembers the answer for this matrix and its clones.
    ///
    /// # Errors
    ///
    /// [`Error::NotBf16`], [`Error::TooSmall`].
    pub fn check(&self, activations: Activations) -> Result<()> {
        if activations == Activations::F32 {
            return Ok(());
        }
        if self.format != WeightFormat::Plain(Dtype::Bf16) {
            return Err(Error::NotBf16 { rows: self.rows, columns: self.columns, format: self.format });
        }
        // Not inside the cell's initialiser: a thread of the pool that waits there may take up another caller's pass, which
        // would wait for the cell. Two that look at once find the same.
        let found = self.too_small.get().copied().unwrap_or_else(|| {
            let found = first_too_small(&self.bytes);
            *self.too_small.get_or_init(|| found)
        });
        match found {
            None => Ok(()),
            Some(at) => Err(Error::TooSmall {
                row: at / self.columns,
                column: at % self.columns,
                value: bf16::from_le_bytes([self.bytes[2 * at], self.bytes[2 * at + 1]]).to_f32(),
            }),
        }
    }

    /// Widens row `i` into `to`, which has one place a column.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[track_caller]
    pub fn widen_row(&self, i: usize, to: &mut [f32]) {
        match self.format {
            WeightFormat::Plain(dtype) => element::widen_row(dtype, self.row(i), to),
        }
    }
}

impl std::fmt::Debug for WeightMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightMatrix({} x {} {})", self.rows, self.columns, self.format)
    }
}

/// Index of the first bfloat16 that is neither zero nor at least [`BF16_LEAST`] in magnitude.
fn first_too_small(bytes: &[u8]) -> Option<usize> {
    const PIECE: usize = 1 << 16;
    let least = (BF16_LEAST.to_bits() >> 16) as u16;
    // Zero wraps around, and is large.
    let too_small = |b: &[u8; 2]| (u16::from_le_bytes(*b) & 0x7fff).wrapping_sub(1) < least - 1;
    let find = |(n, piece): (usize, &[u8])| {
        let (values, _) = piece.as_chunks();
        // Without an early exit the check runs at the speed of memory.
        let any = values.iter().fold(false, |any, b| any | too_small(b));
        any.then(|| n * PIECE / 2 + values.iter().position(too_small).unwrap_or(0))
    };
    bytes.par_chunks(PIECE).enumerate().filter_map(find).min()
}
