//! Rows of x laid out for products: one K block after the other, in each block tile by tile.
//!
//! The index order is `[K block][group][tile][chunks of the tile's rows, in an order of the packing's own]`. A tile of rows
//! is then one stretch of memory for each block, where plain rows of 4096 floats would compete for the same lines of the
//! cache, and what a sweep needs of one block lies together.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use moe_core::Dispatch;
use moe_core::memory::held;
use moe_core::numerics::{BLOCK, LANES, PAIRS_BLOCK};
use ndarray::{ArrayView1, ArrayView2};

use crate::chunk::{Chunk, grow};
use crate::kind::{bf16, exact, int8};
use crate::schedule::for_each_piece;
use crate::{Backend, Error, Result};

/// How activations are packed. It follows from the kind of product, so that kinds with the same packing share packed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packing {
    pub(crate) packed_as: PackedAs,
    /// Halves of a chunk, which lie apart ([`store_in_tile`](crate::tile::store_in_tile)).
    pub(crate) halves: usize,
    /// Rows of a tile. A group's last tile may have fewer.
    pub(crate) tile_rows: usize,
    backend: Backend,
}

/// What packed rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackedAs {
    /// Activations as they are, sixteen a chunk.
    F32,
    /// Activations rounded to bfloat16, thirty-two a chunk.
    Pairs,
    /// Activations rounded to bfloat16 and widened again, thirty-two in two chunks: those of odd index, then those of even.
    OddsThenEvens,
    /// Activations rounded to int8 by blocks of 32, with their scales and sums.
    Int8By32,
    /// The same by blocks of 256.
    Int8By256,
}

impl PackedAs {
    /// How many ways of packing there are.
    pub(crate) const COUNT: usize = 5;

    /// Its place among all.
    fn slot(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::Pairs => 1,
            Self::OddsThenEvens => 2,
            Self::Int8By32 => 3,
            Self::Int8By256 => 4,
        }
    }

    /// Elements of K in a whole block.
    #[inline(always)]
    pub(crate) fn block(self) -> usize {
        match self {
            Self::F32 | Self::Int8By32 | Self::Int8By256 => BLOCK,
            Self::Pairs | Self::OddsThenEvens => PAIRS_BLOCK,
        }
    }

    /// Chunks that so many activations of one row fill, at most a block of them.
    #[inline(always)]
    fn chunks(self, activations: usize) -> usize {
        match self {
            Self::F32 => activations.div_ceil(LANES),
            Self::Pairs => activations.div_ceil(2 * LANES),
            Self::OddsThenEvens => 2 * activations.div_ceil(2 * LANES),
            Self::Int8By32 => int8::chunks::<32>(activations),
            Self::Int8By256 => int8::chunks::<256>(activations),
        }
    }
}

impl Packing {
    /// Rows of `packed_as` for this backend.
    pub(crate) fn new(packed_as: PackedAs, backend: Backend) -> Self {
        let tile_rows = match packed_as {
            PackedAs::Int8By32 | PackedAs::Int8By256 => int8::TILE_ROWS,
            _ => exact::TILE_ROWS,
        };
        Self { packed_as, halves: backend.halves(), tile_rows, backend }
    }
}

/// Packed rows.
#[derive(Clone, Copy)]
pub(crate) struct PackedRows<'a> {
    chunks: &'a [Chunk],
    packed_as: PackedAs,
    rows: usize,
    columns: usize,
}

impl<'a> PackedRows<'a> {
    /// Number of K blocks.
    #[inline(always)]
    pub(crate) fn blocks(&self) -> usize {
        self.columns.div_ceil(self.packed_as.block())
    }

    /// Chunks of a row in block `b`.
    #[inline(always)]
    pub(crate) fn block_len(&self, b: usize) -> usize {
        let block = self.packed_as.block();
        self.packed_as.chunks(block.min(self.columns - b * block))
    }

    /// Bytes of a row.
    #[inline(always)]
    pub(crate) fn row_bytes(&self) -> usize {
        (self.block_start(self.blocks()) / self.rows.max(1)) * size_of::<Chunk>()
    }

    /// Block `b` of rows that begin where a tile begins.
    #[inline(always)]
    pub(crate) fn tiles(&self, b: usize, rows: Range<usize>) -> &'a [Chunk] {
        let (start, len) = (self.block_start(b), self.block_len(b));
        &self.chunks[start + rows.start * len..start + rows.end * len]
    }

    /// Where block `b` begins; for the number of blocks, where everything ends.
    #[inline(always)]
    fn block_start(&self, b: usize) -> usize {
        let block = self.packed_as.block();
        let whole = b.min(self.columns / block);
        let rest = if b > whole { self.packed_as.chunks(self.columns % block) } else { 0 };
        (whole * self.packed_as.chunks(block) + rest) * self.rows
    }
}

/// Where rows come from, to be packed.
pub(crate) trait RowSource: Sync {
    /// Number of columns.
    fn columns(&self) -> usize;

    /// Copies the activations from column `16 * j` on of row m, which is in group number `group`: sixteen, or as many as
    /// there are. `to` is zeros before.
    fn read_chunk(&self, group: usize, m: usize, j: usize, to: &mut [f32; LANES]);
}

