//! A weight matrix where it lies.

use bytes::Bytes;

use crate::{Dtype, Error, Result, element};

/// A row-major matrix `[rows, columns]` in shared bytes: a part of a mapped file, or memory of its own. Cloning shares it.
///
/// A linear map from K to N has N rows of K columns, as checkpoints store it. No alignment is asked of the bytes.
#[derive(Clone)]
pub struct WeightMatrix {
    bytes: Bytes,
    dtype: Dtype,
    rows: usize,
    columns: usize,
}

impl WeightMatrix {
    /// A matrix from its little-endian bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Bytes`] unless there are `rows · columns` elements, exactly.
    pub fn new(bytes: Bytes, dtype: Dtype, rows: usize, columns: usize) -> Result<Self> {
        let expected = rows.checked_mul(columns).and_then(|n| n.checked_mul(dtype.bytes()));
        if expected != Some(bytes.len()) {
            let expected = expected.map_or_else(|| "too many".to_owned(), |n| n.to_string());
            return Err(Error::Bytes { rows, columns, dtype, expected, found: bytes.len() });
        }
        Ok(Self { bytes, dtype, rows, columns })
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

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of row `i`.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[track_caller]
    pub fn row(&self, i: usize) -> &[u8] {
        let stride = self.columns * self.dtype.bytes();
        &self.bytes[i * stride..(i + 1) * stride]
    }

    /// Widens row `i` into `to`, which has one place a column.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[track_caller]
    pub fn widen_row(&self, i: usize, to: &mut [f32]) {
        element::widen_row(self.dtype, self.row(i), to);
    }
}

impl std::fmt::Debug for WeightMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightMatrix({} x {} {})", self.rows, self.columns, self.dtype)
    }
}
