//! The attention of some tokens over one key and value head, which a group of query heads shares.

use std::marker::PhantomData;
use std::ops::Range;

use moe_core::numerics::LANES;
use ndarray::ArrayView2;

use super::{AttentionShape, KvRows, POSITIONS};
use crate::element::{Element, chunks_of, padded_row_bytes, with_element};
use crate::pack::BLOCK_CHUNKS;
use crate::simd::{Chunk, Kernel, Simd, floats, floats_mut};
use crate::tile::{StoredRows, StoredTiles, place};
use crate::vector::max;

/// Query heads of a tile.
const HEADS: usize = 4;
/// Keys of a tile, at most.
const KEYS: usize = 4;

/// Sizes of the work of one call.
pub(super) struct Plan {
    pub(super) shape: AttentionShape,
    /// Query heads that share a key and value head.
    pub(super) group: usize,
    pub(super) head_chunks: usize,
    /// Chunks that hold the scores of one query.
    pub(super) score_chunks: usize,
    /// Tokens of a piece.
    pub(super) tokens: usize,
}

impl Plan {
    /// A piece's memory: results of its tokens, then queries and scores of one token.
    pub(super) fn piece_chunks(&self) -> usize {
        self.group * (self.tokens * self.head_chunks + self.head_chunks + self.score_chunks)
    }
}

/// One key and value head for some tokens.
pub(super) struct Piece<'a> {
    pub(super) plan: &'a Plan,
    pub(super) kv: KvRows<'a>,
    pub(super) kv_head: usize,
    pub(super) q: ArrayView2<'a, f32>,
    pub(super) tokens: Range<usize>,
    pub(super) first: usize,
    pub(super) memory: &'a mut [Chunk],
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        with_element!(self.kv.dtype, E => self.run_with::<S, E>(s));
    }
}

/// The rows of a head in a cache that is a ring.
#[derive(Clone, Copy)]
struct Ring<'a> {
    rows: StoredRows<'a>,
    capacity: usize,
}

