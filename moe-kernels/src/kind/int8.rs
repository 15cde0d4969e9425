//! Products with activations rounded to int8, for weights in blocks of small integers.
//!
//! A lane is a row of weights: sixteen rows of a panel are unpacked and interleaved over a K block, so that one vector has four
//! bytes of each, and then multiplied with tile after tile of x. A sum of integers over a block is exact; what is added up in
//! f32 is one chain an output ([`moe_core::numerics::add_int8_block`]), which no horizontal sum interrupts.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{cast, cast_mut, cast_slice, cast_slice_mut};
use moe_core::numerics::{BLOCK, INT8_LEAST, LANES};

use super::exact;
use crate::blocks::IntegerBlock;
use crate::chunk::Chunk;
use crate::packed::{PackedRows, RowSource, Tile};
use crate::products::{PANEL, PANEL_CHUNKS, ROW_BLOCK};
use crate::simd::{Bytes, Kernel, Simd, ints_chunk};
use crate::{Backend, WeightView};

/// Rows of x of a tile.
pub(crate) const TILE_ROWS: usize = 8;

const _: () = assert!(ROW_BLOCK.is_multiple_of(TILE_ROWS) && PANEL.is_multiple_of(LANES));
const _: () = assert!(exact::TILE_ROWS <= TILE_ROWS);

/// Dwords of a packed block of `SIZE` activations of one row: its bytes, its scale, and its sums as pairs of words. Blocks of
/// 256 have the sums of each 16 activations, then those of each 32; blocks of 32 have one, beside a zero.
const fn dwords<const SIZE: usize>() -> usize {
    SIZE / 4 + 1 + sums_of_16::<SIZE>() + sums_of_32::<SIZE>()
}

const fn sums_of_16<const SIZE: usize>() -> usize {
    if SIZE == 32 { 0 } else { SIZE / 32 }
}

const fn sums_of_32<const SIZE: usize>() -> usize {
    if SIZE == 32 { 1 } else { SIZE / 64 }
}

/// Chunks that so many activations of a row fill, at most a K block of them.
pub(crate) const fn chunks<const SIZE: usize>(activations: usize) -> usize {
    (activations.div_ceil(SIZE) * dwords::<SIZE>()).div_ceil(LANES)
}

/// Packs a tile, whose index order is `[block][row][dword]`. The first row with an activation that is not finite is noted.
pub(crate) fn pack_tile<const SIZE: usize>(
    backend: Backend,
    source: &impl RowSource,
    tile: Tile,
    to: &mut [Chunk],
    first_bad: &AtomicUsize,
) {
    let (rows, columns) = (tile.rows.len(), source.columns());
    let to: &mut [i32] = cast_slice_mut(to);
    let first = tile.b * BLOCK;
    let blocks = BLOCK.min(columns - first) / SIZE;
    let to = to.chunks_exact_mut(dwords::<SIZE>()).take(blocks * rows);
    for (i, to) in to.enumerate() {
        let (b, m) = (i / rows, tile.rows.start + i % rows);
        let mut x = [0.0; SIZE];
        for (j, x) in x.as_chunks_mut().0.iter_mut().enumerate() {
            source.read_chunk(tile.group, m, (first + b * SIZE) / LANES + j, x);
        }
        if !backend.run(Quantise::<SIZE> { x: &x, to }) {
            first_bad.fetch_min(m, Ordering::Relaxed);
        }
    }
}

/// [`moe_core::numerics::quantise_int8`], with sums; `false` where an activation is not finite.
struct Quantise<'a, const SIZE: usize> {
    x: &'a [f32; SIZE],
    to: &'a mut [i32],
}

