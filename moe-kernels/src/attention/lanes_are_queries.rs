//! The attention of many queries: each is a lane of a vector, so that whatever is read of keys and values serves all of them.

use std::ops::Range;

use moe_core::numerics::LANES;
use ndarray::ArrayViewMut1;

use super::POSITIONS;
use super::head::{Head, QUERIES};
use crate::chunk::{BLOCK_CHUNKS, Chunk, floats, floats_mut};
use crate::element::Element;
use crate::simd::{Kernel, Simd};

/// Vectors of queries, at most.
const VECTORS: usize = QUERIES / LANES;
/// Keys of a tile where registers are many.
const KEYS: usize = 8;
/// Keys of a tile where they are few.
const FEWER_KEYS: usize = 6;
/// Queries whose results are accumulated at a time, at most.
const WEIGHED: usize = 6;
/// The same where fewer are left.
const FEWER_WEIGHED: usize = 4;
/// Chunks of a row of values that are read at a time, at most.
const WIDTH: usize = 4;

/// What many queries make of one position: scores, then weights. Vectors beyond the last query are nobody's.
type Row = [Chunk; VECTORS];

/// Chunks that queries, keys of a tile, values of a block and rows fill, over so many positions.
pub(super) fn chunks(head_chunks: usize, positions: usize) -> usize {
    head_chunks * (QUERIES + LANES) + WIDTH * POSITIONS + VECTORS * (positions + KEYS)
}

/// The attention of some queries, whose results follow each other in `y`.
#[inline(always)]
pub(super) fn attend<S: Simd, E: Element>(
    s: S,
    head: &Head<'_>,
    queries: Range<usize>,
    memory: &mut [Chunk],
    y: &mut [Chunk],
) {
    let last = queries.len() - 1;
    // Lanes beyond the last query see what that sees; nobody looks at their results.
    let visible = std::array::from_fn(|lane| head.visible(queries.start + lane.min(last)));
    let y = &mut y[..queries.len() * head.head_chunks];
    let (packed, rest) = memory.split_at_mut(head.head_chunks * QUERIES);
    let (keys, rest) = rest.split_at_mut(head.head_chunks * LANES);
    let (values, rest) = rest.split_at_mut(WIDTH * POSITIONS);
    let (rows, _) = rest.as_chunks_mut();

    pack(tile_vectors::<S>(), head, queries.clone(), keys, packed);
    let vectors = (last + 1).div_ceil(LANES);
    let top = score::<S, E>(s, head, &visible, &packed[..vectors * LANES * head.head_chunks], keys, rows);
    accumulate_values::<S, E>(s, head, &visible, &top[..vectors], rows, values, y);
}

/// Vectors of queries in a tile: as many chains as registers hold.
const fn tile_vectors<S: Simd>() -> usize {
    if S::MANY_REGISTERS { 2 } else { 1 }
}

/// Packs queries as lanes: of each tile number after number, its vectors in turn. `sixteen` is room for that many rows.
#[inline(always)]
fn pack(tile: usize, head: &Head<'_>, queries: Range<usize>, sixteen: &mut [Chunk], to: &mut [Chunk]) {
    let (row_chunks, vectors) = (head.head_chunks, queries.len().div_ceil(LANES));
    for (v, first) in queries.clone().step_by(LANES).enumerate() {
        for (query, to) in (first..queries.end).zip(sixteen.chunks_exact_mut(row_chunks)) {
            let (to, padding) = floats_mut(to).split_at_mut(head.shape.head_dim);
            ArrayViewMut1::from(to).assign(&head.query(query));
            padding.fill(0.0);
        }
        let in_turn = tile.min(vectors - v / tile * tile);
        let to = &mut to[v / tile * tile * LANES * row_chunks..];
        for c in 0..row_chunks {
            let rows: [_; LANES] = std::array::from_fn(|lane| &sixteen[lane * row_chunks + c]);
            for i in 0..LANES {
                to[(c * LANES + i) * in_turn + v % tile].0 = std::array::from_fn(|lane| rows[lane][i]);
            }
        }
    }
}

