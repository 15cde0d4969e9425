//! Panels of `x · Wᵀ`, made of register tiles.
//!
//! A tile is some rows of x against some rows of W over one K block. Weights are widened in registers as they are used, or,
//! for many rows where registers are few, into tiles of their own first, so that a loop reads nothing but two stretches of
//! memory; those that come next are asked for meanwhile, so that they lie in the second-level cache by the time. Sums are
//! kept tile by tile while blocks are added to them.

use std::marker::PhantomData;
use std::ops::Range;

use moe_core::numerics::LANES;

use crate::WeightMatrix;
use crate::element::Element;
use crate::pack::{BLOCK_CHUNKS, PackedRows, TILE_ROWS};
use crate::simd::{Chunk, Simd};
use crate::tile::{PackedTiles, StoredRows, StoredTiles, place};

/// Weight rows, and so output columns, of a panel: the unit of parallel work. A multiple of what every tile has.
pub(crate) const PANEL: usize = 48;
/// Chunks of one row of a panel's output.
pub(crate) const PANEL_CHUNKS: usize = PANEL / LANES;
/// Rows of x that one sweep over a panel's weights serves. A multiple of [`TILE_ROWS`].
pub(crate) const ROW_BLOCK: usize = 128;

/// Bytes of x up to which weights are read in the order they are stored in: what a second-level cache keeps.
const NEAR: usize = 512 << 10;
/// Rows of x up to which weights are widened in registers even where these are few.
const FEW_ROWS_IN_REGISTERS: usize = 16;
/// Weight rows that are widened together where K blocks are outside: with a tile's rows of x they fit a first-level cache.
const STRIP: usize = 6;

const _: () =
    assert!(PANEL.is_multiple_of(4) && PANEL.is_multiple_of(STRIP) && ROW_BLOCK.is_multiple_of(TILE_ROWS));

/// Number of panels that cover `columns` output columns.
pub(crate) fn panels_of(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// Computes `out[m][n] = x[m] · w[n]` for the given rows of x, which begin where a tile of them begins, and the weight rows
/// of panel `p`.
///
/// `out` is `[rows, PANEL]` and is overwritten; what lies beyond the columns of the matrix is unspecified.
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
    out.fill(0.0);
    let ragged = !w.columns().is_multiple_of(E::COUNT);
    let widened = !S::WIDE && rows.len() > FEW_ROWS_IN_REGISTERS;
    let mut panel = Panel { x, rows, w, columns, widened, ragged, out };
    let mut buffer;
    let buffer = if widened || ragged {
        // For a strip, or four rows of twice as many chunks.
        buffer = [Chunk::ZERO; 8 * BLOCK_CHUNKS];
        &mut buffer[..]
    } else {
        &mut []
    };
    if S::WIDE || panel.rows.len() == 1 {
        panel.sweep::<S, E, 4>(s, 4, buffer);
        untile::<4>(panel.out, panel.columns.len());
    } else {
        panel.sweep::<S, E, 3>(s, STRIP / E::CHUNKS, buffer);
        untile::<3>(panel.out, panel.columns.len());
    }
}

struct Panel<'a> {
    x: PackedRows<'a>,
    rows: Range<usize>,
    w: &'a WeightMatrix,
    columns: Range<usize>,
    /// Whether weights are widened into a buffer.
    widened: bool,
    /// Whether weight rows end within a chunk.
    ragged: bool,
    /// For every four rows of x, the sums of one tile of columns after the other, then of single columns.
    out: &'a mut [f32],
}

impl Panel<'_> {
    /// All columns, N a tile while there are so many.
    #[inline(always)]
    fn sweep<S: Simd, E: Element, const N: usize>(&mut self, s: S, step: usize, buffer: &mut [Chunk]) {
        let Range { start, end } = self.columns;
        let whole = end - (end - start) % N;
        let blocks = self.x.blocks();
        if self.rows.len() * self.x.row_bytes() <= NEAR {
            // The weights come from memory at the pace of the products: row after row, as they lie.
            for n in (start..whole).step_by(N) {
                for b in 0..blocks {
                    self.strip::<S, E, N>(s, buffer, n..n + N, b, (n + N, b));
                }
            }
        } else {
            // Blocks outside, so that the block of x that all columns read stays in the second-level cache.
            for b in 0..blocks {
                for n in (start..whole).step_by(step) {
                    let until = (n + step).min(whole);
                    let next = if until < whole { (until, b) } else { (start, b + 1) };
                    self.strip::<S, E, N>(s, buffer, n..until, b, next);
                }
            }
        }
        for n in whole..end {
            for b in 0..blocks {
                self.strip::<S, E, 1>(s, buffer, n..n + 1, b, (n, b + 1));
            }
        }
    }

    /// All rows of x against some columns, N a tile, over block `b`; `next` are the column and block that follow.
    #[inline(always)]
    fn strip<S: Simd, E: Element, const N: usize>(
        &mut self,
        s: S,
        buffer: &mut [Chunk],
        columns: Range<usize>,
        b: usize,
        next: (usize, usize),
    ) {
        let last = self.x.blocks() - 1;
        let w = block_of::<E>(self.w, columns.start, b);
        // The last block may be shorter than the others.
        let as_long = next.1 < last || next.1 == last && b == last;
        let ahead = if as_long && next.0 + columns.len() <= self.w.rows() {
            block_of::<E>(self.w, next.0, next.1)
        } else {
            w
        };
        let len = self.x.block_len(b);
        let packed = if self.widened || self.ragged && b == last {
            let buffer = &mut buffer[..columns.len() * len];
            for (tile, n) in buffer.chunks_exact_mut(N * len).zip(columns.clone().step_by(N)) {
                for i in 0..N {
                    widen::<S, E>(s, self.w, n + i, b, tile, N, i);
                }
            }
            Some(&*buffer)
        } else {
            None
        };
        let column = columns.start - self.columns.start;
        let (first, end) = (self.rows.start, self.rows.end);
        let whole = self.rows.len() / TILE_ROWS * TILE_ROWS;
        let (out, rest) = self.out.split_at_mut(whole * PANEL);
        let strip = Strip { x: self.x, b, len, packed, w, ahead, columns: columns.len() };
        strip.tiles::<S, E, TILE_ROWS, N>(s, first..first + whole, column, out);
        match self.rows.len() - whole {
            0 => {}
            1 => strip.tiles::<S, E, 1, N>(s, first + whole..end, column, rest),
            2 => strip.tiles::<S, E, 2, N>(s, first + whole..end, column, rest),
            _ => strip.tiles::<S, E, 3, N>(s, first + whole..end, column, rest),
        }
    }
}