impl<const SIZE: usize> Kernel for Quantise<'_, SIZE> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        /// Added to a number below 2²², it rounds it to an integer, to nearest even, and leaves that in the low bits.
        const ROUND: f32 = (3 << 22) as f32;
        let most = self.x.iter().fold(0u32, |most, v| most.max(v.to_bits() & 0x7fff_ffff));
        let most = f32::from_bits(most);
        if !most.is_finite() {
            return false;
        }
        let xs = if most < INT8_LEAST { 0.0 } else { most / 127.0 };
        // Nothing is divided by zero: a block of zeros is.
        let divisor = if xs == 0.0 { f32::INFINITY } else { xs };
        let round = |v: f32| (v / divisor + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let q: [i32; SIZE] = std::array::from_fn(|i| round(self.x[i]));
        let (quants, rest) = self.to.split_at_mut(SIZE / 4);
        let bytes: &mut [i8] = cast_slice_mut(quants);
        bytes.iter_mut().zip(&q).for_each(|(to, q)| *to = *q as i8);
        let (scale, sums) = rest.split_at_mut(1);
        scale[0] = xs.to_bits() as i32;
        let sixteens: &[[i32; 16]] = q.as_chunks().0;
        let sum = |i: usize| sixteens[i].iter().sum::<i32>();
        let words = |low: i32, high: i32| i32::from(low as u16) | high << 16;
        let (of_16, of_32) = sums.split_at_mut(sums_of_16::<SIZE>());
        for (i, to) in of_16.iter_mut().enumerate() {
            *to = words(sum(2 * i), sum(2 * i + 1));
        }
        for (i, to) in of_32.iter_mut().enumerate() {
            let pair = |i: usize| if 2 * i < sixteens.len() { sum(2 * i) + sum(2 * i + 1) } else { 0 };
            *to = words(pair(2 * i), pair(2 * i + 1));
        }
        true
    }
}

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
    let mut buffer = [Chunk::ZERO; MOST_CHUNKS];
    let (out, _) = out.as_chunks_mut::<LANES>();
    let columns = p * PANEL..((p + 1) * PANEL).min(w.rows());
    for (strip, n) in columns.step_by(LANES).enumerate() {
        for b in 0..x.blocks() {
            let stored = b * BLOCK / B::ELEMENTS * B::BYTES
                ..((b + 1) * BLOCK / B::ELEMENTS * B::BYTES).min(w.stride());
            let blocks = stored.len() / B::BYTES;
            let buffer = &mut buffer[..blocks * unit_chunks::<B>()];
            // Rows beyond the last are it again; nobody looks at their lanes.
            let rows_of_w = std::array::from_fn(|i| &w.row((n + i).min(w.rows() - 1))[stored.clone()]);
            s.outlined(Interleave::<B> { rows: rows_of_w, to: buffer, block: PhantomData });
            let tiles = rows.clone().step_by(TILE_ROWS);
            for first in tiles {
                let tile = first..(first + TILE_ROWS).min(rows.end);
                let out = &mut out[(first - rows.start) * PANEL_CHUNKS + strip..];
                multiply_tile::<S, B>(s, x.tiles(b, tile.clone()), tile.len(), blocks, buffer, out);
            }
        }
    }
}

/// One tile of x, as many tokens at a time as registers hold.
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
        let (x, out) = (&x[first * tile_dwords::<B>()..], &mut out[first * PANEL_CHUNKS..]);
        let left = (rows - first).min(S::TOKENS);
        first += if left >= 8 {
            s.outlined(Tokens::<B, 8> { x, rows, blocks, w, out, block: PhantomData });
            8
        } else if left >= 4 {
            s.outlined(Tokens::<B, 4> { x, rows, blocks, w, out, block: PhantomData });
            4
        } else if left >= 2 {
            s.outlined(Tokens::<B, 2> { x, rows, blocks, w, out, block: PhantomData });
            2
        } else {
            s.outlined(Tokens::<B, 1> { x, rows, blocks, w, out, block: PhantomData });
            1
        };
    }
}

/// Dwords of a packed block of activations for this type of weights.
#[inline(always)]
const fn tile_dwords<B: IntegerBlock>() -> usize {
    if B::ELEMENTS == 32 { dwords::<32>() } else { dwords::<256>() }
}

/// Sub-blocks of a block.
const fn subs<B: IntegerBlock>() -> usize {
    B::ELEMENTS / B::SUB
}

/// What is subtracted from each of a block's interleaved bytes.
const fn zero<S: Simd, B: IntegerBlock>() -> i32 {
    if B::SIGNED { S::SIGNED_OFFSET as i32 } else { B::ZERO }
}

/// Chunks of an interleaved block: scales, scales of minima, integer scales of each sub-block, minima of each two sub-blocks,
/// and the bytes. Where a layout has integer scales and no minima, those are what undoes the zero of its bytes.
const fn unit_chunks<B: IntegerBlock>() -> usize {
    2 + if B::SCALED { subs::<B>() + subs::<B>() / 2 } else { 0 } + B::ELEMENTS / 4
}

/// Chunks of an interleaved K block, at most.
const MOST_CHUNKS: usize = BLOCK / 256 * (2 + 16 + 16 / 2 + 256 / 4);
const _: () = assert!(BLOCK / 32 * (2 + 32 / 4) <= MOST_CHUNKS);

/// Unpacks sixteen rows of weights over a K block and interleaves them.
struct Interleave<'a, B> {
    /// What each row has in the block.
    rows: [&'a [u8]; LANES],
    to: &'a mut [Chunk],
    block: PhantomData<B>,
}