impl<'a> Ring<'a> {
    /// The row of a position, and how many rows lie from there to the end of the ring.
    #[inline(always)]
    fn at(self, position: usize) -> (StoredRows<'a>, usize) {
        let row = position % self.capacity;
        (self.rows.from(row), self.capacity - row)
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn run_with<S: Simd, E: Element>(self, s: S) {
        let Self { plan, kv, kv_head, q, tokens, first, memory } = self;
        let Plan { group, head_chunks, score_chunks, shape, .. } = *plan;
        let stride = padded_row_bytes(kv.dtype, shape.head_dim);
        let ring = |bytes| {
            let head = StoredRows { bytes, stride }.from(kv_head * kv.capacity);
            Ring { rows: head, capacity: kv.capacity }
        };
        let (keys, values) = (ring(kv.keys), ring(kv.values));
        let (results, rest) = memory.split_at_mut(plan.tokens * group * head_chunks);
        let (queries, scores) = rest.split_at_mut(group * head_chunks);
        for t in tokens.clone() {
            for g in 0..group {
                let from = (kv_head * group + g) * shape.head_dim;
                let query = q.row(t);
                for c in 0..head_chunks {
                    let (tile, heads) = tile_of(g, group);
                    let columns = c * LANES..shape.head_dim.min((c + 1) * LANES);
                    let mut chunk = [0.0; LANES];
                    chunk.iter_mut().zip(columns).for_each(|(to, i)| *to = query[from + i]);
                    let tile_queries = &mut queries[tile * head_chunks..(tile + heads) * head_chunks];
                    let mut blocks = tile_queries.chunks_mut(BLOCK_CHUNKS * heads);
                    if let Some(block) = blocks.nth(c / BLOCK_CHUNKS) {
                        place(S::PARTS, block, heads, g - tile, c % BLOCK_CHUNKS, &chunk);
                    }
                }
            }
            let visible = shape.visible(first + t);
            for tile in (0..group).step_by(HEADS) {
                let (_, heads) = tile_of(tile, group);
                let queries = &queries[tile * head_chunks..(tile + heads) * head_chunks];
                let scores = &mut scores[tile * score_chunks..(tile + heads) * score_chunks];
                match heads {
                    1 => score::<S, E, 1>(s, queries, keys, &visible, shape.scale, scores),
                    2 => score::<S, E, 2>(s, queries, keys, &visible, shape.scale, scores),
                    3 => score::<S, E, 3>(s, queries, keys, &visible, shape.scale, scores),
                    _ => score::<S, E, HEADS>(s, queries, keys, &visible, shape.scale, scores),
                }
                for scores in scores.chunks_exact_mut(score_chunks) {
                    let scores = &mut scores[..chunks_of(visible.len())];
                    floats_mut(scores)[visible.len()..].fill(f32::NEG_INFINITY);
                    let top = s.splat(max(s, floats(scores)));
                    for v in scores {
                        s.store(s.exp(s.sub(s.load(v), top)), v);
                    }
                }
                let at = ((t - tokens.start) * group + tile) * head_chunks;
                let y = &mut results[at..at + heads * head_chunks];
                match heads {
                    1 => weigh::<S, E, 1>(s, scores, values, &visible, y),
                    2 => weigh::<S, E, 2>(s, scores, values, &visible, y),
                    3 => weigh::<S, E, 3>(s, scores, values, &visible, y),
                    _ => weigh::<S, E, HEADS>(s, scores, values, &visible, y),
                }
            }
        }
    }
}

/// The first head of the tile that head `g` is in, and how many it has.
#[inline(always)]
fn tile_of(g: usize, group: usize) -> (usize, usize) {
    let tile = g - g % HEADS;
    (tile, HEADS.min(group - tile))
}

/// Scores of M heads, whose chunks alternate in `queries`, with every visible key.
#[inline(always)]
fn score<S: Simd, E: Element, const M: usize>(
    s: S,
    queries: &[Chunk],
    keys: Ring<'_>,
    visible: &Range<usize>,
    scale: f32,
    scores: &mut [Chunk],
) {
    let stride = scores.len() / M * size_of::<Chunk>() / size_of::<f32>();
    let scores = floats_mut(scores);
    let mut j = visible.start;
    while j < visible.end {
        let (rows, count) = keys.at(j);
        let count = count.min(visible.end - j);
        // As many chains as registers hold.
        let keys_of_tile = if S::WIDE { KEYS } else { KEYS - 1 };
        let n = if count < keys_of_tile { 1 } else { keys_of_tile };
        let mut sums = [0.0; HEADS * KEYS];
        let mut from = 0;
        for x in queries.chunks(BLOCK_CHUNKS * M) {
            let w = StoredRows { bytes: &rows.bytes[from..], stride: rows.stride };
            // Those that come next, while they lie there.
            let ahead = if count < 3 * KEYS { w } else { w.from(2 * n) };
            let (out, element, len, out_stride) = (&mut sums[..], PhantomData, x.len() / M, M * n);
            match n {
                1 => s.apart(StoredTiles::<E, M, 1> { x, w, ahead: w, len, out, out_stride, element }),
                KEYS => s.apart(StoredTiles::<E, M, KEYS> { x, w, ahead, len, out, out_stride, element }),
                _ => {
                    s.apart(StoredTiles::<E, M, { KEYS - 1 }> { x, w, ahead, len, out, out_stride, element })
                }
            }
            from += BLOCK_CHUNKS * size_of::<E::Stored>();
        }
        for m in 0..M {
            let to = &mut scores[m * stride + j - visible.start..][..n];
            to.iter_mut().zip(&sums[m * n..]).for_each(|(to, sum)| *to = sum * scale);
        }
        j += n;
    }
}

/// `y = Σ a(j) v(j) / Σ a(j)` of M heads, block by block.
#[inline(always)]
fn weigh<S: Simd, E: Element, const M: usize>(
    s: S,
    a: &[Chunk],
    values: Ring<'_>,
    visible: &Range<usize>,
    y: &mut [Chunk],
) {
    y.fill(Chunk::ZERO);
    let mut totals = [0.0; M];
    let head_chunks = y.len() / M;
    let mut from = visible.start;
    while from < visible.end {
        let until = ((from / POSITIONS + 1) * POSITIONS).min(visible.end);
        let (rows, count) = values.at(from);
        let count = count.min(until - from);
        // A block may lie on both sides of the ring's end.
        let parts = [(rows, count), (values.rows, until - from - count)];
        let a: [&[f32]; M] = std::array::from_fn(|m| {
            &floats(&a[m * a.len() / M..])[from - visible.start..until - visible.start]
        });
        let mut c = 0;
        while c < head_chunks {
            let totals = (c == 0).then_some(&mut totals);
            let y = &mut y[c..];
            // As many chains as registers hold.
            let (types, four) = (PhantomData, S::WIDE && head_chunks - c >= 4);
            if four {
                s.apart(Weigh::<E, M, 4> { a, parts, c, head_chunks, y, totals, types });
            } else {
                s.apart(Weigh::<E, M, 1> { a, parts, c, head_chunks, y, totals, types });
            }
            c += if four { 4 } else { 1 };
        }
        from = until;
    }
    for (y, total) in y.chunks_exact_mut(head_chunks).zip(totals) {
        let total = s.splat(total);
        for y in y {
            s.store(s.div(s.load(y), total), y);
        }
    }
}

/// Adds a block's weighted values to C chunks of the results of M heads, from chunk `c` on.
struct Weigh<'a, E, const M: usize, const C: usize> {
    a: [&'a [f32]; M],
    /// Rows of values, and how many.
    parts: [(StoredRows<'a>, usize); 2],
    c: usize,
    head_chunks: usize,
    /// From chunk `c` of the first head on.
    y: &'a mut [Chunk],
    /// Sums of the weights, if they are to be added up too.
    totals: Option<&'a mut [f32; M]>,
    types: PhantomData<E>,
}

impl<E: Element, const M: usize, const C: usize> Kernel for Weigh<'_, E, M, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut acc = [[s.splat(0.0); C]; M];
        let mut j = 0;
        for (rows, count) in self.parts {
            let a: [&[f32]; M] = std::array::from_fn(|m| &self.a[m][j..j + count]);
            for i in 0..count {
                let row = &rows.row::<E>(i, self.c + C)[self.c..];
                let mut v = [s.splat(0.0); C];
                for c in 0..C {
                    v[c] = E::load(s, &row[c], 0);
                }
                for m in 0..M {
                    let a = s.splat(a[m][i]);
                    for c in 0..C {
                        acc[m][c] = s.fma(a, v[c], acc[m][c]);
                    }
                }
            }
            j += count;
        }
        for m in 0..M {
            for c in 0..C {
                let y = &mut self.y[m * self.head_chunks + c];
                s.store(s.add(s.load(y), acc[m][c]), y);
            }
        }
        if let Some(totals) = self.totals {
            let mut sums = [0.0; M];
            for i in 0..j {
                for m in 0..M {
                    sums[m] += self.a[m][i];
                }
            }
            for m in 0..M {
                totals[m] += sums[m];
            }
        }
    }
}
