//! Some consecutive queries that share a key and value head.

use std::ops::Range;

use moe_core::numerics::LANES;
use ndarray::{ArrayView1, ArrayView2, s};

use super::{AttentionShape, KvRows, alone, together};
use crate::Dtype;
use crate::element::{Element, chunks_of, padded_row_bytes, with_element};
use crate::simd::{Chunk, Kernel, Simd};
use crate::tile::StoredRows;

/// Queries of a piece, at most.
pub(super) const QUERIES: usize = 4 * LANES;

/// A key and value head, and the queries that see it: query i is head `i % group` of its group, of token `i / group`.
pub(super) struct Head<'a> {
    pub(super) shape: AttentionShape,
    /// Query heads that share this one.
    pub(super) group: usize,
    pub(super) head_chunks: usize,
    pub(super) keys: Ring<'a>,
    pub(super) values: Ring<'a>,
    index: usize,
    /// Position of the first token.
    first: usize,
    q: ArrayView2<'a, f32>,
}

impl<'a> Head<'a> {
    /// Head `index` of a cache, for tokens from position `first` on.
    pub(super) fn new(
        shape: AttentionShape,
        kv: KvRows<'a>,
        index: usize,
        first: usize,
        q: ArrayView2<'a, f32>,
    ) -> Self {
        let stride = padded_row_bytes(kv.dtype, shape.head_dim);
        let ring = |bytes| {
            let rows = StoredRows { bytes, stride }.from(index * kv.capacity);
            Ring { rows, capacity: kv.capacity }
        };
        let group = shape.heads / shape.kv_heads;
        let head_chunks = chunks_of(shape.head_dim);
        Self { shape, group, head_chunks, keys: ring(kv.keys), values: ring(kv.values), index, first, q }
    }

    /// What a query is multiplied with.
    #[inline(always)]
    pub(super) fn query(&self, i: usize) -> ArrayView1<'_, f32> {
        let from = (self.index * self.group + i % self.group) * self.shape.head_dim;
        self.q.slice(s![i / self.group, from..from + self.shape.head_dim])
    }

    /// The positions that a query sees.
    #[inline(always)]
    pub(super) fn visible(&self, i: usize) -> Range<usize> {
        self.shape.visible(self.first + i / self.group)
    }
}

/// The rows of a head in a cache that is a ring.
#[derive(Clone, Copy)]
pub(super) struct Ring<'a> {
    pub(super) rows: StoredRows<'a>,
    capacity: usize,
}

impl<'a> Ring<'a> {
    /// The row of a position, and how many rows lie from there to the end of the ring.
    #[inline(always)]
    pub(super) fn at(self, position: usize) -> (StoredRows<'a>, usize) {
        let row = position % self.capacity;
        (self.rows.from(row), self.capacity - row)
    }
}

/// Queries of a head, at most [`QUERIES`].
pub(super) struct Piece<'a> {
    pub(super) head: Head<'a>,
    pub(super) dtype: Dtype,
    pub(super) queries: Range<usize>,
    /// As much as [`scratch_chunks`] says.
    pub(super) scratch: &'a mut [Chunk],
    /// The results, one after the other.
    pub(super) y: &'a mut [Chunk],
}

/// Memory for pieces of at most so many queries, which see so many positions together.
pub(super) fn scratch_chunks(group: usize, head_chunks: usize, queries: usize, positions: usize) -> usize {
    let together = if few(group, queries) { 0 } else { together::chunks(head_chunks, positions) };
    together.max(alone::chunks(head_chunks, positions))
}

/// Whether queries are better computed token by token: vectors would be half empty.
#[inline(always)]
fn few(group: usize, queries: usize) -> bool {
    queries.div_ceil(group.min(alone::HEADS)) < 4
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.dtype, E => self.run_with::<S, E>(s));
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn run_with<S: Simd, E: Element>(self, s: S) {
        let Self { head, queries, scratch, y, .. } = self;
        if few(head.group, queries.len()) {
            alone::attend::<S, E>(s, &head, queries, scratch, y);
        } else {
            together::attend::<S, E>(s, &head, queries, scratch, y);
        }
    }
}
