//! Panels of `x · Wᵀ`, made of register tiles.
//!
//! A tile is some rows of x against some rows of W over one K block. Weights are widened in registers as they are used, or,
//! for many rows where registers are few, into a buffer first; those that come next are asked for meanwhile, so that they
//! lie in the second-level cache by the time.

use std::marker::PhantomData;
use std::ops::Range;

use moe_core::numerics::LANES;

use crate::WeightMatrix;
use crate::element::Element;
use crate::pack::{BLOCK_CHUNKS, PackedRows, TILE_ROWS};
use crate::simd::{Chunk, Simd};
use crate::tile::{OUT_STRIDE, StoredRows, Tile};

/// Weight rows, and so output columns, of a panel: the unit of parallel work. A multiple of what every tile has.
pub(crate) const PANEL: usize = OUT_STRIDE;
/// Chunks of one row of a panel's output.
pub(crate) const PANEL_CHUNKS: usize = PANEL / LANES;
/// Rows of x that one sweep over a panel's weights serves. A multiple of [`TILE_ROWS`].
pub(crate) const ROW_BLOCK: usize = 128;

/// Bytes of x up to which weights are read in the order they are stored in: what a second-level cache keeps.
const NEAR: usize = 512 << 10;
/// Rows of x up to which weights are widened in registers even where these are few.
const FEW_ROWS_IN_REGISTERS: usize = 16;
/// Weight rows that are widened together: with a tile's rows of x they fit a first-level cache.
const STRIP: usize = 6;

/// Number of panels that cover `columns` output columns.
pub(crate) fn panels_of(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// Computes `out[m][n] = x[m] · w[n]` for the given rows of x, which begin where a tile of them begins, and the weight rows
/// of panel `p`.
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
    for out in out.chunks_exact_mut(PANEL) {
        out[..columns.len()].fill(0.0);
    }
    let ragged = !w.columns().is_multiple_of(E::COUNT);
    let widened = E::NARROW && !S::WIDE && rows.len() > FEW_ROWS_IN_REGISTERS;
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
    } else {
        panel.sweep::<S, E, 3>(s, STRIP / E::CHUNKS, buffer);
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
        let ahead =
            if next.0 + columns.len() <= self.w.rows() && (next.1 < last || b == last && next.1 == last) {
                block_of::<E>(self.w, next.0, next.1)
            } else {
                w
            };
        let ragged = self.ragged && b == last;
        if ragged || self.widened {
            let row = E::CHUNKS * BLOCK_CHUNKS;
            for (n, to) in columns.clone().zip(buffer.chunks_exact_mut(row)) {
                widen::<S, E>(s, self.w, n, b, to);
            }
            let wide = StoredRows { bytes: bytemuck::cast_slice(buffer), stride: row * size_of::<Chunk>() };
            if ragged {
                self.tiles::<S, E::Widened, E::Widened, N>(s, columns, b, wide, wide);
            } else {
                self.tiles::<S, E::Widened, E, N>(s, columns, b, wide, ahead);
            }
        } else {
            self.tiles::<S, E, E, N>(s, columns, b, w, ahead);
        }
    }

    #[inline(always)]
    fn tiles<S: Simd, E: Element, A: Element, const N: usize>(
        &mut self,
        s: S,
        columns: Range<usize>,
        b: usize,
        w: StoredRows<'_>,
        ahead: StoredRows<'_>,
    ) {
        let mut m = self.rows.start;
        while m < self.rows.end {
            let rows = (self.rows.end - m).min(TILE_ROWS);
            let x = self.x.tile(b, m, rows);
            for n in (0..columns.len()).step_by(N) {
                let out =
                    &mut self.out[(m - self.rows.start) * PANEL + columns.start - self.columns.start + n..];
                let (w, ahead) = (w.from(n), ahead.from(n));
                match rows {
                    1 => s.apart(Tile::<E, A, 1, N> { x, w, ahead, out, types: PhantomData }),
                    2 => s.apart(Tile::<E, A, 2, N> { x, w, ahead, out, types: PhantomData }),
                    3 => s.apart(Tile::<E, A, 3, N> { x, w, ahead, out, types: PhantomData }),
                    _ => s.apart(Tile::<E, A, TILE_ROWS, N> { x, w, ahead, out, types: PhantomData }),
                }
            }
            m += rows;
        }
    }
}

/// Block `b` of the weight rows from `n` on.
#[inline(always)]
fn block_of<E: Element>(w: &WeightMatrix, n: usize, b: usize) -> StoredRows<'_> {
    let stride = w.stride();
    StoredRows { bytes: &w.bytes()[n * stride + b * BLOCK_CHUNKS * size_of::<E::Stored>()..], stride }
}

/// Widens block `b` of a weight row, padded with zeros where it ends within a chunk.
#[inline(always)]
fn widen<S: Simd, E: Element>(s: S, w: &WeightMatrix, n: usize, b: usize, to: &mut [Chunk]) {
    let (whole, tail) = E::chunks(w.row(n));
    let block = &whole[b * BLOCK_CHUNKS..whole.len().min((b + 1) * BLOCK_CHUNKS)];
    let (to_block, to_tail) = to.split_at_mut(block.len() * E::CHUNKS);
    for (from, to) in block.iter().zip(to_block.chunks_exact_mut(E::CHUNKS)) {
        for (i, to) in to.iter_mut().enumerate() {
            s.store(E::load(s, from, i), to);
        }
    }
    if !tail.is_empty() {
        let tail = E::padded(tail);
        for (i, to) in to_tail.iter_mut().take(E::CHUNKS).enumerate() {
            s.store(E::load(s, &tail, i), to);
        }
    }
}
