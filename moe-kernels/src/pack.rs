//! Rows laid out for products: one K block after the other, in each block tile by tile, padded with zeros to whole chunks.
//!
//! A tile of rows is then one stretch of memory for each block ([`place`]), where plain rows of 4096 would compete for the
//! same lines of the cache.

use std::ops::Range;

use moe_core::Dispatch;
use moe_core::numerics::{BLOCK, LANES, PAIRS_BLOCK, round_to_bf16};
use ndarray::{ArrayView1, ArrayView2};

use crate::grouped::Group;
use crate::schedule::for_each_piece;
use crate::simd::Chunk;
use crate::tile::place;
use crate::{Activations, Backend};

/// Stored chunks of weights in a whole K block.
pub(crate) const BLOCK_CHUNKS: usize = BLOCK / LANES;

// A stored chunk of pairs holds as many terms as two of x in f32.
const _: () = assert!(PAIRS_BLOCK == 2 * BLOCK);

/// Rows of a tile, whose chunks alternate. A group's last tile may have fewer.
pub(crate) const TILE_ROWS: usize = 4;

/// What a chunk of packed rows is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Sixteen activations as they are.
    Plain,
    /// Thirty-two, rounded to bfloat16.
    Pairs,
    /// Half of thirty-two, rounded to bfloat16 and widened again: those of odd index, or, in the next chunk, of even.
    Halves,
}

/// How rows are packed.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) content: Content,
    /// Parts of a chunk, which lie apart ([`place`]).
    parts: usize,
}

impl Layout {
    /// How this kind of activations is laid out for this backend.
    pub(crate) fn of(activations: Activations, backend: Backend) -> Self {
        let content = match activations {
            Activations::F32 => Content::Plain,
            Activations::Bf16 if backend.has_pairs() => Content::Pairs,
            Activations::Bf16 => Content::Halves,
        };
        Self { content, parts: backend.parts() }
    }

    /// Activations that a chunk, or a pair of chunks, holds.
    fn count(self) -> usize {
        match self.content {
            Content::Plain => LANES,
            Content::Pairs | Content::Halves => 2 * LANES,
        }
    }

    /// Chunks that hold so many.
    fn chunks(self) -> usize {
        match self.content {
            Content::Plain | Content::Pairs => 1,
            Content::Halves => 2,
        }
    }
}

/// Packed rows.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows<'a> {
    chunks: &'a [Chunk],
    layout: Layout,
    rows: usize,
    columns: usize,
    row_chunks: usize,
}

impl<'a> PackedRows<'a> {
    /// What their chunks are.
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

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
        self.row_chunks.div_ceil(self.block_chunks())
    }

    /// Block `b` of the tiles that these rows are.
    #[inline(always)]
    pub(crate) fn tiles(&self, b: usize, rows: Range<usize>) -> &'a [Chunk] {
        let len = self.block_len(b);
        let at = b * self.block_chunks() * self.rows;
        &self.chunks[at + rows.start * len..at + rows.end * len]
    }

    /// Chunks of a row in a whole block.
    #[inline(always)]
    fn block_chunks(&self) -> usize {
        BLOCK_CHUNKS * self.layout.chunks()
    }

    /// Chunks of a row in block `b`.
    #[inline(always)]
    pub(crate) fn block_len(&self, b: usize) -> usize {
        self.block_chunks().min(self.row_chunks - b * self.block_chunks())
    }
}

