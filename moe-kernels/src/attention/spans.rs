//! How the queries of several sequences are cut into tasks, and where results go.

use moe_core::memory;
use moe_core::numerics::LANES;

use super::head::QUERIES;
use super::task::scratch_chunks;
use super::{AttentionShape, SequenceRows};
use crate::Result;
use crate::chunk::chunks_of;

/// The tasks of one sequence: `[kv head][piece]`, each of so many queries, whose results follow each other in this order.
#[derive(Debug)]
pub(super) struct Span {
    /// The first row of its queries.
    pub(super) row: usize,
    /// The first task.
    pub(super) task: usize,
    /// Where the results of that begin.
    pub(super) chunk: usize,
    /// Pieces that the queries of a key and value head are cut into.
    pub(super) pieces: usize,
    /// Queries of a piece; the last may have fewer, and leaves memory over.
    pub(super) of_piece: usize,
}

/// What all tasks come to.
#[derive(Default)]
pub(super) struct Cut {
    /// How many there are.
    pub(super) tasks: usize,
    /// Memory for their results.
    pub(super) chunks: usize,
    /// Memory that a task needs meanwhile, at most.
    pub(super) memory: usize,
    /// Multiply-adds, about.
    pub(super) cost: usize,
}

/// Cuts the queries of sequences, `tokens` together, into whole vectors, and several pieces for each thread where there are so many.
pub(super) fn cut<'a>(
    shape: &AttentionShape,
    sequences: impl ExactSizeIterator<Item = SequenceRows<'a>>,
    tokens: usize,
    spans: &mut Vec<Span>,
) -> Result<Cut> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let (group, head_chunks) = (heads / kv_heads, chunks_of(head_dim));
    let most_of_piece = (heads * tokens).div_ceil(4 * rayon::current_num_threads());
    let most_of_piece = most_of_piece.next_multiple_of(LANES).min(QUERIES);
    spans.clear();
    memory::reserve(spans, sequences.len(), "sequences of attention")?;
    let (mut row, mut all) = (0, Cut::default());
    for sequence in sequences {
        let queries = sequence.tokens * group;
        let of_piece = most_of_piece.min(queries).max(1);
        let pieces = queries.div_ceil(of_piece);
        spans.push(Span { row, task: all.tasks, chunk: all.chunks, pieces, of_piece });
        if queries > 0 {
            // Of one query, and of all in a piece: its tokens are consecutive.
            let most = shape.visible(sequence.first + sequence.tokens - 1).len();
            let positions = sequence.seen(shape).min(most + of_piece.div_ceil(group));
            all.memory = all.memory.max(scratch_chunks(group, head_chunks, of_piece, positions));
            let cost = [2, sequence.tokens, heads, head_dim].into_iter().fold(most, usize::saturating_mul);
            all.cost = all.cost.saturating_add(cost);
        }
        row += sequence.tokens;
        all.tasks += kv_heads * pieces;
        all.chunks += kv_heads * pieces * of_piece * head_chunks;
    }
    Ok(all)
}

impl Span {
    /// The place of the span that a task is of. Those of no tasks end where they begin, before the next.
    pub(super) fn of_task(spans: &[Self], task: usize) -> usize {
        spans.partition_point(|span| span.task <= task) - 1
    }

    /// The place of the span that a row is of.
    pub(super) fn of_row(spans: &[Self], row: usize) -> usize {
        spans.partition_point(|span| span.row <= row) - 1
    }

    /// Where the results of one of its tasks, or of the one behind its last, begin.
    pub(super) fn start(&self, task: usize, head_chunks: usize) -> usize {
        self.chunk + (task - self.task) * self.of_piece * head_chunks
    }
}