/// Scores of packed queries with every key that one of them sees, and the largest of each query.
#[inline(always)]
fn score<S: Simd, E: Element>(
    s: S,
    head: &Head<'_>,
    visible: &[Range<usize>; QUERIES],
    packed: &[Chunk],
    keys: &mut [Chunk],
    rows: &mut [Row],
) -> [S::F32x16; VECTORS] {
    let (head_chunks, scale) = (head.head_chunks, head.shape.scale);
    let all = visible[0].start..visible[QUERIES - 1].end;
    let everyones = visible[QUERIES - 1].start..visible[0].end;
    let mut top = [s.splat(f32::NEG_INFINITY); VECTORS];
    let n = if S::MANY_REGISTERS { KEYS } else { FEWER_KEYS };
    let vectors = packed.len() / (LANES * head_chunks);
    for (j, first) in all.clone().step_by(n).enumerate() {
        for (i, position) in (first..all.end).take(n).enumerate() {
            let row = head.keys.at(position).0.row::<E>(0, head_chunks);
            for (from, to) in row.iter().zip(keys.iter_mut().skip(i).step_by(n)) {
                s.store(E::load(s, from, 0), to);
            }
        }
        // Where the last tile has fewer keys, the rows beyond are nobody's.
        let rows = &mut rows[j * n..][..n];
        let keys = &keys[..n * head_chunks];
        for (t, queries) in packed.chunks(tile_vectors::<S>() * LANES * head_chunks).enumerate() {
            let at = t * tile_vectors::<S>();
            if !S::MANY_REGISTERS {
                s.outlined(Score::<1, FEWER_KEYS> { queries, keys, scale, rows, at });
            } else if queries.len() == LANES * head_chunks {
                s.outlined(Score::<1, KEYS> { queries, keys, scale, rows, at });
            } else {
                s.outlined(Score::<2, KEYS> { queries, keys, scale, rows, at });
            }
        }
        for (position, row) in (first..all.end).zip(rows) {
            if !everyones.contains(&position) {
                for (score, visible) in floats_mut(&mut row[..vectors]).iter_mut().zip(visible) {
                    if !visible.contains(&position) {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            for m in 0..vectors {
                top[m] = s.max(s.load(&row[m]), top[m]);
            }
        }
    }
    top
}

/// `y = Σ a(j) v(j) / Σ a(j)`, block by block.
#[inline(always)]
fn accumulate_values<S: Simd, E: Element>(
    s: S,
    head: &Head<'_>,
    visible: &[Range<usize>; QUERIES],
    top: &[S::F32x16],
    rows: &mut [Row],
    values: &mut [Chunk],
    y: &mut [Chunk],
) {
    let head_chunks = head.head_chunks;
    let all = visible[0].start..visible[QUERIES - 1].end;
    let vectors = top.len().min(VECTORS);
    let mut totals = [s.splat(0.0); VECTORS];
    let mut first = all.start;
    while first < all.end {
        let block = first..((first / POSITIONS + 1) * POSITIONS).min(all.end);
        let rows = &mut rows[first - all.start..block.end - all.start];
        let mut sums = [s.splat(0.0); VECTORS];
        for row in &mut *rows {
            for m in 0..vectors {
                // A position that a query does not see gets a zero.
                let a = s.exp(s.sub(s.load(&row[m]), top[m]));
                sums[m] = s.add(sums[m], a);
                s.store(a, &mut row[m]);
            }
        }
        for m in 0..vectors {
            totals[m] = s.add(totals[m], sums[m]);
        }
        let mut c = 0;
        while c < head_chunks {
            let width = if S::MANY_REGISTERS && head_chunks - c >= WIDTH { WIDTH } else { 1 };
            let values = &mut values[..rows.len() * width];
            for (position, to) in block.clone().zip(values.chunks_exact_mut(width)) {
                let row = &head.values.at(position).0.row::<E>(0, head_chunks)[c..];
                for (from, to) in row.iter().zip(to) {
                    s.store(E::load(s, from, 0), to);
                }
            }
            let within = |position: usize| position.clamp(first, block.end) - first;
            for (tile, y) in y.chunks_mut(WEIGHED * head_chunks).enumerate() {
                let (lane, fresh) = (tile * WEIGHED, first == all.start);
                let seen = std::array::from_fn(|i| {
                    let visible = &visible[(lane + i).min(QUERIES - 1)];
                    within(visible.start)..within(visible.end)
                });
                let few = y.len() <= FEWER_WEIGHED * head_chunks;
                let tile = ValueTile { rows, lane, seen, values, head_chunks, c, fresh, y };
                match (few, width == WIDTH) {
                    (false, true) => s.outlined(AccumulateValues::<WEIGHED, WIDTH>(tile)),
                    (false, false) => s.outlined(AccumulateValues::<WEIGHED, 1>(tile)),
                    (true, true) => s.outlined(AccumulateValues::<FEWER_WEIGHED, WIDTH>(tile)),
                    (true, false) => s.outlined(AccumulateValues::<FEWER_WEIGHED, 1>(tile)),
                }
            }
            c += width;
        }
        first = block.end;
    }
    let mut sums = [Chunk::ZERO; VECTORS];
    for m in 0..VECTORS {
        s.store(totals[m], &mut sums[m]);
    }
    for (y, sum) in y.chunks_exact_mut(head_chunks).zip(floats(&sums)) {
        let sum = s.splat(*sum);
        for y in y {
            s.store(s.div(s.load(y), sum), y);
        }
    }
}

/// Scores of M vectors of queries with N keys.
struct Score<'a, const M: usize, const N: usize> {
    queries: &'a [Chunk],
    /// Chunks of the keys, in turn.
    keys: &'a [Chunk],
    scale: f32,
    /// Their scores belong there, from vector `at` on.
    rows: &'a mut [Row],
    at: usize,
}

impl<const M: usize, const N: usize> Kernel for Score<'_, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (keys, _) = self.keys.as_chunks::<N>();
        let (queries, _) = self.queries.as_chunks::<M>();
        let (queries, _) = queries.as_chunks::<LANES>();
        let mut total = [[s.splat(0.0); M]; N];
        for (queries, keys) in queries.chunks(BLOCK_CHUNKS).zip(keys.chunks(BLOCK_CHUNKS)) {
            let block = Block { queries, keys };
            total = add(s, total, add(s, block.eight(s, 0), block.eight(s, 1)));
        }
        let scale = s.splat(self.scale);
        for n in 0..N {
            let row = &mut self.rows[n][self.at..self.at + M];
            for m in 0..M {
                s.store(s.mul(total[n][m], scale), &mut row[m]);
            }
        }
    }
}

