//! Exact products: f32 activations, weights of any type widened to f32, in the canonical order.
//!
//! A task sweeps some rows of x over one panel of weight rows, tile by tile ([`crate::tile`]): some rows of x against some
//! weight rows over one K block. Weights are widened in registers as they are used, or first into tiles of their own: for
//! block-quantised types always, and for many rows where the [`Tiling`] says so, so that a loop reads two stretches of memory
//! and nothing else. Weights that come next are asked for meanwhile, so that they lie in the second-level cache by the time.
//! Sums are kept tile by tile while K blocks are added to them.

use std::marker::PhantomData;
use std::ops::Range;

use moe_core::numerics::{BLOCK, LANES};

use crate::blocks::{Block, with_block};
use crate::chunk::{BLOCK_CHUNKS, Chunk};
use crate::element::{Element, F32};
use crate::packed::{PackedRows, RowSource, Tile};
use crate::products::{PANEL, ROW_BLOCK};
use crate::simd::{Kernel, Simd};
use crate::tile::{PackedTiles, StoredRows, StoredTiles, Tiling, WIDE, store_in_tile};
use crate::{WeightFormat, WeightView};

/// Rows of x of a tile, whose chunks alternate.
pub(crate) const TILE_ROWS: usize = 4;

/// Bytes of x up to which weights are read in the order they are stored: half of the smallest second-level cache of the
/// processors that the kernels are made for (1 MiB; Zen 3's is 512 KiB, where nothing was measured for it).
const X_FITS_L2: usize = 512 << 10;
/// Weight rows that are widened together where K blocks are outside: with a tile's rows of x they fit a first-level cache.
const STRIP: usize = 6;

const _: () = assert!(PANEL.is_multiple_of(4) && PANEL.is_multiple_of(STRIP));
const _: () =
    assert!(STRIP.is_multiple_of(3) && STRIP.is_multiple_of(WIDE) && ROW_BLOCK.is_multiple_of(TILE_ROWS));

/// Packs a tile of activations as they are.
pub(crate) fn pack_tile(source: &impl RowSource, tile: Tile, to: &mut [Chunk]) {
    let rows = tile.rows.len();
    for j in 0..to.len() / rows {
        for m in 0..rows {
            let mut chunk = [0.0; LANES];
            source.read_chunk(tile.group, tile.rows.start + m, tile.b * BLOCK_CHUNKS + j, &mut chunk);
            store_in_tile(tile.halves, to, rows, m, j, &chunk);
        }
    }
}

/// How a sweep reads the weights of one format.
pub(crate) trait Weights {
    /// What a chunk of weights is, once it is widened.
    type Term: Element;
    /// Elements that only occur together: rows that are no multiple of them end within such a unit.
    const UNIT: usize;
    /// Whether tiles can read rows as they are stored.
    const AS_STORED: bool;

    /// Bytes of a row in a whole K block.
    fn block_bytes(w: WeightView<'_>) -> usize;

    /// Widens what some rows have in one K block, which is in `stored` of their bytes, into a tile; what is missing of the
    /// last chunk is zeros.
    fn widen_tile<S: Simd>(
        s: S,
        w: WeightView<'_>,
        rows: Range<usize>,
        stored: Range<usize>,
        tile: &mut [Chunk],
    );
}

/// Weights of one element after the other.
pub(crate) struct Plain<E>(PhantomData<E>);

impl<E: Element> Weights for Plain<E> {
    type Term = E;
    const UNIT: usize = E::ELEMENTS;
    const AS_STORED: bool = true;

    #[inline(always)]
    fn block_bytes(_: WeightView<'_>) -> usize {
        BLOCK_CHUNKS * size_of::<E::Stored>()
    }

    #[inline(always)]
    fn widen_tile<S: Simd>(
        s: S,
        w: WeightView<'_>,
        rows: Range<usize>,
        stored: Range<usize>,
        tile: &mut [Chunk],
    ) {
        let n = rows.len();
        for (i, row) in rows.enumerate() {
            let (whole, tail) = E::chunks(&w.row(row)[stored.clone()]);
            let padded = (!tail.is_empty()).then(|| E::padded(tail));
            for (j, from) in whole.iter().chain(&padded).enumerate() {
                for c in 0..E::X_CHUNKS {
                    let mut chunk = [0.0; LANES];
                    s.store(E::load(s, from, c), &mut chunk);
                    store_in_tile(S::HALVES, tile, n, i, j * E::X_CHUNKS + c, &chunk);
                }
            }
        }
    }
}

/// Weights in blocks, of which rows are a whole number. One sweep serves all types.
pub(crate) struct Blocks;

impl Weights for Blocks {
    type Term = F32;
    const UNIT: usize = 1;
    const AS_STORED: bool = false;

