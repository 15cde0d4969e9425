//! Products with activations rounded to int8, for weights in blocks of small integers.
//!
//! A lane is a row of weights: sixteen rows of a panel are unpacked and interleaved over a K block, so that one vector has four
//! bytes of each, and then multiplied with tile after tile of x. A sum of integers over a block is exact; what is added up in
//! f32 is one chain an output ([`moe_core::numerics::add_int8_block`]), which no horizontal sum interrupts.
//!
//! [`activations`] packs x, [`interleaved`] brings weights into lanes, [`tokens`] multiplies tiles and [`one_row`] single rows.

mod activations;
mod interleaved;
mod one_row;
mod tokens;

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::cast_slice;
use moe_core::numerics::{BLOCK, LANES};

use super::exact;
use crate::WeightView;
use crate::blocks::IntegerBlock;
use crate::chunk::Chunk;
use crate::packed::PackedRows;
use crate::products::{PANEL, PANEL_CHUNKS, ROW_BLOCK};
use crate::simd::Simd;
pub(crate) use activations::{chunks, pack_tile};
use interleaved::{Interleave, MOST_CHUNKS, unit_chunks};
use one_row::OneRow;
use tokens::{TokenTask, Tokens};

/// Rows of x of a tile.
pub(crate) const TILE_ROWS: usize = 8;

const _: () = assert!(ROW_BLOCK.is_multiple_of(TILE_ROWS) && PANEL.is_multiple_of(LANES));
const _: () = assert!(exact::TILE_ROWS <= TILE_ROWS);

/// Computes `out[m][n] = x[m] · w[n]` for the given rows of x, which begin where a tile of them begins, and the weight rows
/// of panel `p`.
///
/// `out` is `[rows, PANEL]` and is overwritten; what lies beyond the columns of the matrix is unspecified.
#[inline(always)]
pub(crate) fn multiply_panel<S: Simd, B: IntegerBlock>(
    s: S,
    x: PackedRows<'_>,
    rows: Range<usize>,
    w: WeightView<'_>,
    p: usize,
    out: &mut [f32],
) {
    out.fill(0.0);
    let (out, _) = out.as_chunks_mut::<LANES>();
    let columns = p * PANEL..((p + 1) * PANEL).min(w.rows());
    if rows.len() == 1 {
        for (n, out) in columns.step_by(LANES).zip(out) {
            s.outlined(OneRow::<B> { x, row: rows.start, w, n, out, block: PhantomData });
        }
        return;
    }
    let mut buffer = [Chunk::ZERO; MOST_CHUNKS];
    for (strip, n) in columns.step_by(LANES).enumerate() {
        for b in 0..x.blocks() {
            let bytes = BLOCK / B::ELEMENTS * B::BYTES;
            let stored = b * bytes..((b + 1) * bytes).min(w.stride());
            let blocks = stored.len() / B::BYTES;
            let interleaved = &mut buffer[..blocks * unit_chunks::<B>()];
            let block = PhantomData;
            s.outlined(Interleave::<B> { w, n, stored, to: interleaved, block });
            for first in rows.clone().step_by(TILE_ROWS) {
                let tile = first..(first + TILE_ROWS).min(rows.end);
                let out = &mut out[(first - rows.start) * PANEL_CHUNKS + strip..];
                multiply_tile::<S, B>(s, x.tiles(b, tile.clone()), tile.len(), blocks, interleaved, out);
            }
        }
    }
}

/// One tile of x, as many rows at a time as registers hold sums of.
#[inline(always)]
fn multiply_tile<S: Simd, B: IntegerBlock>(
    s: S,
    x: &[Chunk],
    rows: usize,
    blocks: usize,
    w: &[Chunk],
    out: &mut [[f32; LANES]],
) {
    let x: &[i32] = cast_slice(x);
    let mut first = 0;
    while first < rows {
        let out = &mut out[first * PANEL_CHUNKS..];
        let task = TokenTask { x, rows, first, blocks, w, out };
        first += match (rows - first).min(S::TOKENS) {
            8.. => s.outlined(Tokens::<B, 8>(task, PhantomData)),
            4.. => s.outlined(Tokens::<B, 4>(task, PhantomData)),
            _ => s.outlined(Tokens::<B, 1>(task, PhantomData)),
        };
    }
}
