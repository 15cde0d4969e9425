//! Rows laid out for products: one K block after the other, in each block row by row, padded with zeros to whole chunks.
//!
//! A tile of rows is then one stretch of memory for each block, where plain rows of 4096 would compete for the same lines
//! of the cache.

use moe_core::numerics::{BLOCK, LANES};
use ndarray::ArrayView2;

use crate::element::chunks_of;
use crate::grouped::Group;
use crate::schedule::for_each_piece;
use crate::simd::Chunk;

/// Chunks in a whole K block.
pub(crate) const BLOCK_CHUNKS: usize = BLOCK / LANES;

/// Rows of a tile, whose chunks alternate. A group's last tile may have fewer.
pub(crate) const TILE_ROWS: usize = 4;

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

    /// Bytes of a row.
    #[inline(always)]
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_chunks * size_of::<Chunk>()
    }

    /// Number of K blocks.
    #[inline(always)]
    pub(crate) fn blocks(&self) -> usize {
        self.row_chunks.div_ceil(BLOCK_CHUNKS)
    }

    /// Block `b` of the tile that begins with row `m` and has so many `rows`: for each chunk of columns, that of each row.
    #[inline(always)]
    pub(crate) fn tile(&self, b: usize, m: usize, rows: usize) -> &'a [Chunk] {
        let len = block_len(self.row_chunks, b);
        let at = b * BLOCK_CHUNKS * self.rows + m * len;
        &self.chunks[at..at + rows * len]
    }
}

/// Chunks of a row in block `b`.
#[inline(always)]
fn block_len(row_chunks: usize, b: usize) -> usize {
    BLOCK_CHUNKS.min(row_chunks - b * BLOCK_CHUNKS)
}

/// Packs rows of `columns` into `buffer`, which grows if it must: `chunk(g, m, j)` is chunk j of row m, which is in group g.
/// Groups cover all rows, in order.
pub(crate) fn pack_with<'a>(
    buffer: &'a mut Vec<Chunk>,
    groups: &[Group],
    columns: usize,
    chunk: impl Fn(&Group, usize, usize, &mut Chunk) + Sync,
) -> PackedRows<'a> {
    let rows = groups.last().map_or(0, |g| g.rows.end);
    let row_chunks = chunks_of(columns);
    let total = rows * row_chunks;
    grow(buffer, total);
    let blocks = row_chunks.div_ceil(BLOCK_CHUNKS);
    let start = |i: usize| match groups.get(i % groups.len().max(1)) {
        Some(g) if i < blocks * groups.len() => {
            let b = i / groups.len();
            b * BLOCK_CHUNKS * rows + g.rows.start * block_len(row_chunks, b)
        }
        _ => total,
    };
    for_each_piece(0..blocks * groups.len(), &mut buffer[..total], &start, total * LANES, &|i, to| {
        let (b, group) = (i / groups.len(), &groups[i % groups.len()]);
        let len = block_len(row_chunks, b);
        for (t, to) in to.chunks_mut(TILE_ROWS * len).enumerate() {
            let first = group.rows.start + t * TILE_ROWS;
            let rows = to.len() / len;
            for (j, to) in to.chunks_exact_mut(rows).enumerate() {
                for (m, to) in to.iter_mut().enumerate() {
                    chunk(group, first + m, b * BLOCK_CHUNKS + j, to);
                }
            }
        }
    });
    PackedRows { chunks: &buffer[..total], rows, columns, row_chunks }
}

/// Packs the rows of a matrix.
pub(crate) fn pack<'a>(
    buffer: &'a mut Vec<Chunk>,
    groups: &[Group],
    x: ArrayView2<'_, f32>,
) -> PackedRows<'a> {
    let columns = x.ncols();
    pack_with(buffer, groups, columns, |_, m, j, to| {
        let row = x.row(m);
        let (from, until) = (j * LANES, ((j + 1) * LANES).min(columns));
        match row.as_slice() {
            Some(row) => match row[from..until].first_chunk() {
                Some(whole) => to.0 = *whole,
                None => {
                    to.0.fill(0.0);
                    to.0[..until - from].copy_from_slice(&row[from..until]);
                }
            },
            None => {
                to.0.fill(0.0);
                to.iter_mut().zip(from..until).for_each(|(to, i)| *to = row[i]);
            }
        }
    })
}

/// Makes a buffer at least so long. Contents are unspecified.
pub(crate) fn grow(buffer: &mut Vec<Chunk>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, Chunk::ZERO);
    }
}