/// Packs rows of `columns` into `buffer`, which grows if it must: `sixteen(g, m, j, to)` copies the sixteen activations from
/// column 16 · j on of row m, which is in group g; `to` is zeros before. Groups cover all rows, in order.
pub(crate) fn pack_with<'a>(
    layout: Layout,
    buffer: &'a mut Vec<Chunk>,
    groups: &[Group],
    columns: usize,
    sixteen: impl Fn(&Group, usize, usize, &mut [f32; LANES]) + Sync,
) -> PackedRows<'a> {
    let rows = groups.last().map_or(0, |g| g.rows.end);
    let units = columns.div_ceil(layout.count());
    let mut packed = PackedRows { chunks: &[], layout, rows, columns, row_chunks: units * layout.chunks() };
    let total = rows * packed.row_chunks;
    grow(buffer, total);
    let blocks = packed.blocks();
    let start = |i: usize| match groups.get(i % groups.len().max(1)) {
        Some(g) if i < blocks * groups.len() => {
            let b = i / groups.len();
            b * packed.block_chunks() * rows + g.rows.start * packed.block_len(b)
        }
        _ => total,
    };
    for_each_piece(0..blocks * groups.len(), &mut buffer[..total], &start, total * LANES, &|i, to| {
        let (b, group) = (i / groups.len(), &groups[i % groups.len()]);
        let len = packed.block_len(b);
        for (t, to) in to.chunks_mut(TILE_ROWS * len).enumerate() {
            let first = group.rows.start + t * TILE_ROWS;
            let rows = to.len() / len;
            for j in 0..len / layout.chunks() {
                for m in 0..rows {
                    let mut place =
                        |i, chunk: &_| place(layout.parts, to, rows, m, j * layout.chunks() + i, chunk);
                    let column = b * BLOCK_CHUNKS + j;
                    let mut wide = [[0.0; LANES]; 2];
                    if layout.content == Content::Plain {
                        sixteen(group, first + m, column, &mut wide[0]);
                        place(0, &wide[0]);
                        continue;
                    }
                    sixteen(group, first + m, 2 * column, &mut wide[0]);
                    if (2 * column + 1) * LANES < columns {
                        sixteen(group, first + m, 2 * column + 1, &mut wide[1]);
                    }
                    let (odd, even) = rounded(wide.as_flattened());
                    if layout.content == Content::Pairs {
                        let pair = |i: usize| f32::from_bits(odd[i].to_bits() | even[i].to_bits() >> 16);
                        place(0, &std::array::from_fn(pair));
                    } else {
                        place(0, &odd);
                        place(1, &even);
                    }
                }
            }
        }
    });
    packed.chunks = &buffer[..total];
    packed
}

/// The activations of odd index, and those of even, rounded.
#[inline(always)]
fn rounded(wide: &[f32]) -> ([f32; LANES], [f32; LANES]) {
    let every_other = |first: usize| std::array::from_fn(|i| round_to_bf16(wide[2 * i + first]));
    (every_other(1), every_other(0))
}

/// Packs the rows of a matrix.
pub(crate) fn pack<'a>(
    layout: Layout,
    buffer: &'a mut Vec<Chunk>,
    groups: &[Group],
    x: ArrayView2<'_, f32>,
) -> PackedRows<'a> {
    pack_with(layout, buffer, groups, x.ncols(), |_, m, j, to| sixteen_of(x.row(m), j, to))
}

/// Packs what the experts of a dispatch see.
pub(crate) fn pack_dispatch<'a>(
    layout: Layout,
    buffer: &'a mut Vec<Chunk>,
    groups: &[Group],
    dispatch: &Dispatch<'_>,
) -> PackedRows<'a> {
    pack_with(layout, buffer, groups, dispatch.dim(), |_, m, j, to| {
        sixteen_of(dispatch.row(m), j, to);
        if let Some(weights) = dispatch.input_weights() {
            to.iter_mut().for_each(|x| *x *= weights[m]);
        }
    })
}

/// Copies the numbers of a row from column 16 · j on, as many as there are.
#[inline(always)]
fn sixteen_of(row: ArrayView1<'_, f32>, j: usize, to: &mut [f32; LANES]) {
    let (from, until) = (j * LANES, ((j + 1) * LANES).min(row.len()));
    match row.as_slice() {
        Some(row) => match row[from..until].first_chunk() {
            Some(whole) => *to = *whole,
            None => {
                to[..until - from].copy_from_slice(&row[from..until]);
            }
        },
        None => {
            to.iter_mut().zip(from..until).for_each(|(to, i)| *to = row[i]);
        }
    }
}

/// Makes a buffer at least so long. Contents are unspecified.
pub(crate) fn grow(buffer: &mut Vec<Chunk>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, Chunk::ZERO);
    }
}
