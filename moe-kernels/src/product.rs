//! Panels of `x · Wᵀ`: the register tiles, and the two ways of feeding them.

use std::ops::Range;

use moe_core::numerics::LANES;

use crate::WeightMatrix;
use crate::element::Element;
use crate::pack::{BLOCK_CHUNKS, PackedRows};
use crate::simd::{Chunk, Simd};

/// Weight rows, and so output columns, of a panel: the unit of parallel work.
pub(crate) const PANEL: usize = 32;
/// Chunks of one row of a panel's output.
pub(crate) const PANEL_CHUNKS: usize = PANEL / LANES;
/// Rows of x that one sweep over a panel's weights serves.
pub(crate) const ROW_BLOCK: usize = 128;

/// Weight rows widened together: with a block of 512 they take half of a first-level cache.
const STRIP: usize = 8;

/// Number of panels that cover `columns` output columns.
pub(crate) fn panels_of(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// Computes `out[m][n] = x[m] · w[n]` for the given rows of x and the weight rows of panel `p`.
///
/// `out` is `[rows, PANEL]`; columns beyond the matrix are left as they are.
#[inline(always)]
pub(crate) fn panel<S: Simd, E: Element>(
    s: S,
    x: PackedRows<'_>,
    rows: Range<usize>,
    w: &WeightMatrix,
    p: usize,
    out: &mut [f32],
) {
    let columns = p * PANEL..((p + 1) * PANEL).min(w.rows());
    if S::WIDE {
        if rows.len() <= 8 {
            few_rows::<S, E, 4, 4>(s, x, rows, w, columns, out);
        } else {
            many_rows::<S, E, 4, 4>(s, x, rows, w, columns, out);
        }
    } else if rows.len() <= 6 {
        few_rows::<S, E, 3, 2>(s, x, rows, w, columns, out);
    } else {
        many_rows::<S, E, 3, 2>(s, x, rows, w, columns, out);
    }
}

/// Adds one K block to a tile: `sums[m][n] += x[m] · w[n]`. Operands have equal lengths, but that x has one chunk more
/// where there is a `tail` of w.
#[inline(always)]
pub(crate) fn tile<S: Simd, const M: usize, const N: usize, W: Copy>(
    s: S,
    x: [&[Chunk]; M],
    w: [&[W]; N],
    tail: Option<[W; N]>,
    load: impl Fn(&W) -> S::F,
    sums: &mut [[f32; N]; M],
) {
    let mut acc = [[s.splat(0.0); N]; M];
    let len = w[0].len();
    let whole = x.map(|row| &row[..len]);
    let w = w.map(|row| &row[..len]);
    for j in 0..len {
        let b: [S::F; N] = std::array::from_fn(|n| load(&w[n][j]));
        for m in 0..M {
            let a = s.load(&whole[m][j]);
            for n in 0..N {
                acc[m][n] = s.fma(a, b[n], acc[m][n]);
            }
        }
    }
    if let Some(tail) = tail {
        for m in 0..M {
            let a = s.load(&x[m][len]);
            for n in 0..N {
                acc[m][n] = s.fma(a, load(&tail[n]), acc[m][n]);
            }
        }
    }
    let flat = |i: usize| acc[i.min(M * N - 1) / N][i.min(M * N - 1) % N];
    let mut i = 0;
    while i < M * N {
        let four = s.tree_sum4([flat(i), flat(i + 1), flat(i + 2), flat(i + 3)]);
        for k in 0..4.min(M * N - i) {
            sums[(i + k) / N][(i + k) % N] += four[k];
        }
        i += 4;
    }
}

/// The part of a stored row that lies in block `b`, and its padded tail where the row ends within.
#[inline(always)]
fn in_block<E: Element>(row: &(&[E::Stored], E::Stored, bool), b: usize) -> (usize, usize, bool) {
    let from = b * BLOCK_CHUNKS;
    let until = row.0.len().min(from + BLOCK_CHUNKS);
    (from, until, row.2 && until < from + BLOCK_CHUNKS)
}

/// Few rows: weights are widened in registers as they stream by, N rows of them at a time, 4 for a single row of x.
#[inline(always)]
fn few_rows<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    x: PackedRows<'_>,
    rows: Range<usize>,
    w: &WeightMatrix,
    columns: Range<usize>,
    out: &mut [f32],
) {
    let step = if rows.len() == 1 { 4 } else { N };
    let mut at = columns.start;
    while at < columns.end {
        let n = if at + step <= columns.end { step } else { 1 };
        let mut first = rows.start;
        // What the first tile of rows has read, later ones find in the cache.
        while first < rows.end {
            let m = (rows.end - first).min(M);
            let out = &mut out[(first - rows.start) * PANEL + at - columns.start..];
            match (m, n) {
                (1, 1) => few_columns::<S, E, 1, 1>(s, x, first, w, at, out),
                (2, 1) => few_columns::<S, E, 2, 1>(s, x, first, w, at, out),
                (3, 1) => few_columns::<S, E, 3, 1>(s, x, first, w, at, out),
                (_, 1) => few_columns::<S, E, M, 1>(s, x, first, w, at, out),
                (1, 4) => few_columns::<S, E, 1, 4>(s, x, first, w, at, out),
                (1, _) => few_columns::<S, E, 1, N>(s, x, first, w, at, out),
                (2, _) => few_columns::<S, E, 2, N>(s, x, first, w, at, out),
                (3, _) => few_columns::<S, E, 3, N>(s, x, first, w, at, out),
                _ => few_columns::<S, E, M, N>(s, x, first, w, at, out),
            }
            first += m;
        }
        at += n;
    }
}