    fn block_bytes(w: WeightView<'_>) -> usize {
        match w.format() {
            WeightFormat::Blocks(block) => BLOCK / block.elements() * block.bytes(),
            WeightFormat::Plain(dtype) => BLOCK * dtype.bytes(),
        }
    }

    #[inline(always)]
    fn widen_tile<S: Simd>(
        s: S,
        w: WeightView<'_>,
        rows: Range<usize>,
        stored: Range<usize>,
        tile: &mut [Chunk],
    ) {
        s.outlined(WidenBlocks { w, rows, stored, tile });
    }
}

/// Widens what some rows have in one K block into a tile.
struct WidenBlocks<'a> {
    w: WeightView<'a>,
    rows: Range<usize>,
    stored: Range<usize>,
    tile: &'a mut [Chunk],
}

impl Kernel for WidenBlocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if let WeightFormat::Blocks(block) = self.w.format() {
            with_block!(block, B => self.run_with::<S, B>(s));
        }
    }
}

impl WidenBlocks<'_> {
    #[inline(always)]
    fn run_with<S: Simd, B: Block>(self, _: S) {
        let Self { w, rows, stored, tile } = self;
        let n = rows.len();
        for (i, row) in rows.enumerate() {
            for (b, block) in w.row(row)[stored.clone()].chunks_exact(B::BYTES).enumerate() {
                B::widen(
                    block,
                    #[inline(always)]
                    |j, chunk| store_in_tile(S::HALVES, tile, n, i, b * (B::ELEMENTS / LANES) + j, &chunk),
                );
            }
        }
    }
}

/// Computes `out[m][n] = x[m] · w[n]` for the given rows of x, which begin where a tile of them begins, and the weight rows
/// of panel `p`.
///
/// `out` is `[rows, PANEL]` and is overwritten; what lies beyond the columns of the matrix is unspecified.
#[inline(always)]
pub(crate) fn multiply_panel<S: Simd, W: Weights>(
    s: S,
    x: PackedRows<'_>,
    rows: Range<usize>,
    w: WeightView<'_>,
    p: usize,
    tiling: Tiling,
    out: &mut [f32],
) {
    let columns = p * PANEL..((p + 1) * PANEL).min(w.rows());
    out.fill(0.0);
    let ragged = !w.columns().is_multiple_of(W::UNIT);
    let widened = !W::AS_STORED || tiling.widens(rows.len());
    let tiling = tiling.of_rows(rows.len());
    let mut sweep = PanelSweep { x, rows, w, columns, widened, ragged, out };
    let mut buffer;
    let buffer = if widened || ragged {
        // Room for a strip of six rows of 64 chunks each.
        buffer = [Chunk::ZERO; 2 * STRIP * BLOCK_CHUNKS];
        &mut buffer[..]
    } else {
        &mut []
    };
    match tiling {
        Tiling::Narrow if !S::MANY_REGISTERS => {
            sweep.run::<S, W, 3>(s, STRIP / W::Term::X_CHUNKS, buffer);
        }
        Tiling::Wide if S::MANY_REGISTERS => sweep.run::<S, W, WIDE>(s, STRIP, buffer),
        _ => sweep.run::<S, W, 4>(s, 4, buffer),
    }
}

/// All rows of a task against one panel of weights.
struct PanelSweep<'a> {
    x: PackedRows<'a>,
    rows: Range<usize>,
    w: WeightView<'a>,
    columns: Range<usize>,
    /// Whether weights are widened into a buffer.
    widened: bool,
    /// Whether weight rows end within a unit.
    ragged: bool,
    /// For every four rows of x, the sums of one tile of columns after the other, then of single columns.
    out: &'a mut [f32],
}