impl<B: IntegerBlock> Kernel for Interleave<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, to) in self.to.chunks_exact_mut(unit_chunks::<B>()).enumerate() {
            let rows = self.rows.map(|row| &row[i * B::BYTES..(i + 1) * B::BYTES]);
            interleave_block::<S, B>(s, rows, to);
        }
    }
}

#[inline(always)]
fn interleave_block<S: Simd, B: IntegerBlock>(s: S, rows: [&[u8]; LANES], to: &mut [Chunk]) {
    let (head, to) = to.split_at_mut(2);
    head[0] = widened::<S, B>(s, &rows, B::scale_bits, B::SCALE_IS_F16, B::scale);
    if B::MINIMA {
        head[1] = widened::<S, B>(s, &rows, B::minimum_bits, true, B::minimum);
    }
    let to = if B::SCALED {
        let (scales, to) = to.split_at_mut(subs::<B>());
        let (minima, to) = to.split_at_mut(subs::<B>() / 2);
        let (mut of_rows, mut minima_of_rows) = ([[0i8; 16]; LANES], [[0u8; 16]; LANES]);
        for i in 0..LANES {
            B::scales(rows[i], &mut of_rows[i][..subs::<B>()]);
            if B::MINIMA {
                B::minima(rows[i], &mut minima_of_rows[i][..subs::<B>()]);
            }
        }
        for (sub, to) in scales.iter_mut().enumerate() {
            *to = ints_chunk(std::array::from_fn(|i| i32::from(of_rows[i][sub])));
        }
        let zero = zero::<S, B>();
        let minimum = |i: usize, sub: usize| match B::MINIMA {
            true => i32::from(minima_of_rows[i][sub]),
            false => -zero * i32::from(of_rows[i][sub]),
        };
        for (pair, to) in minima.iter_mut().enumerate() {
            let words = |i| i32::from(minimum(i, 2 * pair) as u16) | minimum(i, 2 * pair + 1) << 16;
            *to = ints_chunk(std::array::from_fn(words));
        }
        to
    } else {
        to
    };
    let mut codes = [[0u8; 256]; LANES];
    for i in 0..LANES {
        B::codes(rows[i], &mut codes[i][..B::ELEMENTS]);
    }
    for (j, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let sixteen: [&[u8; 16]; LANES] = std::array::from_fn(|i| &codes[i].as_chunks().0[j]);
        s.interleave(sixteen, to);
        for to in to {
            if let Some(table) = B::TABLE {
                s.look_up(table, to);
            }
            if B::SIGNED && S::SIGNED_OFFSET != 0 {
                let bytes: &mut [u8; 64] = cast_mut(to);
                bytes.iter_mut().for_each(|byte| *byte ^= S::SIGNED_OFFSET);
            }
        }
    }
}

/// The scales of sixteen rows.
#[inline(always)]
fn widened<S: Simd, B: IntegerBlock>(
    s: S,
    rows: &[&[u8]; LANES],
    bits: impl Fn(&[u8]) -> u16,
    are_f16: bool,
    scale: impl Fn(&[u8]) -> f32,
) -> Chunk {
    let mut to = Chunk::ZERO;
    if are_f16 {
        let bits: [u16; LANES] = std::array::from_fn(|i| bits(rows[i]).to_le());
        s.store(s.load_f16(&cast(bits)), &mut to);
    } else {
        to.0 = std::array::from_fn(|i| scale(rows[i]));
    }
    to
}

/// Adds the products of N rows of x with sixteen interleaved rows of weights over a K block.
struct Tokens<'a, B, const N: usize> {
    /// From the first of them on: `[block][row of the tile][dword]`.
    x: &'a [i32],
    /// Rows of the tile.
    rows: usize,
    blocks: usize,
    w: &'a [Chunk],
    /// The output of each is `PANEL_CHUNKS` further on.
    out: &'a mut [[f32; LANES]],
    block: PhantomData<B>,
}

impl<B: IntegerBlock, const N: usize> Kernel for Tokens<'_, B, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        if N > S::TOKENS {
            return;
        }
        for half in 0..S::HALVES {
            match B::SUB {
                16 => self.half::<S, 4>(s, half),
                _ => self.half::<S, 8>(s, half),
            }
        }
    }
}

