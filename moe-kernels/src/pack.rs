//! Rows laid out for products: one K block after the other, in each block row by row, padded with zeros to whole chunks.
//!
//! A tile of rows is then one stretch of memory for each block, where plain rows of 4096 would compete for the same lines
//! of the cache.

use moe_core::numerics::{BLOCK, LANES};
use ndarray::ArrayView2;

use crate::element::chunks_of;
use crate::schedule::for_each_piece;
use crate::simd::{Chunk, floats_mut};

/// Chunks in a whole K block.
pub(crate) const BLOCK_CHUNKS: usize = BLOCK / LANES;

/// Packed rows.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows<'a> {
    chunks: &'a [Chunk],
    rows: usize,
    columns: usize,
    row_chunks: usize,
}

impl<'a> PackedRows<'a> {
    /// Number of columns, without the padding.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Number of K blocks.
    #[inline(always)]
    pub(crate) fn blocks(&self) -> usize {
        self.row_chunks.div_ceil(BLOCK_CHUNKS)
    }

    /// Row `m` of block `b`.
    #[inline(always)]
    pub(crate) fn row(&self, b: usize, m: usize) -> &'a [Chunk] {
        let len = block_len(self.row_chunks, b);
        let at = b * BLOCK_CHUNKS * self.rows + m * len;
        &self.chunks[at..at + len]
    }
}

/// Chunks of a row in block `b`.
#[inline(always)]
fn block_len(row_chunks: usize, b: usize) -> usize {
    BLOCK_CHUNKS.min(row_chunks - b * BLOCK_CHUNKS)
}

/// Packs `rows` rows of `columns` into `buffer`, which grows if it must: `copy(m, chunks, to)` writes the given chunks of row m.
pub(crate) fn pack_with<'a>(
    buffer: &'a mut Vec<Chunk>,
    rows: usize,
    columns: usize,
    copy: impl Fn(usize, std::ops::Range<usize>, &mut [Chunk]) + Sync,
) -> PackedRows<'a> {
    let row_chunks = chunks_of(columns);
    let total = rows * row_chunks;
    grow(buffer, total);
    let blocks = row_chunks.div_ceil(BLOCK_CHUNKS);
    let start = |i: usize| match i.checked_div(rows) {
        Some(b) if b < blocks => b * BLOCK_CHUNKS * rows + (i % rows) * block_len(row_chunks, b),
        _ => total,
    };
    for_each_piece(0..blocks * rows, &mut buffer[..total], &start, total * LANES, &|i, to| {
        let (b, m) = (i / rows, i % rows);
        copy(m, b * BLOCK_CHUNKS..b * BLOCK_CHUNKS + to.len(), to);
    });
    PackedRows { chunks: &buffer[..total], rows, columns, row_chunks }
}

/// Packs the rows of a matrix.
pub(crate) fn pack<'a>(buffer: &'a mut Vec<Chunk>, x: ArrayView2<'_, f32>) -> PackedRows<'a> {
    let columns = x.ncols();
    pack_with(buffer, x.nrows(), columns, |m, chunks, to| {
        let (from, until) = (chunks.start * LANES, (chunks.end * LANES).min(columns));
        let to = floats_mut(to);
        let row = x.row(m);
        match row.as_slice() {
            Some(row) => to[..until - from].copy_from_slice(&row[from..until]),
            None => to.iter_mut().zip(from..until).for_each(|(to, i)| *to = row[i]),
        }
        to[until - from..].fill(0.0);
    })
}

/// Makes a buffer at least so long. Contents are unspecified.
pub(crate) fn grow(buffer: &mut Vec<Chunk>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, Chunk::ZERO);
    }
}
