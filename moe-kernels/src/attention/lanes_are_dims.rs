//! The attention of a few queries: those of one token that share a key and value head, four at a time.

use std::marker::PhantomData;
use std::ops::Range;

use moe_core::numerics::LANES;

use super::POSITIONS;
use super::head::{Head, Ring};
use crate::chunk::{BLOCK_CHUNKS, Chunk, chunks_of, floats, floats_mut};
use crate::element::Element;
use crate::simd::{Kernel, Simd};
use crate::tile::{StoredRows, StoredTiles, store_in_tile};
use crate::vector::max;

/// Query heads of a tile.
pub(super) const HEADS: usize = 4;
/// Keys of a tile, at most.
const KEYS: usize = 4;

/// Chunks that the queries and scores of a tile fill, over so many positions.
pub(super) fn chunks(head_chunks: usize, positions: usize) -> usize {
    HEADS * (head_chunks + chunks_of(positions))
}

/// The attention of queries, whose results follow each other in `y`.
#[inline(always)]
pub(super) fn attend<S: Simd, E: Element>(
    s: S,
    head: &Head<'_>,
    queries: Range<usize>,
    memory: &mut [Chunk],
    mut y: &mut [Chunk],
) {
    let mut first = queries.start;
    while first < queries.end {
        let heads = HEADS.min(queries.end - first).min(head.group - first % head.group);
        let (of_tile, rest) = y.split_at_mut(heads * head.head_chunks);
        match heads {
            1 => attend_tile::<S, E, 1>(s, head, first, memory, of_tile),
            2 => attend_tile::<S, E, 2>(s, head, first, memory, of_tile),
            3 => attend_tile::<S, E, 3>(s, head, first, memory, of_tile),
            _ => attend_tile::<S, E, HEADS>(s, head, first, memory, of_tile),
        }
        (first, y) = (first + heads, rest);
    }
}

/// The attention of M heads of one token.
#[inline(always)]
fn attend_tile<S: Simd, E: Element, const M: usize>(
    s: S,
    head: &Head<'_>,
    first: usize,
    memory: &mut [Chunk],
    y: &mut [Chunk],
) {
    let visible = head.visible(first);
    let score_chunks = chunks_of(visible.len());
    let (queries, rest) = memory.split_at_mut(M * head.head_chunks);
    let scores = &mut rest[..M * score_chunks];
    for m in 0..M {
        let query = head.query(first + m);
        let mut query = query.iter();
        for block in queries.chunks_mut(BLOCK_CHUNKS * M) {
            for j in 0..block.len() / M {
                let mut chunk = [0.0; LANES];
                chunk.iter_mut().zip(&mut query).for_each(|(to, q)| *to = *q);
                store_in_tile(S::HALVES, block, M, m, j, &chunk);
            }
        }
    }
    score::<S, E, M>(s, queries, head.keys, &visible, head.shape.scale, scores);
    for scores in scores.chunks_exact_mut(score_chunks) {
        floats_mut(scores)[visible.len()..].fill(f32::NEG_INFINITY);
        let top = s.splat(max(s, floats(scores)));
        for v in scores {
            s.store(s.exp(s.sub(s.load(v), top)), v);
        }
    }
    accumulate_values::<S, E, M>(s, scores, head.values, &visible, y);
}

/// Scores of M heads, a tile of each block in `queries`, with every visible key.
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
        let keys_of_tile = if S::MANY_REGISTERS { KEYS } else { KEYS - 1 };
        let n = if count < keys_of_tile { 1 } else { keys_of_tile };
        let mut sums = [0.0; HEADS * KEYS];
        let mut from = 0;
        for x in queries.chunks(BLOCK_CHUNKS * M) {
            let w = StoredRows { bytes: &rows.bytes[from..], stride: rows.stride };
            // Those that come next, while they lie there.
            let ahead = if count < 3 * KEYS { w } else { w.from(2 * n) };
            let (len, out, out_stride) = (x.len() / M, &mut sums[..], M * n);
            let element = PhantomData;
            match n {
                1 => s.outlined(StoredTiles::<E, M, 1> { x, w, ahead: w, len, out, out_stride, element }),
                KEYS => s.outlined(StoredTiles::<E, M, KEYS> { x, w, ahead, len, out, out_stride, element }),
                _ => s.outlined(StoredTiles::<E, M, { KEYS - 1 }> {
                    x,
                    w,
                    ahead,
                    len,
                    out,
                    out_stride,
                    element,
                }),
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
fn accumulate_values<S: Simd, E: Element, const M: usize>(
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
        // A block may lie on both sides of the end of the ring.
        let segments = [(rows, count), (values.rows, until - from - count)];
        let a: [&[f32]; M] = std::array::from_fn(|m| {
            &floats(&a[m * a.len() / M..])[from - visible.start..until - visible.start]
        });
        let mut c = 0;
        while c < head_chunks {
            let totals = (c == 0).then_some(&mut totals);
            let y = &mut y[c..];
            // As many chains as registers hold.
            let (types, four) = (PhantomData, S::MANY_REGISTERS && head_chunks - c >= 4);
            if four {
                s.outlined(AccumulateValues::<E, M, 4> { a, segments, c, head_chunks, y, totals, types });
            } else {
                s.outlined(AccumulateValues::<E, M, 1> { a, segments, c, head_chunks, y, totals, types });
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
struct AccumulateValues<'a, E, const M: usize, const C: usize> {
    a: [&'a [f32]; M],
    /// Stretches of rows of values, and how many rows each has: two where the ring ends within a block.
    segments: [(StoredRows<'a>, usize); 2],
    c: usize,
    head_chunks: usize,
    /// From chunk `c` of the first head on.
    y: &'a mut [Chunk],
    /// Sums of the weights, if they are to be added up too.
    totals: Option<&'a mut [f32; M]>,
    types: PhantomData<E>,
}

impl<E: Element, const M: usize, const C: usize> Kernel for AccumulateValues<'_, E, M, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut acc = [[s.splat(0.0); C]; M];
        let mut j = 0;
        for (rows, count) in self.segments {
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
