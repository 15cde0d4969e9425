//! Some consecutive queries that share a key and value head.

use std::ops::Range;

use super::head::Head;
use super::{lanes_are_dims, lanes_are_queries};
use crate::Dtype;
use crate::chunk::Chunk;
use crate::element::{Element, with_element};
use crate::simd::{Kernel, Simd};

/// Queries of a head, at most [`QUERIES`](super::head::QUERIES).
pub(super) struct QueryTask<'a> {
    pub(super) head: Head<'a>,
    pub(super) dtype: Dtype,
    pub(super) queries: Range<usize>,
    /// As much as [`scratch_chunks`] says.
    pub(super) scratch: &'a mut [Chunk],
    /// The results, one after the other.
    pub(super) y: &'a mut [Chunk],
}

/// Memory for tasks of at most so many queries, which see so many positions together.
pub(super) fn scratch_chunks(group: usize, head_chunks: usize, queries: usize, positions: usize) -> usize {
    let together = if better_token_by_token(group, queries) {
        0
    } else {
        lanes_are_queries::chunks(head_chunks, positions)
    };
    together.max(lanes_are_dims::chunks(head_chunks, positions))
}

/// Whether queries are better computed token by token: vectors would be half empty.
#[inline(always)]
fn better_token_by_token(group: usize, queries: usize) -> bool {
    queries.div_ceil(group.min(lanes_are_dims::HEADS)) < 4
}

impl Kernel for QueryTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.dtype, E => self.run_with::<S, E>(s));
    }
}

impl QueryTask<'_> {
    #[inline(always)]
    fn run_with<S: Simd, E: Element>(self, s: S) {
        let Self { head, queries, scratch, y, .. } = self;
        if better_token_by_token(head.group, queries.len()) {
            lanes_are_dims::attend::<S, E>(s, &head, queries, scratch, y);
        } else {
            lanes_are_queries::attend::<S, E>(s, &head, queries, scratch, y);
        }
    }
}