impl RowSource for ArrayView2<'_, f32> {
    fn columns(&self) -> usize {
        self.ncols()
    }

    #[inline(always)]
    fn read_chunk(&self, _: usize, m: usize, j: usize, to: &mut [f32; LANES]) {
        read_chunk_of(self.row(m), j, to);
    }
}

/// The rows that experts see: hidden states by their index, times the row's weight where that multiplies the input.
impl RowSource for Dispatch<'_> {
    fn columns(&self) -> usize {
        self.dim()
    }

    #[inline(always)]
    fn read_chunk(&self, _: usize, m: usize, j: usize, to: &mut [f32; LANES]) {
        read_chunk_of(self.row(m), j, to);
        if let Some(weights) = self.input_weights() {
            to.iter_mut().for_each(|x| *x *= weights[m]);
        }
    }
}

#[inline(always)]
fn read_chunk_of(row: ArrayView1<'_, f32>, j: usize, to: &mut [f32; LANES]) {
    let (from, until) = (j * LANES, ((j + 1) * LANES).min(row.len()));
    match row.as_slice() {
        Some(row) => match row[from..until].first_chunk() {
            Some(whole) => *to = *whole,
            None => to[..until - from].copy_from_slice(&row[from..until]),
        },
        None => to.iter_mut().zip(from..until).for_each(|(to, i)| *to = row[i]),
    }
}

/// The rows of one pass, in every packing that one of its products wants.
#[derive(Clone, Copy)]
pub(crate) struct PackedSet<'a> {
    packed: [Option<PackedRows<'a>>; PackedAs::COUNT],
}

impl<'a> PackedSet<'a> {
    /// The rows in this packing.
    ///
    /// # Panics
    ///
    /// If they were not packed so.
    pub(crate) fn of(&self, packing: Packing) -> PackedRows<'a> {
        self.packed[packing.packed_as.slot()].expect("rows are packed for every kind of product in the pass")
    }
}

/// Memory of packed rows, for each packing.
#[derive(Debug, Default)]
pub(crate) struct PackedMemory([Vec<Chunk>; PackedAs::COUNT]);

impl PackedMemory {
    /// Bytes of memory that it holds on to.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(held).sum()
    }

    /// Packs rows in each of `packings`. Groups cover all rows, in order.
    ///
    /// # Errors
    ///
    /// [`Error::InputNotFinite`] where one of the packings has no NaN and no infinity, and rows have; [`Error::OutOfMemory`].
    pub(crate) fn pack(
        &mut self,
        packings: impl IntoIterator<Item = Packing>,
        groups: &[Range<usize>],
        source: &impl RowSource,
    ) -> Result<PackedSet<'_>> {
        let mut wanted = [None; PackedAs::COUNT];
        for packing in packings {
            wanted[packing.packed_as.slot()] = Some(packing);
        }
        let mut set = PackedSet { packed: [None; PackedAs::COUNT] };
        for ((packed, memory), packing) in set.packed.iter_mut().zip(&mut self.0).zip(wanted) {
            if let Some(packing) = packing {
                *packed = Some(pack(packing, memory, groups, source)?);
            }
        }
        Ok(set)
    }
}

/// Packs rows into `memory`, which grows if it must: a parallel pass over (K block, group).
fn pack<'a>(
    packing: Packing,
    memory: &'a mut Vec<Chunk>,
    groups: &[Range<usize>],
    source: &impl RowSource,
) -> Result<PackedRows<'a>> {
    let rows = groups.last().map_or(0, |g| g.end);
    let columns = source.columns();
    let mut packed = PackedRows { chunks: &[], packed_as: packing.packed_as, rows, columns };
    let blocks = packed.blocks();
    let total = packed.block_start(blocks);
    grow(memory, total, "packed rows")?;
    let start = |i: usize| match groups.get(i % groups.len().max(1)) {
        Some(g) if i < blocks * groups.len() => {
            let b = i / groups.len();
            packed.block_start(b) + g.start * packed.block_len(b)
        }
        _ => total,
    };
    let first_bad = AtomicUsize::new(usize::MAX);
    for_each_piece(0..blocks * groups.len(), &mut memory[..total], &start, total * LANES, &|i, to| {
        let (b, group) = (i / groups.len(), i % groups.len());
        let len = packed.block_len(b);
        for (t, to) in to.chunks_mut(packing.tile_rows * len).enumerate() {
            let first = groups[group].start + t * packing.tile_rows;
            let tile = Tile { group, rows: first..first + to.len() / len, b, halves: packing.halves };
            match packing.packed_as {
                PackedAs::F32 => exact::pack_tile(source, tile, to),
                PackedAs::Pairs => bf16::pack_pairs(source, tile, to),
                PackedAs::OddsThenEvens => bf16::pack_odds_then_evens(source, tile, to),
                PackedAs::Int8By32 => int8::pack_tile::<32>(packing.backend, source, tile, to, &first_bad),
                PackedAs::Int8By256 => int8::pack_tile::<256>(packing.backend, source, tile, to, &first_bad),
            }
        }
    });
    let row = first_bad.into_inner();
    if row < rows {
        return Err(Error::InputNotFinite { row });
    }
    packed.chunks = &memory[..total];
    Ok(packed)
}

/// Which rows a tile packs, and which block of K.
pub(crate) struct Tile {
    pub(crate) group: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) b: usize,
    pub(crate) halves: usize,
}