/// A K block of M vectors of queries and of N keys.
struct Block<'a, const M: usize, const N: usize> {
    queries: &'a [[[Chunk; M]; LANES]],
    keys: &'a [[Chunk; N]],
}

/// The tree over the chains of a block: lane i takes lane i + 8, then i + 4, i + 2, i + 1.
impl<const M: usize, const N: usize> Block<'_, M, N> {
    #[inline(always)]
    fn eight<S: Simd>(&self, s: S, lane: usize) -> [[S::F32x16; M]; N] {
        add(s, self.four(s, lane), self.four(s, lane + 2))
    }

    #[inline(always)]
    fn four<S: Simd>(&self, s: S, lane: usize) -> [[S::F32x16; M]; N] {
        add(s, self.two(s, lane), self.two(s, lane + 4))
    }

    #[inline(always)]
    fn two<S: Simd>(&self, s: S, lane: usize) -> [[S::F32x16; M]; N] {
        add(s, self.chain(s, lane), self.chain(s, lane + 8))
    }

    #[inline(always)]
    fn chain<S: Simd>(&self, s: S, lane: usize) -> [[S::F32x16; M]; N] {
        let mut acc = [[s.splat(0.0); M]; N];
        for (q, k) in self.queries.iter().zip(self.keys) {
            let mut x = [s.splat(0.0); M];
            for m in 0..M {
                x[m] = s.load(&q[lane][m]);
            }
            for n in 0..N {
                let k = s.splat(k[n][lane]);
                for m in 0..M {
                    acc[n][m] = s.fma(x[m], k, acc[n][m]);
                }
            }
        }
        acc
    }
}

#[inline(always)]
fn add<S: Simd, const M: usize, const N: usize>(
    s: S,
    a: [[S::F32x16; M]; N],
    mut b: [[S::F32x16; M]; N],
) -> [[S::F32x16; M]; N] {
    for n in 0..N {
        for m in 0..M {
            b[n][m] = s.add(a[n][m], b[n][m]);
        }
    }
    b
}

/// Some queries, and some chunks of the values of a block.
struct ValueTile<'a> {
    rows: &'a [Row],
    /// Of the first query.
    lane: usize,
    /// The rows that each query sees.
    seen: [Range<usize>; WEIGHED],
    /// The chunks from `c` on, for each row.
    values: &'a [Chunk],
    head_chunks: usize,
    c: usize,
    /// Whether `y` is yet to be written.
    fresh: bool,
    y: &'a mut [Chunk],
}

/// Adds weighted values to C chunks of the results of Q queries.
struct AccumulateValues<'a, const Q: usize, const C: usize>(ValueTile<'a>);

impl<const Q: usize, const C: usize> Kernel for AccumulateValues<'_, Q, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ValueTile { rows, lane, seen, values, head_chunks, c, fresh, y } = self.0;
        let (values, _) = values.as_chunks::<C>();
        let mut acc = [[s.splat(0.0); C]; Q];
        let start = seen[Q - 1].start;
        let end = seen[0].end.max(start);
        for (stretch, everyones) in
            [(seen[0].start..start, false), (start..end, true), (end..seen[Q - 1].end, false)]
        {
            for j in stretch {
                let (v, a) = (&values[j], &floats(&rows[j])[lane..][..Q]);
                for i in 0..Q {
                    // What a query does not see may be no number, which its weight, a zero, would not undo.
                    if everyones || seen[i].contains(&j) {
                        let a = s.splat(a[i]);
                        for c in 0..C {
                            acc[i][c] = s.fma(a, s.load(&v[c]), acc[i][c]);
                        }
                    }
                }
            }
        }
        for (y, acc) in y.chunks_exact_mut(head_chunks).zip(acc) {
            for (y, acc) in y[c..c + C].iter_mut().zip(acc) {
                let before = if fresh { s.splat(0.0) } else { s.load(y) };
                s.store(s.add(before, acc), y);
            }
        }
    }
}