#[inline(always)]
fn few_columns<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    x: PackedRows<'_>,
    first: usize,
    w: &WeightMatrix,
    column: usize,
    out: &mut [f32],
) {
    let stored: [_; N] = std::array::from_fn(|n| E::split(w.row(column + n)));
    let mut sums = [[0.0; N]; M];
    for b in 0..x.blocks() {
        let (from, until, ends) = in_block::<E>(&stored[0], b);
        let x = std::array::from_fn(|m| x.row(b, first + m));
        let w = std::array::from_fn(|n| &stored[n].0[from..until]);
        let tail = ends.then(|| std::array::from_fn(|n| stored[n].1));
        tile(s, x, w, tail, |c| E::load(s, c), &mut sums);
    }
    for m in 0..M {
        out[m * PANEL..m * PANEL + N].copy_from_slice(&sums[m]);
    }
}

/// Many rows: a strip of weight rows is widened once a K block, into a buffer that all rows of x share.
#[inline(always)]
fn many_rows<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    x: PackedRows<'_>,
    rows: Range<usize>,
    w: &WeightMatrix,
    columns: Range<usize>,
    out: &mut [f32],
) {
    for m in 0..rows.len() {
        out[m * PANEL..m * PANEL + columns.len()].fill(0.0);
    }
    let mut wide = [[Chunk::ZERO; BLOCK_CHUNKS]; STRIP];
    // Blocks outside, strips inside: the block of x that all strips read stays in the second-level cache.
    for b in 0..x.blocks() {
        let len = x.row(b, rows.start).len();
        for first in columns.clone().step_by(STRIP) {
            let strip = (columns.end - first).min(STRIP);
            let to = first - columns.start;
            for n in 0..strip {
                widen::<S, E>(s, w.row(first + n), b, &mut wide[n]);
            }
            let wide: [&[Chunk]; STRIP] = std::array::from_fn(|n| &wide[n][..len]);
            let wide = &wide[..strip];
            let mut m = rows.start;
            while m < rows.end {
                let out = &mut out[(m - rows.start) * PANEL + to..];
                match (rows.end - m).min(M) {
                    1 => row_of_tiles::<S, 1, N>(s, x, b, m, wide, out),
                    2 => row_of_tiles::<S, 2, N>(s, x, b, m, wide, out),
                    3 => row_of_tiles::<S, 3, N>(s, x, b, m, wide, out),
                    _ => row_of_tiles::<S, M, N>(s, x, b, m, wide, out),
                }
                m += M;
            }
        }
    }
}

/// M rows against a strip of widened weights, added to the sums in `out`.
#[inline(always)]
fn row_of_tiles<S: Simd, const M: usize, const N: usize>(
    s: S,
    x: PackedRows<'_>,
    b: usize,
    first: usize,
    wide: &[&[Chunk]],
    out: &mut [f32],
) {
    let x = std::array::from_fn(|m| x.row(b, first + m));
    let mut n = 0;
    while n + N <= wide.len() {
        add_tile::<S, M, N>(s, x, std::array::from_fn(|i| wide[n + i]), &mut out[n..]);
        n += N;
    }
    while n < wide.len() {
        add_tile::<S, M, 1>(s, x, [wide[n]], &mut out[n..]);
        n += 1;
    }
}

#[inline(always)]
fn add_tile<S: Simd, const M: usize, const N: usize>(
    s: S,
    x: [&[Chunk]; M],
    w: [&[Chunk]; N],
    out: &mut [f32],
) {
    let mut sums: [[f32; N]; M] = std::array::from_fn(|m| std::array::from_fn(|n| out[m * PANEL + n]));
    tile(s, x, w, None, |c| s.load(c), &mut sums);
    for m in 0..M {
        out[m * PANEL..m * PANEL + N].copy_from_slice(&sums[m]);
    }
}

/// Widens block `b` of a stored row.
#[inline(always)]
fn widen<S: Simd, E: Element>(s: S, row: &[u8], b: usize, to: &mut [Chunk; BLOCK_CHUNKS]) {
    let stored = E::split(row);
    let (from, until, ends) = in_block::<E>(&stored, b);
    for (to, from) in to.iter_mut().zip(&stored.0[from..until]) {
        s.store(E::load(s, from), to);
    }
    if ends {
        s.store(E::load(s, &stored.1), &mut to[until - from]);
    }
}
