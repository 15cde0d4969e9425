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
mod spans;
mod task;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use moe_core::memory::held;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;

use crate::chunk::{Chunk, chunks_of, floats, grow};
use crate::element::padded_row_bytes;
use crate::schedule::{for_each_piece, worth_threads};
use crate::{Backend, Dtype, Result};
use head::Head;
use spans::{Cut, Span, cut};
use task::QueryTask;

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

/// One of the sequences whose queries are computed together: consecutive positions, whose keys and values are in its cache already.
#[derive(Clone, Copy, Debug)]
pub struct SequenceRows<'a> {
    /// Its queries.
    pub tokens: usize,
    /// Position of the first of them.
    pub first: usize,
    /// Its cache.
    pub kv: KvRows<'a>,
}

/// Memory that attention reuses from call to call; it only grows.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    results: Vec<Chunk>,
    spans: Vec<Span>,
    /// What a piece needs meanwhile, for each thread: only one piece at a time locks it.
    threads: Vec<Mutex<Vec<Chunk>>>,
}

impl AttentionScratch {
    /// Bytes of memory that it holds on to.
    pub fn bytes(&self) -> usize {
        let of_thread =
            |memory: &Mutex<Vec<Chunk>>| held(&memory.lock().unwrap_or_else(PoisonError::into_inner));
        let of_threads = self.threads.iter().map(of_thread).sum::<usize>();
        held(&self.results) + held(&self.spans) + held(&self.threads) + of_threads
    }
}

/// [`attend_each`] of one sequence: T consecutive positions from `first` on.
///
/// # Errors
///
/// As [`attend_each`].
///
/// # Panics
///
/// As [`attend_each`].
#[track_caller]
pub fn attend(
    backend: Backend,
    shape: &AttentionShape,
    q: ArrayView2<'_, f32>,
    first: usize,
    kv: KvRows<'_>,
    scratch: &mut AttentionScratch,
    y: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    let sequence = SequenceRows { tokens: q.nrows(), first, kv };
    attend_each(backend, shape, q, 1, &|_| sequence, scratch, y)
}

/// Computes the attention of several sequences in one flat parallel pass: however few queries each has, all threads have work.
///
/// `q` is `[T, heads · head_dim]`, rotated, the queries of `sequence(0)` first, then those of `sequence(1)`, up to `count` of
/// them; `y` has the same shape and is overwritten. A query's result does not depend on the other sequences.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
///
/// # Panics
///
/// If the shapes do not fit, the sequences have not T queries together, heads have no width or no window, or a cache does not hold
/// every position that one of its queries sees.
#[track_caller]
pub fn attend_each<'a>(
    backend: Backend,
    shape: &AttentionShape,
    q: ArrayView2<'_, f32>,
    count: usize,
    sequence: &(impl Fn(usize) -> SequenceRows<'a> + Sync),
    scratch: &mut AttentionScratch,
    mut y: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    let (tokens, AttentionShape { heads, kv_heads, head_dim, .. }) = (q.nrows(), *shape);
    assert!(kv_heads > 0 && heads % kv_heads == 0, "query heads in whole groups");
    assert!(head_dim > 0 && shape.window != Some(0), "heads of some width that see something");
    assert_eq!(q.ncols(), heads * head_dim, "width of the queries");
    assert_eq!(y.dim(), q.dim(), "shape of the output");
    (0..count).for_each(|s| sequence(s).check(shape));
    assert_eq!((0..count).map(|s| sequence(s).tokens).sum::<usize>(), tokens, "queries of the sequences");
    if tokens == 0 || heads == 0 {
        return Ok(());
    }

    let (group, head_chunks) = (heads / kv_heads, chunks_of(head_dim));
    let AttentionScratch { results, spans, threads } = scratch;
    let Cut { tasks, chunks, memory, cost } = cut(shape, (0..count).map(sequence), tokens, spans)?;
    grow(results, chunks, "results of attention")?;
    let results = &mut results[..chunks];
    threads.resize_with(threads.len().max(rayon::current_num_threads()), Default::default);
    for of_thread in threads.iter_mut() {
        let of_thread = of_thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        grow(of_thread, memory, "scores of attention")?;
    }
    let (spans, threads) = (&**spans, &*threads);
    let start = |task: usize| spans[Span::of_task(spans, task)].start(task, head_chunks);
    for_each_piece(0..tasks, results, &start, cost, &|task, y| {
        let of_thread = &threads[rayon::current_thread_index().unwrap_or(0)];
        let mut scratch = of_thread.lock().unwrap_or_else(PoisonError::into_inner);
        let s = Span::of_task(spans, task);
        let (span, SequenceRows { tokens, first, kv }) = (&spans[s], sequence(s));
        let q = q.slice_axis(Axis(0), Slice::from(span.row..span.row + tokens));
        let head = Head::new(*shape, kv, (task - span.task) / span.pieces, first, q);
        let from = (task - span.task) % span.pieces * span.of_piece;
        let queries = from..(tokens * group).min(from + span.of_piece);
        backend.run(QueryTask { head, dtype: kv.dtype, queries, scratch: &mut scratch, y });
    });
    let result = |t: usize, head: usize| {
        let span = &spans[Span::of_row(spans, t)];
        let query = (t - span.row) * group + head % group;
        let chunk = span.chunk + (head / group * span.pieces * span.of_piece + query) * head_chunks;
        &floats(&results[chunk..chunk + head_chunks])[..head_dim]
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

impl SequenceRows<'_> {
    #[track_caller]
    fn check(&self, shape: &AttentionShape) {
        let Self { tokens, kv, .. } = *self;
        let rows = shape.kv_heads * kv.capacity * padded_row_bytes(kv.dtype, shape.head_dim);
        assert_eq!((kv.keys.len(), kv.values.len()), (rows, rows), "size of the cache");
        assert!(
            tokens == 0 || self.seen(shape) <= kv.capacity,
            "the cache holds every position that one of the queries sees"
        );
    }

    /// Positions that one of its queries sees.
    fn seen(&self, shape: &AttentionShape) -> usize {
        self.first + self.tokens - shape.visible(self.first).start
    }
}