/// One strip of columns over one block.
struct Strip<'a> {
    x: PackedRows<'a>,
    b: usize,
    /// Chunks of a row of x.
    len: usize,
    /// The weights as tiles, where they are widened.
    packed: Option<&'a [Chunk]>,
    w: StoredRows<'a>,
    ahead: StoredRows<'a>,
    columns: usize,
}

impl Strip<'_> {
    /// Rows of x, M a tile. `out` are their sums, the tiles of those M rows in turn; the strip begins at a column of them.
    #[inline(always)]
    fn tiles<S: Simd, E: Element, const M: usize, const N: usize>(
        &self,
        s: S,
        rows: Range<usize>,
        column: usize,
        out: &mut [f32],
    ) {
        let &Self { b, len, w, ahead, .. } = self;
        let x = self.x.tiles(b, rows);
        let element = PhantomData;
        if x.is_empty() {
            return;
        }
        if let Some(w) = self.packed {
            let out = &mut out[M * column..];
            s.apart(PackedTiles::<E, M, N> { x, w, len, ahead, out, out_stride: M * PANEL, element });
            return;
        }
        for n in (0..self.columns).step_by(N) {
            let (w, ahead, out) = (w.from(n), ahead.from(n), &mut out[M * (column + n)..]);
            s.apart(StoredTiles::<E, M, N> { x, w, ahead, len, out, out_stride: M * PANEL, element });
        }
    }
}

/// Brings the sums of a panel from tile after tile into rows.
#[inline(always)]
fn untile<const N: usize>(out: &mut [f32], columns: usize) {
    for out in out.chunks_mut(TILE_ROWS * PANEL) {
        let rows = out.len() / PANEL;
        if rows == 1 {
            continue;
        }
        let mut tiles = [0.0; TILE_ROWS * PANEL];
        tiles[..out.len()].copy_from_slice(out);
        let whole = columns - columns % N;
        for (m, out) in out.chunks_exact_mut(PANEL).enumerate() {
            for (n, out) in out[..whole].chunks_exact_mut(N).enumerate() {
                out.copy_from_slice(&tiles[rows * n * N + m * N..][..N]);
            }
            for n in whole..columns {
                out[n] = tiles[rows * n + m];
            }
        }
    }
}

/// Block `b` of the weight rows from `n` on.
#[inline(always)]
fn block_of<E: Element>(w: &WeightMatrix, n: usize, b: usize) -> StoredRows<'_> {
    let stride = w.stride();
    StoredRows { bytes: &w.bytes()[n * stride + b * BLOCK_CHUNKS * size_of::<E::Stored>()..], stride }
}

/// Widens block `b` of a weight row, padded with zeros where it ends within a chunk, into row `i` of a tile.
#[inline(always)]
fn widen<S: Simd, E: Element>(
    s: S,
    w: &WeightMatrix,
    n: usize,
    b: usize,
    tile: &mut [Chunk],
    rows: usize,
    i: usize,
) {
    let (whole, tail) = E::chunks(w.row(n));
    let block = &whole[b * BLOCK_CHUNKS..whole.len().min((b + 1) * BLOCK_CHUNKS)];
    let padded = (!tail.is_empty() && block.len() < BLOCK_CHUNKS).then(|| E::padded(tail));
    for (j, from) in block.iter().chain(&padded).enumerate() {
        for c in 0..E::CHUNKS {
            let mut chunk = [0.0; LANES];
            s.store(E::load(s, from, c), &mut chunk);
            place(S::PARTS, tile, rows, i, j * E::CHUNKS + c, &chunk);
        }
    }
}
