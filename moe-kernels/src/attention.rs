//! Attention of one layer over a cache of keys and values, in one canonical order.
//!
//! For a query at position p, over its visible positions j:
//! `score(j) = (q · k(j)) · scale`, `a(j) = exp(score(j) - max score)`, `y = Σ a(j) v(j) / Σ a(j)`.
//!
//! A score is a canonical dot product. Positions are cut into blocks of [`POSITIONS`] absolute positions; within a block
//! sum and weighted values are sequential chains over the positions that are visible (a fused multiply-add a value), and
//! block results are added in order. So a result does not depend on where a window or a chunk begins.

mod piece;

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use crate::element::{chunks_of, padded_row_bytes};
use crate::pack::grow;
use crate::schedule::for_each_piece;
use crate::simd::{Chunk, floats};
use crate::{Backend, Dtype};
use piece::{Piece, Plan};

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
    pieces: Vec<Chunk>,
}

/// Computes the attention of T consecutive positions from `first` on, whose keys and values are in the cache already.
///
/// `q` is `[T, heads · head_dim]`, rotated; `y` has the same shape and is overwritten.
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
) {
    let (tokens, AttentionShape { heads, kv_heads, head_dim, .. }) = (q.nrows(), *shape);
    assert!(kv_heads > 0 && heads % kv_heads == 0, "query heads in whole groups");
    assert!(head_dim > 0 && shape.window != Some(0), "heads of some width that see something");
    assert_eq!(q.ncols(), heads * head_dim, "width of the queries");
    assert_eq!(y.dim(), q.dim(), "shape of the output");
    let rows = kv_heads * kv.capacity * padded_row_bytes(kv.dtype, head_dim);
    assert_eq!((kv.keys.len(), kv.values.len()), (rows, rows), "size of the cache");
    if tokens == 0 {
        return;
    }
    let most = (0..tokens).map(|t| shape.visible(first + t).len()).max().unwrap_or(0);
    let held = first + tokens - shape.visible(first).start;
    assert!(held <= kv.capacity, "the cache holds every position that one of the queries sees");

    let group = heads / kv_heads;
    let plan = Plan {
        shape: *shape,
        group,
        head_chunks: chunks_of(head_dim),
        score_chunks: chunks_of(most),
        tokens: tokens.div_ceil(tokens.min((8 * rayon::current_num_threads()).div_ceil(kv_heads))),
    };
    let splits = tokens.div_ceil(plan.tokens);
    let piece = plan.piece_chunks();
    grow(&mut scratch.pieces, kv_heads * splits * piece);
    let memory = &mut scratch.pieces[..kv_heads * splits * piece];
    let cost = 2 * tokens * heads * head_dim * most;
    for_each_piece(0..kv_heads * splits, memory, &|i| i * piece, cost, &|i, memory| {
        let from = i % splits * plan.tokens;
        let tokens = from..(from + plan.tokens).min(tokens);
        backend.run(Piece { plan: &plan, kv, kv_head: i / splits, q, tokens, first, memory });
    });
    for (t, mut row) in y.axis_iter_mut(Axis(0)).enumerate() {
        for head in 0..heads {
            let at = (head / group * splits + t / plan.tokens) * piece;
            let at = at + (t % plan.tokens * group + head % group) * plan.head_chunks;
            let from = floats(&scratch.pieces[at..at + plan.head_chunks]);
            row.iter_mut().skip(head * head_dim).zip(&from[..head_dim]).for_each(|(to, from)| *to = *from);
        }
    }
}
