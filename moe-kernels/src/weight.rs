//! A weight matrix where it lies.

use bytes::Bytes;

use crate::blocks::{self, with_block};
use crate::{BlockType, Dtype, Error, Result, element};

/// How a row of a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightFormat {
    /// One element after the other.
    Plain(Dtype),
    /// Blocks of small integers and their scales.
    Blocks(BlockType),
}

impl WeightFormat {
    /// Bytes that a row of `columns` takes; `None` if that is no number, or the format has no rows of that length.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            Self::Plain(dtype) => columns.checked_mul(dtype.bytes()),
            Self::Blocks(block) => block.row_bytes(columns),
        }
    }
}

impl From<Dtype> for WeightFormat {
    fn from(dtype: Dtype) -> Self {
        Self::Plain(dtype)
    }
}

impl From<BlockType> for WeightFormat {
    fn from(block: BlockType) -> Self {
        Self::Blocks(block)
    }
}

impl std::str::FromStr for WeightFormat {
    type Err = Error;

    /// The format of that name: `f32`, `f16`, `bf16`, or a [`BlockType`]'s.
    fn from_str(name: &str) -> Result<Self> {
        let plain = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(Self::Plain);
        let all = plain.into_iter().chain(BlockType::ALL.iter().copied().map(Self::Blocks));
        all.clone().find(|format| format.to_string() == name).ok_or_else(|| Error::UnknownFormat {
            known: all.map(|format| format.to_string()).collect::<Vec<_>>().join(", "),
            found: name.to_owned(),
        })
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(dtype) => dtype.fmt(f),
            Self::Blocks(block) => block.fmt(f),
        }
    }
}

/// A row-major matrix `[rows, columns]` in somebody's bytes: what kernels multiply with.
///
/// A linear map from K to N has N rows of K columns, as checkpoints store it. No alignment is asked of the bytes.
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    bytes: &'a [u8],
    format: WeightFormat,
    /// Bytes of a row.
    stride: usize,
    rows: usize,
    columns: usize,
}

impl<'a> WeightView<'a> {
    /// A matrix in its little-endian bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Bytes`] unless there are `rows` rows of `columns`, exactly.
    pub fn new(
        bytes: &'a [u8],
        format: impl Into<WeightFormat>,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let format = format.into();
        let stride = format.row_bytes(columns);
        let expected = stride.and_then(|stride| stride.checked_mul(rows));
        match (stride, expected) {
            (Some(stride), Some(expected)) if expected == bytes.len() => {
                Ok(Self { bytes, format, stride, rows, columns })
            }
            _ => {
                let expected = expected.map_or_else(|| "too many".to_owned(), |n| n.to_string());
                Err(Error::Bytes { rows, columns, format, expected, found: bytes.len() })
            }
        }
    }

    /// Number of rows: the width of the output of a linear map.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Number of columns: the width of the input of a linear map.
    pub fn columns(self) -> usize {
        self.columns
    }

    /// How rows are stored.
    pub fn format(self) -> WeightFormat {
        self.format
    }

    /// The bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes from one row to the next.
    #[inline(always)]
    pub(crate) fn stride(self) -> usize {
        self.stride
    }

    /// The bytes of row `i`.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[track_caller]
    pub fn row(self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..(i + 1) * self.stride]
    }

    /// Widens row `i` into `to`, which has one place a column.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[track_caller]
    pub fn widen_row(self, i: usize, to: &mut [f32]) {
        match self.format {
            WeightFormat::Plain(dtype) => element::widen_row(dtype, self.row(i), to),
            WeightFormat::Blocks(block) => with_block!(block, B => blocks::widen_row::<B>(self.row(i), to)),
        }
    }
}

impl std::fmt::Debug for WeightView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightView({} x {} {})", self.rows, self.columns, self.format)
    }
}

/// A [`WeightView`] that keeps its bytes: shared with others, a part of a mapped file, or memory of its own. Cloning shares
/// them.
#[derive(Clone)]
pub struct WeightMatrix {
    bytes: Bytes,
    format: WeightFormat,
    stride: usize,
    rows: usize,
    columns: usize,
}

impl WeightMatrix {
    /// A matrix from its little-endian bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Bytes`] unless there are `rows` rows of `columns`, exactly.
    pub fn new(bytes: Bytes, format: impl Into<WeightFormat>, rows: usize, columns: usize) -> Result<Self> {
        let WeightView { format, stride, .. } = WeightView::new(&bytes, format, rows, columns)?;
        Ok(Self { bytes, format, stride, rows, columns })
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

    /// The matrix, borrowed.
    #[inline]
    pub fn view(&self) -> WeightView<'_> {
        let Self { format, stride, rows, columns, .. } = *self;
        WeightView { bytes: &self.bytes, format, stride, rows, columns }
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

    /// Widens row `i` into `to`, which has one place a column.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[track_caller]
    pub fn widen_row(&self, i: usize, to: &mut [f32]) {
        self.view().widen_row(i, to);
    }
}

impl std::fmt::Debug for WeightMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightMatrix({} x {} {})", self.rows, self.columns, self.format)
    }
}
