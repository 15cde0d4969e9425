//! A key and value head in its cache, and the queries that see it.

use std::ops::Range;

use moe_core::numerics::LANES;
use ndarray::{ArrayView1, ArrayView2, s};

use super::{AttentionShape, KvRows};
use crate::chunk::chunks_of;
use crate::element::padded_row_bytes;
use crate::tile::StoredRows;

/// Queries of a task, at most.
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