impl<B: IntegerBlock, const N: usize> Tokens<'_, B, N> {
    /// Half of the sixteen rows of weights, whose sub-blocks are D dwords.
    #[inline(always)]
    fn half<S: Simd, const D: usize>(&mut self, s: S, half: usize) {
        let dwords = tile_dwords::<B>();
        let out: &mut [S::HalfInMemory] = cast_slice_mut(&mut *self.out);
        let at = |n: usize| n * PANEL_CHUNKS * S::HALVES + half;
        let mut sums: [S::Half; N] = std::array::from_fn(
            #[inline(always)]
            |n| s.load_half(&out[at(n)]),
        );
        let blocks = self.w.chunks_exact(unit_chunks::<B>()).zip(self.x.chunks(self.rows * dwords));
        for (w, x) in blocks.take(self.blocks) {
            let x: [&[i32]; N] = std::array::from_fn(
                #[inline(always)]
                |n| &x[n * dwords..(n + 1) * dwords],
            );
            let (products, minima) = match B::SCALED {
                true => scaled_sums::<S, B, N, D>(s, w, x, half),
                false => plain_sums::<S, B, N, D>(s, w, x, half),
            };
            let floats = |i: usize| s.load_half(&cast_slice::<Chunk, S::HalfInMemory>(&w[i..=i])[half]);
            let scale = floats(0);
            for n in 0..N {
                let xs = f32::from_bits(x[n][B::ELEMENTS / 4] as u32);
                let product = s.mul_half(s.floats_of(products[n]), scale);
                sums[n] = s.fma_half(product, s.splat_half(xs), sums[n]);
                if B::MINIMA {
                    let minimum = s.mul_half(s.floats_of(minima[n]), floats(1));
                    // fma(-m, xs, s) and fma(m, -xs, s) are the same number.
                    sums[n] = s.fma_half(minimum, s.splat_half(-xs), sums[n]);
                }
            }
        }
        for n in 0..N {
            s.store_half(sums[n], &mut out[at(n)]);
        }
    }
}

/// Products and minima of a block without integer scales.
#[inline(always)]
fn plain_sums<S: Simd, B: IntegerBlock, const N: usize, const D: usize>(
    s: S,
    w: &[Chunk],
    x: [&[i32]; N],
    half: usize,
) -> ([S::Ints; N], [S::Ints; N]) {
    let none = [s.splat_ints(0); N];
    let all: [i32; N] = std::array::from_fn(
        #[inline(always)]
        |n| x[n][B::ELEMENTS / 4 + 1],
    );
    let times_sum = |factor: i32| {
        let words = ints_chunk([i32::from(factor as u16); LANES]);
        s.dot_words(none, &words, half, all)
    };
    let zero = zero::<S, B>();
    let products = if zero == 0 { none } else { times_sum(-zero) };
    let products = s.dot_bytes::<N, D>(products, dwords_of(&w[2..]), half, bytes::<B>(), firsts(x, 0));
    (products, if B::MINIMA { times_sum(1) } else { none })
}

/// Products and minima of a block whose sub-blocks have integer scales.
#[inline(always)]
fn scaled_sums<S: Simd, B: IntegerBlock, const N: usize, const D: usize>(
    s: S,
    w: &[Chunk],
    x: [&[i32]; N],
    half: usize,
) -> ([S::Ints; N], [S::Ints; N]) {
    let none = [s.splat_ints(0); N];
    let (scales, w) = w[2..].split_at(subs::<B>());
    let (minima, w) = w.split_at(subs::<B>() / 2);
    let mut products = none;
    for (sub, scale) in scales.iter().enumerate() {
        let of_sub =
            s.dot_bytes::<N, D>(none, dwords_of(&w[sub * D..]), half, bytes::<B>(), firsts(x, sub * D));
        let scale = s.load_ints(scale, half);
        for n in 0..N {
            products[n] = s.add_ints(products[n], s.mul_ints(of_sub[n], scale));
        }
    }
    if !B::MINIMA && zero::<S, B>() == 0 {
        return (products, none);
    }
    let mut sum = if B::MINIMA { none } else { products };
    let first = B::ELEMENTS / 4 + 1 + if B::SUB == 16 { 0 } else { sums_of_16::<256>() };
    for (pair, minima) in minima.iter().enumerate() {
        let sums: [i32; N] = std::array::from_fn(
            #[inline(always)]
            |n| x[n][first + pair],
        );
        sum = s.dot_words(sum, minima, half, sums);
    }
    if B::MINIMA { (products, sum) } else { (sum, none) }
}

#[inline(always)]
fn bytes<B: IntegerBlock>() -> Bytes {
    if B::SIGNED { Bytes::Signed } else { Bytes::Unsigned { bits: B::BITS } }
}

/// The first D vectors.
#[inline(always)]
fn dwords_of<const D: usize>(w: &[Chunk]) -> &[Chunk; D] {
    &w.as_chunks().0[0]
}

/// D dwords of each row from `at` on.
#[inline(always)]
fn firsts<const N: usize, const D: usize>(x: [&[i32]; N], at: usize) -> [&[i32; D]; N] {
    x.map(
        #[inline(always)]
        |x| &x[at..].as_chunks().0[0],
    )
}
