//! The bank of experts, working on rows grouped by expert.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};

use crate::context::row_range;
use crate::{Error, Result, Scratch};

/// Rows `[R, D]` grouped by expert: expert e has rows `offsets[e]..offsets[e + 1]`.
#[derive(Clone, Copy, Debug)]
pub struct GroupedRows<'a> {
    rows: ArrayView2<'a, f32>,
    offsets: &'a [usize],
}

impl<'a> GroupedRows<'a> {
    /// Rows `[R, D]` with the boundaries of the groups, `[E + 1]`.
    ///
    /// # Errors
    ///
    /// [`Error::Sequences`] if the offsets do not run from 0 to R without a step back.
    pub fn new(rows: ArrayView2<'a, f32>, offsets: &'a [usize]) -> Result<Self> {
        let ascending = offsets.windows(2).all(|w| w[0] <= w[1]);
        if offsets.first() != Some(&0) || offsets.last() != Some(&rows.nrows()) || !ascending {
            return Err(Error::Sequences { tokens: rows.nrows(), found: offsets.to_vec() });
        }
        Ok(Self { rows, offsets })
    }

    /// All rows, `[R, D]`.
    pub fn rows(&self) -> ArrayView2<'a, f32> {
        self.rows
    }

    /// Boundaries of the groups, `[E + 1]`.
    pub fn offsets(&self) -> &'a [usize] {
        self.offsets
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The rows of expert `e`.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn of_expert(&self, e: usize) -> ArrayView2<'a, f32> {
        row_range(self.rows, self.offsets[e]..self.offsets[e + 1])
    }
}

/// A whole bank of experts. It alone decides how the work over experts, rows and columns is scheduled.
///
/// Fast banks implement this; [`PerExpert`] makes a bank of single experts.
pub trait Experts: Send + Sync {
    /// Number of experts, E.
    fn experts(&self) -> usize;

    /// Width of a row, D, which is also the width of its output.
    fn dim(&self) -> usize;

    /// Computes `out[r] = expert(r)(rows[r])` for every row.
    ///
    /// `out` is `[R, D]` and must be overwritten; its contents before are unspecified. A row's result must not depend on the
    /// other rows. Scratch that should outlive the call is taken from `scratch`.
    ///
    /// # Errors
    ///
    /// Whatever the bank's weights may run into: a disk, a cache, a network ([`Error::experts`]).
    fn forward(
        &self,
        rows: GroupedRows<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()>;
}

/// One expert: a feed-forward network from rows of width D to rows of width D.
pub trait Expert: Send + Sync {
    /// Width of a row, D.
    fn dim(&self) -> usize;

    /// Computes `out[r] = f(rows[r])`; both are `[N, D]`, `out` is overwritten.
    ///
    /// # Errors
    ///
    /// Whatever the expert may run into ([`Error::experts`]).
    fn forward(&self, rows: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) -> Result<()>;
}

/// A bank of single experts, run one after the other. An expert without rows is not called.
#[derive(Debug)]
pub struct PerExpert<X> {
    experts: Vec<X>,
    dim: usize,
}

impl<X: Expert> PerExpert<X> {
    /// A bank of these experts.
    ///
    /// # Errors
    ///
    /// If there is none, or their widths differ.
    pub fn new(experts: Vec<X>) -> Result<Self> {
        let Some(dim) = experts.first().map(Expert::dim) else {
            return Err(Error::Length { what: "bank of experts", expected: 1, found: 0 });
        };
        for x in &experts {
            Error::check_shape("expert width", &[dim], &[x.dim()])?;
        }
        Ok(Self { experts, dim })
    }
}

impl<X: Expert> Experts for PerExpert<X> {
    fn experts(&self) -> usize {
        self.experts.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn forward(&self, rows: GroupedRows<'_>, _: &mut Scratch, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
        for (e, expert) in self.experts.iter().enumerate() {
            let range = rows.offsets()[e]..rows.offsets()[e + 1];
            if !range.is_empty() {
                expert.forward(rows.of_expert(e), out.slice_axis_mut(Axis(0), Slice::from(range)))?;
            }
        }
        Ok(())
    }
}
