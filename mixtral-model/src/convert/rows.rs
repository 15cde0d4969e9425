//! Rows of weights from one type and order to another.

use std::io::{self, Write};

use moe_core::{OutOfMemory, memory};
use moe_kernels::{WeightFormat, WeightView, narrow_row};
use rayon::prelude::*;

use super::plan::Part;
use crate::checkpoint::tensor_error;
use crate::{Checkpoint, Error, Result, RowOrder};

/// Weights in memory at once, about so many.
const AT_ONCE: usize = 1 << 22;

/// How far weights are from what they were: sums of squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Squares {
    pub(super) of_weights: f64,
    pub(super) of_errors: f64,
}

impl Squares {
    pub(super) fn add(&mut self, other: Self) {
        self.of_weights += other.of_weights;
        self.of_errors += other.of_errors;
    }
}

/// What makes rows of a type of those of a checkpoint.
pub(super) struct Rows<'c> {
    pub(super) checkpoint: &'c Checkpoint,
    pub(super) head_dim: usize,
}

/// What ends the work on a tensor.
pub(super) enum Ended {
    Failed(Error),
    /// Writing failed.
    Output(io::Error),
}

impl Rows<'_> {
    /// Writes the rows of a tensor in a type. `done` is told of every so many weights.
    pub(super) fn write(
        &self,
        part: &Part<'_>,
        format: WeightFormat,
        importance: Option<&[f32]>,
        out: &mut impl Write,
        mut done: impl FnMut(u64) -> Result<()>,
    ) -> std::result::Result<Squares, Ended> {
        let Part { place, order, .. } = part;
        let (rows, columns) = (place.rows, place.columns);
        let heads = if place.order == *order { 1 } else { self.head_dim };
        // Rows change places within a head.
        let at_once = (AT_ONCE / columns.max(1)).max(1).next_multiple_of(heads);
        let stride = format.row_bytes(columns).ok_or_else(|| {
            Ended::Failed(self.error(part, format!("rows of whole blocks of {format}"), format!("{columns}")))
        })?;
        let (mut squares, mut to, mut of_rows) = (Squares::default(), Vec::new(), Vec::new());
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            let from = self.checkpoint.read_rows(place, first..first + count).map_err(Ended::Failed)?;
            if format == place.format && heads == 1 {
                out.write_all(&from).map_err(Ended::Output)?;
            } else {
                to.clear();
                memory::grow(&mut to, count * stride, 0, "rows of weights")
                    .map_err(|error| Ended::Failed(error.into()))?;
                let from = WeightView::new(&from, place.format, count, columns)
                    .map_err(|error| Ended::Failed(error.into()))?;
                let row_of = |row: usize| source_row(row, place.order, *order, self.head_dim);
                memory::refill(&mut of_rows, count, Squares::default(), "sums of rows")
                    .map_err(|error| Ended::Failed(error.into()))?;
                let each = to.par_chunks_exact_mut(stride.max(1)).zip(&mut of_rows).enumerate();
                let made = each.try_for_each_init(
                    || wide_rows(columns),
                    |buffers, (row, (to, squares))| {
                        let buffers = buffers.as_mut().map_err(|error| NotMade::Memory(*error))?;
                        let from = (from, row_of(row));
                        let source = first + from.1;
                        let of_row = one(from, format, importance, to, buffers);
                        *squares = of_row.map_err(|found| NotMade::Row(source, found))?;
                        Ok(())
                    },
                );
                made.map_err(|not_made| {
                    Ended::Failed(match not_made {
                        NotMade::Memory(error) => error.into(),
                        NotMade::Row(row, found) => {
                            let expected = format!("values that {format} can hold");
                            self.error(part, expected, format!("{found} in row {row}"))
                        }
                    })
                })?;
                // In the order of rows, so that sums do not depend on threads.
                of_rows.iter().for_each(|of_row| squares.add(*of_row));
                out.write_all(&to).map_err(Ended::Output)?;
            }
            done((count * columns) as u64).map_err(Ended::Failed)?;
        }
        Ok(squares)
    }

    fn error(&self, part: &Part<'_>, expected: String, found: String) -> Error {
        tensor_error(part.place.path, part.place.name, expected, found)
    }
}

/// Why a row was not made.
enum NotMade {
    Memory(OutOfMemory),
    /// Its number, and what its type cannot hold.
    Row(usize, String),
}

/// Room for a row before and after.
fn wide_rows(columns: usize) -> std::result::Result<[Vec<f32>; 2], OutOfMemory> {
    let mut buffers = [Vec::new(), Vec::new()];
    buffers.iter_mut().try_for_each(|buffer| memory::refill(buffer, columns, 0.0, "a row of weights"))?;
    Ok(buffers)
}

/// Where the row is that is to be in place `row`, heads beginning at multiples of their width.
fn source_row(row: usize, from: RowOrder, to: RowOrder, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim * head_dim, row % head_dim);
    let half = head_dim / 2;
    match (from, to) {
        (RowOrder::Halves, RowOrder::Pairs) => head + i / 2 + i % 2 * half,
        (RowOrder::Pairs, RowOrder::Halves) => head + 2 * (i % half) + i / half,
        _ => row,
    }
}

/// Makes one row; what it could not hold, if so.
fn one(
    (from, row): (WeightView<'_>, usize),
    format: WeightFormat,
    importance: Option<&[f32]>,
    to: &mut [u8],
    [wide, back]: &mut [Vec<f32>; 2],
) -> std::result::Result<Squares, String> {
    if format == from.format() {
        to.copy_from_slice(from.row(row));
        return Ok(Squares::default());
    }
    from.widen_row(row, wide);
    match format {
        WeightFormat::Plain(dtype) => narrow_row(dtype, wide, to),
        WeightFormat::Blocks(block) => {
            block.quantise_row(wide, importance, to).map_err(|error| error.to_string())?;
        }
        other => return Err(format!("no way to make {other}")),
    }
    let made = WeightView::new(to, format, 1, wide.len()).map_err(|error| error.to_string())?;
    made.widen_row(0, back);
    if let Some(i) = (0..wide.len()).find(|&i| wide[i].is_finite() && !back[i].is_finite()) {
        return Err(format!("{} in column {i}", wide[i]));
    }
    let mut squares = Squares::default();
    for (w, b) in wide.iter().zip(back) {
        squares.of_weights += f64::from(*w).powi(2);
        squares.of_errors += f64::from(*w - *b).powi(2);
    }
    Ok(squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_within_heads() {
        let order = |from, to| (0..16).map(|row| source_row(row, from, to, 8)).collect::<Vec<_>>();
        let pairs = order(RowOrder::Halves, RowOrder::Pairs);
        assert_eq!(pairs, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
        let halves = order(RowOrder::Pairs, RowOrder::Halves);
        let there_and_back: Vec<_> = halves.iter().map(|&row| pairs[row]).collect();
        assert_eq!(there_and_back, (0..16).collect::<Vec<_>>());
        assert_eq!(order(RowOrder::Pairs, RowOrder::Pairs), (0..16).collect::<Vec<_>>());
    }
}