impl PanelSweep<'_> {
    /// All columns, N a tile while there are so many; their sums, row after row.
    #[inline(always)]
    fn run<S: Simd, W: Weights, const N: usize>(&mut self, s: S, step: usize, buffer: &mut [Chunk]) {
        let Range { start, end } = self.columns;
        let whole = end - (end - start) % N;
        let blocks = self.x.blocks();
        if self.rows.len() * self.x.row_bytes() <= X_FITS_L2 {
            // The weights come from memory at the pace of the products: row after row, as they lie.
            for n in (start..whole).step_by(N) {
                for b in 0..blocks {
                    self.strip::<S, W, N>(s, buffer, n..n + N, b, (n + N, b));
                }
            }
        } else {
            // Blocks outside, so that the block of x that all columns read stays in the second-level cache.
            for b in 0..blocks {
                for n in (start..whole).step_by(step) {
                    let until = (n + step).min(whole);
                    let next = if until < whole { (until, b) } else { (start, b + 1) };
                    self.strip::<S, W, N>(s, buffer, n..until, b, next);
                }
            }
        }
        for n in whole..end {
            for b in 0..blocks {
                self.strip::<S, W, 1>(s, buffer, n..n + 1, b, (n, b + 1));
            }
        }
        untile::<N>(self.out, self.columns.len());
    }

    /// All rows of x against some columns, N a tile, over block `b`; `next` are the column and block that follow.
    #[inline(always)]
    fn strip<S: Simd, W: Weights, const N: usize>(
        &mut self,
        s: S,
        buffer: &mut [Chunk],
        columns: Range<usize>,
        b: usize,
        next: (usize, usize),
    ) {
        let last = self.x.blocks() - 1;
        let w = block_of::<W>(self.w, columns.start, b);
        // The last block may be shorter than the others.
        let as_long = next.1 < last || next.1 == last && b == last;
        let ahead = if as_long && next.0 + columns.len() <= self.w.rows() {
            block_of::<W>(self.w, next.0, next.1)
        } else {
            w
        };
        let len = self.x.block_len(b);
        let bytes = W::block_bytes(self.w);
        let stored = b * bytes..((b + 1) * bytes).min(self.w.stride());
        let packed = if self.widened || self.ragged && b == last {
            let buffer = &mut buffer[..columns.len() * len];
            for (tile, n) in buffer.chunks_exact_mut(N * len).zip(columns.clone().step_by(N)) {
                W::widen_tile(s, self.w, n..n + N, stored.clone(), tile);
            }
            Some(&*buffer)
        } else {
            None
        };
        let column = columns.start - self.columns.start;
        let (first, end) = (self.rows.start, self.rows.end);
        let whole = self.rows.len() / TILE_ROWS * TILE_ROWS;
        let (out, rest) = self.out.split_at_mut(whole * PANEL);
        let (columns, stored) = (columns.len(), stored.len());
        let strip = Strip { x: self.x, b, len, packed, w, ahead, stored, columns };
        strip.tiles::<S, W, TILE_ROWS, N>(s, first..first + whole, column, out);
        match self.rows.len() - whole {
            0 => {}
            1 => strip.tiles::<S, W, 1, N>(s, first + whole..end, column, rest),
            2 => strip.tiles::<S, W, 2, N>(s, first + whole..end, column, rest),
            _ => strip.tiles::<S, W, 3, N>(s, first + whole..end, column, rest),
        }
    }
}

/// Block `b` of the weight rows from `n` on.
#[inline(always)]
fn block_of<W: Weights>(w: WeightView<'_>, n: usize, b: usize) -> StoredRows<'_> {
    StoredRows { bytes: &w.bytes()[n * w.stride() + b * W::block_bytes(w)..], stride: w.stride() }
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
    /// Bytes of a weight row as it is stored.
    stored: usize,
    columns: usize,
}

impl Strip<'_> {
    /// Rows of x, M a tile. `out` are their sums, the tiles of those M rows in turn; the strip begins at a column of them.
    #[inline(always)]
    fn tiles<S: Simd, W: Weights, const M: usize, const N: usize>(
        &self,
        s: S,
        rows: Range<usize>,
        column: usize,
        out: &mut [f32],
    ) {
        let &Self { b, len, w, ahead, stored, .. } = self;
        let x = self.x.tiles(b, rows);
        if x.is_empty() {
            return;
        }
        let out_stride = M * PANEL;
        if let Some(w) = self.packed {
            let (out, element) = (&mut out[M * column..], PhantomData::<<W::Term as Element>::Widened>);
            s.outlined(PackedTiles::<_, M, N> { x, w, len, ahead, stored, out, out_stride, element });
        } else if W::AS_STORED {
            for n in (0..self.columns).step_by(N) {
                let (w, ahead, out) = (w.from(n), ahead.from(n), &mut out[M * (column + n)..]);
                let element = PhantomData;
                s.outlined(StoredTiles::<W::Term, M, N> { x, w, ahead, len, out, out_stride, element });
            }
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

const _: () = assert!(BLOCK == LANES * BLOCK_CHUNKS);
