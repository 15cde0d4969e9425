//! Attention of one layer over a cache of keys and values, in one canonical order.
//!
//! For a query at position p, over its visible positions j:
//! `score(j) = (q · k(j)) · scale`, `a(j) = exp(score(j) - max score)`, `y = Σ a(j) v(j) / Σ a(j)`.
//!
//! A score is a canonical dot product. Positions are cut into blocks of [`POSITIONS`] absolute positions; within a block
//! sum and weighted values are sequential chains over the positions that are visible (a fused multiply-add a value), and
//! block results are added in order. So a result does not depend on where a window or a chunk begins.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use crate::element::{Element, chunks_of, padded_row_bytes, with_element};
use crate::pack::{BLOCK_CHUNKS, grow};
use crate::product::plain_tile;
use crate::schedule::for_each_piece;
use crate::simd::{Chunk, Kernel, Simd, floats, floats_mut};
use crate::vector::max;
use crate::{Backend, Dtype};

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
/// If the shapes do not fit, or the cache does not hold the visible positions.
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
    assert_eq!(q.ncols(), heads * head_dim, "width of the queries");
    assert_eq!(y.dim(), q.dim(), "shape of the output");
    let rows = kv_heads * kv.capacity * padded_row_bytes(kv.dtype, head_dim);
    assert_eq!((kv.keys.len(), kv.values.len()), (rows, rows), "size of the cache");
    if tokens == 0 {
        return;
    }
    let most = (0..tokens).map(|t| shape.visible(first + t).len()).max().unwrap_or(0);
    assert!(most <= kv.capacity, "the cache holds every visible position");

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

/// Sizes of the work of one call.
struct Plan {
    shape: AttentionShape,
    /// Query heads that share a key and value head.
    group: usize,
    head_chunks: usize,
    /// Chunks that hold the scores of one query.
    score_chunks: usize,
    /// Tokens of a piece.
    tokens: usize,
}

impl Plan {
    /// A piece's memory: results of its tokens, then queries and scores of one token.
    fn piece_chunks(&self) -> usize {
        self.group * (self.tokens * self.head_chunks + self.head_chunks + self.score_chunks)
    }
}

/// One key and value head for some tokens.
struct Piece<'a> {
    plan: &'a Plan,
    kv: KvRows<'a>,
    kv_head: usize,
    q: ArrayView2<'a, f32>,
    tokens: Range<usize>,
    first: usize,
    memory: &'a mut [Chunk],
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.kv.dtype, E => self.run_with::<S, E>(s));
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn run_with<S: Simd, E: Element>(self, s: S) {
        let Self { plan, kv, kv_head, q, tokens, first, memory } = self;
        let Plan { group, head_chunks, score_chunks, shape, .. } = *plan;
        let row_bytes = padded_row_bytes(kv.dtype, shape.head_dim);
        let row = |rows: &'_ [u8], position: usize| {
            let at = (kv_head * kv.capacity + position % kv.capacity) * row_bytes;
            at..at + row_bytes.min(rows.len())
        };
        let (results, rest) = memory.split_at_mut(plan.tokens * group * head_chunks);
        let (queries, scores) = rest.split_at_mut(group * head_chunks);
        for t in tokens.clone() {
            for g in 0..group {
                let to = floats_mut(&mut queries[g * head_chunks..(g + 1) * head_chunks]);
                let from = (kv_head * group + g) * shape.head_dim;
                to.fill(0.0);
                to.iter_mut()
                    .zip(q.row(t).iter().skip(from).take(shape.head_dim))
                    .for_each(|(to, q)| *to = *q);
            }
            let visible = shape.visible(first + t);

            // Scores, each query of the group against each visible key.
            let mut j = visible.start;
            while j < visible.end {
                let n = (visible.end - j).min(2);
                let keys = [j, j + n - 1].map(|j| E::chunks(&kv.keys[row(kv.keys, j)]).0);
                let mut g = 0;
                while g < group {
                    let m = (group - g).min(2);
                    let queries = [g, g + m - 1].map(|g| &queries[g * head_chunks..(g + 1) * head_chunks]);
                    let sums = dots::<S, E>(s, queries, keys);
                    for a in 0..m {
                        let scores = floats_mut(&mut scores[(g + a) * score_chunks..]);
                        for b in 0..n {
                            scores[j - visible.start + b] = sums[a][b] * shape.scale;
                        }
                    }
                    g += m;
                }
                j += n;
            }

            let results = &mut results[(t - tokens.start) * group * head_chunks..][..group * head_chunks];
            for g in 0..group {
                let scores = &mut scores[g * score_chunks..(g + 1) * score_chunks];
                let scores = &mut scores[..chunks_of(visible.len())];
                floats_mut(scores)[visible.len()..].fill(f32::NEG_INFINITY);
                let top = s.splat(max(s, floats(scores)));
                for v in scores.iter_mut() {
                    s.store(s.exp(s.sub(s.load(v), top)), v);
                }
                let value = |position: usize| E::chunks(&kv.values[row(kv.values, position)]).0;
                let y = &mut results[g * head_chunks..(g + 1) * head_chunks];
                weigh::<S, E>(s, floats(scores), visible.clone(), value, y);
            }
        }
    }
}

/// The dot products of two queries with two keys.
#[inline(always)]
fn dots<S: Simd, E: Element>(s: S, q: [&[Chunk]; 2], k: [&[E::Stored]; 2]) -> [[f32; 2]; 2] {
    let mut sums = [[0.0; 2]; 2];
    for from in (0..q[0].len()).step_by(BLOCK_CHUNKS) {
        let block = from..(from + BLOCK_CHUNKS).min(q[0].len());
        let q = q.map(|q| &q[block.clone()]);
        let k = k.map(|k| &k[block.clone()]);
        plain_tile::<S, E, 2, 2>(s, q, k, &mut sums);
    }
    sums
}

/// `y = Σ a(j) v(j) / Σ a(j)`, block by block.
#[inline(always)]
fn weigh<'v, S: Simd, E: Element>(
    s: S,
    a: &[f32],
    visible: Range<usize>,
    value: impl Fn(usize) -> &'v [E::Stored],
    y: &mut [Chunk],
) where
    E::Stored: 'v,
{
    y.fill(Chunk::ZERO);
    let mut total = 0.0;
    let mut from = visible.start;
    while from < visible.end {
        let block = from..((from / POSITIONS + 1) * POSITIONS).min(visible.end);
        let a = &a[block.start - visible.start..block.end - visible.start];
        total += a.iter().fold(0.0, |sum, a| sum + a);
        // Four chains side by side hide the latency of one.
        for (i, y) in y.chunks_mut(4).enumerate() {
            let mut acc = [s.splat(0.0); 4];
            for (a, j) in a.iter().zip(block.clone()) {
                let (a, v) = (s.splat(*a), &value(j)[i * 4..]);
                if let Some(v) = v.first_chunk::<4>() {
                    for c in 0..4 {
                        acc[c] = s.fma(a, E::load(s, &v[c], 0), acc[c]);
                    }
                } else {
                    for (acc, v) in acc.iter_mut().zip(v) {
                        *acc = s.fma(a, E::load(s, v, 0), *acc);
                    }
                }
            }
            for (y, acc) in y.iter_mut().zip(acc) {
                s.store(s.add(s.load(y), acc), y);
            }
        }
        from = block.end;
    }
    let total = s.splat(total);
    for y in y {
        s.store(s.div(s.load(y), total), y);
    }
}
