//! Attention of one layer over a cache of keys and values, in one canonical order.
//!
//! For a query at position p, over its visible positions j:
//! `score(j) = (q · k(j)) · scale`, `a(j) = exp(score(j) - max score)`, `y = Σ a(j) v(j) / Σ a(j)`.
//!
//! A score is a canonical dot product. Positions are cut into blocks of [`POSITIONS`] absolute positions; within a block
//! sum and weighted values are sequential chains over the positions that are visible (a fused multiply-add a value), and
//! block results are added in order. So a result does not depend on where a window or a chunk begins.

mod head;
mod lanes_are_dims;
mod lanes_are_queries;
mod task;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use moe_core::memory::held;
use moe_core::numerics::LANES;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::chunk::{Chunk, chunks_of, floats, grow};
use crate::element::padded_row_bytes;
use crate::schedule::{for_each_piece, worth_threads};
use crate::{Backend, Dtype, Result};
use head::{Head, QUERIES};
use task::{QueryTask, scratch_chunks};

/// Absolute positions in a block.
pub const POSITIONS: usize = 64;

/// Shape of an attention layer: `heads` query heads in groups that share `kv_heads` key and value heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// What scores are multiplied by, `1/√head_dim` in nearly every model.
    pub scale: f32,
    /// A query at position p sees positions p - window + 1 to p; `None` is all up to p.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// The positions that a query at `position` sees.
    pub fn visible(&self, position: usize) -> Range<usize> {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }
}

/// A cache's keys and values: position p of head h is row `h · capacity + p % capacity`, each row padded to whole chunks
/// ([`padded_row_bytes`]) with zeros.
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    /// All key rows.
    pub keys: &'a [u8],
    /// All value rows.
    pub values: &'a [u8],
    /// Element type of both.
    pub dtype: Dtype,
    /// Rows a head.
    pub capacity: usize,
}

/// Memory that attention reuses from call to call; it only grows.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    results: Vec<Chunk>,
    /// What a piece needs meanwhile, for each thread: only one piece at a time locks it.
    threads: Vec<Mutex<Vec<Chunk>>>,
}

impl AttentionScratch {
    /// Bytes of memory that it holds on to.
    pub fn bytes(&self) -> usize {
        let of_thread =
            |memory: &Mutex<Vec<Chunk>>| held(&memory.lock().unwrap_or_else(PoisonError::into_inner));
        held(&self.results) + held(&self.threads) + self.threads.iter().map(of_thread).sum::<usize>()
    }
}

/// Computes the attention of T consecutive positions from `first` on, whose keys and values are in the cache already.
///
/// `q` is `[T, heads · head_dim]`, rotated; `y` has the same shape and is overwritten.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
///
/// # Panics
///
/// If the shapes do not fit, heads have no width or no window, or the cache does not hold every position that one of the
/// queries sees.
#[track_caller]
pub fn attend(
    backend: Backend,
    shape: &AttentionShape,
    q: ArrayView2<'_, f32>,
    first: usize,
    kv: KvRows<'_>,
    scratch: &mut AttentionScratch,
    mut y: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    let (tokens, AttentionShape { heads, kv_heads, head_dim, .. }) = (q.nrows(), *shape);
    assert!(kv_heads > 0 && heads % kv_heads == 0, "query heads in whole groups");
    assert!(head_dim > 0 && shape.window != Some(0), "heads of some width that see something");
    assert_eq!(q.ncols(), heads * head_dim, "width of the queries");
    assert_eq!(y.dim(), q.dim(), "shape of the output");
    let rows = kv_heads * kv.capacity * padded_row_bytes(kv.dtype, head_dim);
    assert_eq!((kv.keys.len(), kv.values.len()), (rows, rows), "size of the cache");
    if tokens == 0 || heads == 0 {
        return Ok(());
    }
    let held = first + tokens - shape.visible(first).start;
    assert!(held <= kv.capacity, "the cache holds every position that one of the queries sees");

    let group = heads / kv_heads;
    let (queries, head_chunks) = (tokens * group, chunks_of(head_dim));
    // Whole vectors of queries, and several pieces for each thread.
    let of_piece = (kv_heads * queries).div_ceil(4 * rayon::current_num_threads());
    let of_piece = of_piece.next_multiple_of(LANES).min(QUERIES).min(queries);
    let pieces = queries.div_ceil(of_piece);
    let piece_chunks = of_piece * head_chunks;
    let AttentionScratch { results, threads } = scratch;
    grow(results, kv_heads * pieces * piece_chunks, "results of attention")?;
    let results = &mut results[..kv_heads * pieces * piece_chunks];
    // Of one query, and of all in a piece: its tokens are consecutive.
    let most = shape.visible(first + tokens - 1).len();
    let positions = held.min(most + of_piece.div_ceil(group));
    let needed = scratch_chunks(group, head_chunks, of_piece, positions);
    threads.resize_with(threads.len().max(rayon::current_num_threads()), Default::default);
    for memory in threads.iter_mut() {
        let memory = memory.get_mut().unwrap_or_else(PoisonError::into_inner);
        grow(memory, needed, "scores of attention")?;
    }
    let threads = &*threads;
    let cost = [2, tokens, heads, head_dim].into_iter().fold(most, usize::saturating_mul);
    for_each_piece(0..kv_heads * pieces, results, &|i| i * piece_chunks, cost, &|i, y| {
        let of_thread = &threads[rayon::current_thread_index().unwrap_or(0)];
        let mut scratch = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
        let head = Head::new(*shape, kv, i / pieces, first, q);
        let from = i % pieces * of_piece;
        let queries = from..queries.min(from + of_piece);
        backend.run(QueryTask { head, dtype: kv.dtype, queries, scratch: &mut scratch, y });
    });
    let result = |t: usize, head: usize| {
        let query = head / group * pieces * of_piece + t * group + head % group;
        &floats(&results[query * head_chunks..(query + 1) * head_chunks])[..head_dim]
    };
    match y.as_slice_mut() {
        Some(y) if worth_threads(y.len()) => {
            y.par_chunks_exact_mut(heads * head_dim).enumerate().for_each(|(t, row)| {
                for (head, to) in row.chunks_exact_mut(head_dim).enumerate() {
                    to.copy_from_slice(result(t, head));
                }
            });
        }
        _ => {
            for (t, mut row) in y.axis_iter_mut(Axis(0)).enumerate() {
                for head in 0..heads {
                    let to = row.iter_mut().skip(head * head_dim);
                    to.zip(result(t, head)).for_each(|(to, from)| *to = *from);
                }
            }
        }
    }
    Ok(())
}
