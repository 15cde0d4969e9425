//! Products with activations rounded to int8, for weights in blocks of small integers.
//!
//! A lane is a row of weights: sixteen rows of a panel are unpacked and interleaved over a K block, so that one vector has four
//! bytes of each, and then multiplied with tile after tile of x. A sum of integers over a block is exact; what is added up in
//! f32 is one chain an output ([`moe_core::numerics::add_int8_block`]), which no horizontal sum interrupts.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{cast, cast_slice, cast_slice_mut};
use moe_core::numerics::{BLOCK, INT8_LEAST, LANES};

use super::exact;
use crate::blocks::IntegerBlock;
use crate::blocks::block::{part, u16_at};
use crate::blocks::sixteen::{BlockBytes, Sixteen};
use crate::chunk::Chunk;
use crate::packed::{PackedRows, RowSource, Tile};
use crate::products::{PANEL, PANEL_CHUNKS, ROW_BLOCK};
use crate::simd::{Bytes, Kernel, Simd, ints_chunk};
use crate::{Backend, WeightView};

/// Rows of x of a tile.
pub(crate) const TILE_ROWS: usize = 8;

const _: () = assert!(ROW_BLOCK.is_multiple_of(TILE_ROWS) && PANEL.is_multiple_of(LANES));
const _: () = assert!(exact::TILE_ROWS <= TILE_ROWS);

/// Dwords of 32 bytes.
const GROUP: usize = 8;

/// Dwords beside the bytes of a packed block of `SIZE` activations of one row: its scale, and its sums as pairs of words.
/// Blocks of 256 have the sums of each 16 activations, then those of each 32; blocks of 32 have one, beside a zero.
const fn tail<const SIZE: usize>() -> usize {
    1 + sums_of_16::<SIZE>() + sums_of_32::<SIZE>()
}

const fn sums_of_16<const SIZE: usize>() -> usize {
    if SIZE == 32 { 0 } else { SIZE / 32 }
}

const fn sums_of_32<const SIZE: usize>() -> usize {
    if SIZE == 32 { 1 } else { SIZE / 64 }
}

/// Dwords of a packed block of one row.
const fn dwords<const SIZE: usize>() -> usize {
    SIZE / 4 + tail::<SIZE>()
}

/// Chunks that so many activations of a row fill, at most a K block of them.
pub(crate) const fn chunks<const SIZE: usize>(activations: usize) -> usize {
    (activations.div_ceil(SIZE) * dwords::<SIZE>()).div_ceil(LANES)
}

/// Packs a tile. For each block follow each other its bytes, `[32 activations][row][byte]`, and what else there is,
/// `[row][dword]`. The first row with an activation that is not finite is noted.
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
    for (b, to) in to.chunks_exact_mut(rows * dwords::<SIZE>()).take(blocks).enumerate() {
        for m in 0..rows {
            let mut x = [0.0; SIZE];
            for (j, x) in x.as_chunks_mut().0.iter_mut().enumerate() {
                source.read_chunk(tile.group, tile.rows.start + m, (first + b * SIZE) / LANES + j, x);
            }
            if !backend.run(Quantise::<SIZE> { x: &x, rows, m, to }) {
                first_bad.fetch_min(tile.rows.start + m, Ordering::Relaxed);
            }
        }
    }
}

/// [`moe_core::numerics::quantise_int8`], with sums; `false` where an activation is not finite.
struct Quantise<'a, const SIZE: usize> {
    x: &'a [f32; SIZE],
    /// Rows of the tile, and which of them this is.
    rows: usize,
    m: usize,
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
        let (groups, tails) = self.to.split_at_mut(self.rows * SIZE / 4);
        for (q, to) in q.as_chunks::<32>().0.iter().zip(groups.chunks_exact_mut(self.rows * GROUP)) {
            let bytes: &mut [i8] = cast_slice_mut(&mut to[self.m * GROUP..(self.m + 1) * GROUP]);
            bytes.iter_mut().zip(q).for_each(|(to, q)| *to = *q as i8);
        }
        let tail = &mut tails[self.m * tail::<SIZE>()..(self.m + 1) * tail::<SIZE>()];
        let (scale, sums) = tail.split_at_mut(1);
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

/// Sub-blocks of a block.
const fn subs<B: IntegerBlock>() -> usize {
    B::ELEMENTS / B::SUB
}

/// What is subtracted from each of a block's interleaved bytes.
const fn zero<S: Simd, B: IntegerBlock>() -> i32 {
    if B::SIGNED { S::SIGNED_OFFSET as i32 } else { B::ZERO }
}

/// Chunks of an interleaved block: scales, scales of minima, integer scales and minima of four sub-blocks each, and the bytes.
const fn unit_chunks<B: IntegerBlock>() -> usize {
    head_chunks::<B>() + B::ELEMENTS / 4
}

/// Those before the bytes.
const fn head_chunks<B: IntegerBlock>() -> usize {
    let of_subs = if B::SCALED { subs::<B>() / 4 } else { 0 };
    2 + if B::MINIMA { 2 * of_subs } else { of_subs }
}

/// Chunks of an interleaved K block, at most.
const MOST_CHUNKS: usize = BLOCK / 32 * (2 + 32 / 4);
const _: () = assert!(BLOCK / 256 * (2 + 4 + 4 + 256 / 4) <= MOST_CHUNKS);

/// Unpacks sixteen rows of weights over a K block and interleaves them.
struct Interleave<'a, B> {
    w: WeightView<'a>,
    /// The first of the rows.
    n: usize,
    /// Where in a row the K block is.
    stored: Range<usize>,
    to: &'a mut [Chunk],
    block: PhantomData<B>,
}

impl<B: IntegerBlock> Kernel for Interleave<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, n, stored, to, .. } = self;
        let (rows, ahead) = (sixteen_rows(w, n), stored.len());
        for (b, to) in to.chunks_exact_mut(unit_chunks::<B>()).enumerate() {
            let at = stored.start + b * B::BYTES;
            prefetch_blocks::<S, B>(s, w, n, at + ahead, b);
            interleave_block::<S, B>(s, blocks_at::<B>(&rows, at), to);
        }
    }
}

/// Sixteen rows from `n` on. Those beyond the last are the last again; nobody looks at their lanes.
#[inline(always)]
fn sixteen_rows(w: WeightView<'_>, n: usize) -> [&[u8]; LANES] {
    let mut rows = [w.row(n); LANES];
    for i in 1..LANES {
        rows[i] = w.row((n + i).min(w.rows() - 1));
    }
    rows
}

/// Their blocks from byte `at` on.
#[inline(always)]
fn blocks_at<'a, B: IntegerBlock>(rows: &[&'a [u8]; LANES], at: usize) -> [&'a [u8]; LANES] {
    let mut blocks = *rows;
    for block in &mut blocks {
        *block = &block[at..at + B::BYTES];
    }
    blocks
}

/// Asks for block number `b`, `at` bytes from where the sixteen rows from `n` on begin; where they end before that, for what
/// the sixteen rows after them have instead. Where lines hold several blocks, a line is asked for by one of them.
#[inline(always)]
fn prefetch_blocks<S: Simd, B: IntegerBlock>(s: S, w: WeightView<'_>, n: usize, at: usize, b: usize) {
    const LINE: usize = size_of::<Chunk>();
    let (n, at) = if at < w.stride() { (n, at) } else { (n + LANES, at - w.stride()) };
    let together = (LINE / B::BYTES).max(1);
    for i in (b % together..LANES).step_by(together) {
        for line in 0..B::BYTES.div_ceil(LINE) {
            if let Some(first) = w.bytes().get((n + i) * w.stride() + at + line * LINE) {
                s.prefetch(first);
            }
        }
    }
}

/// Blocks of sixteen rows. Sixteen bytes of each are four vectors, in which a lane has four of a row.
struct SixteenBlocks<'a, S> {
    s: S,
    blocks: [&'a [u8]; LANES],
}

#[derive(Clone, Copy)]
struct FourVectors<S: Simd> {
    s: S,
    vectors: [S::Bytes; 4],
}

impl<S: Simd> BlockBytes for SixteenBlocks<'_, S> {
    type Sixteen = FourVectors<S>;

    #[inline(always)]
    fn sixteen(&self, at: usize) -> FourVectors<S> {
        let mut rows = [&[0; 16]; LANES];
        for i in 0..LANES {
            rows[i] = part(self.blocks[i], at);
        }
        FourVectors { s: self.s, vectors: self.s.interleave(rows) }
    }

    #[inline(always)]
    fn sixteen_bits(&self, at: usize) -> FourVectors<S> {
        let mut bits = [0; LANES];
        for i in 0..LANES {
            bits[i] = i32::from(u16_at(self.blocks[i], at));
        }
        FourVectors { s: self.s, vectors: self.s.spread_bits(&ints_chunk(bits)) }
    }
}

impl<S: Simd> Sixteen for FourVectors<S> {
    #[inline(always)]
    fn bits(mut self, shift: u32, mask: u8) -> Self {
        for v in &mut self.vectors {
            *v = self.s.bits(*v, shift, mask);
        }
        self
    }

    #[inline(always)]
    fn with_upper(mut self, upper: Self, shift: u32) -> Self {
        for (v, upper) in self.vectors.iter_mut().zip(upper.vectors) {
            *v = self.s.with_upper(*v, upper, shift);
        }
        self
    }
}

#[inline(always)]
fn interleave_block<S: Simd, B: IntegerBlock>(s: S, blocks: [&[u8]; LANES], to: &mut [Chunk]) {
    let (head, to) = to.split_at_mut(head_chunks::<B>());
    interleave_head::<S, B>(s, blocks, head);
    let (to, _) = to.as_chunks_mut::<4>();
    B::unpack(
        &SixteenBlocks { s, blocks },
        #[inline(always)]
        |g, codes| {
            for (codes, to) in codes.vectors.into_iter().zip(&mut to[g]) {
                s.store_bytes(finished::<S, B>(s, codes), to);
            }
        },
    );
}

/// Quants of their codes.
#[inline(always)]
fn finished<S: Simd, B: IntegerBlock>(s: S, codes: S::Bytes) -> S::Bytes {
    let quants = match B::TABLE {
        Some(table) => s.look_up(table, codes),
        None => codes,
    };
    if B::SIGNED { s.with_signed_offset(quants) } else { quants }
}

/// What an interleaved block has before its bytes.
#[inline(always)]
fn interleave_head<S: Simd, B: IntegerBlock>(s: S, blocks: [&[u8]; LANES], to: &mut [Chunk]) {
    let (head, to) = to.split_at_mut(2);
    let (mut scale, mut minimum) = ([0; LANES], [0; LANES]);
    for i in 0..LANES {
        scale[i] = B::scale_bits(blocks[i]).to_le();
        minimum[i] = B::minimum_bits(blocks[i]).to_le();
    }
    if B::SCALE_IS_F16 {
        s.store(s.load_f16(&cast(scale)), &mut head[0]);
    } else {
        for i in 0..LANES {
            head[0][i] = B::widen_scale(u16::from_le(scale[i]));
        }
    }
    if B::MINIMA {
        s.store(s.load_f16(&cast(minimum)), &mut head[1]);
    }
    if B::SCALED {
        interleave_scales::<S, B>(s, blocks, to);
    }
}

/// Integer scales and minima of the sub-blocks, four bytes a lane.
#[inline(always)]
fn interleave_scales<S: Simd, B: IntegerBlock>(s: S, blocks: [&[u8]; LANES], to: &mut [Chunk]) {
    let (mut scales, mut minima) = ([[0; 16]; LANES], [[0; 16]; LANES]);
    for i in 0..LANES {
        B::scales(blocks[i], cast_slice_mut(&mut scales[i][..subs::<B>()]));
        if B::MINIMA {
            B::minima(blocks[i], &mut minima[i][..subs::<B>()]);
        }
    }
    let (scales_to, minima_to) = to.split_at_mut(subs::<B>() / 4);
    interleave_rows(s, &scales, scales_to);
    if B::MINIMA {
        interleave_rows(s, &minima, minima_to);
    }
}

#[inline(always)]
fn interleave_rows<S: Simd>(s: S, rows: &[[u8; 16]; LANES], to: &mut [Chunk]) {
    let mut all = [&[0; 16]; LANES];
    for i in 0..LANES {
        all[i] = &rows[i];
    }
    for (v, to) in s.interleave(all).into_iter().zip(to) {
        s.store_bytes(v, to);
    }
}

/// The integer scale of a sub-block, of what an interleaved block begins with.
#[inline(always)]
fn scale_of<S: Simd>(s: S, head: &[Chunk], sub: usize, half: usize) -> S::Ints {
    s.signed_byte(s.load_ints(&head[2 + sub / 4], half), sub % 4)
}

/// What sums of activations are multiplied with: for two sub-blocks their minima, or without those their scales.
#[inline(always)]
fn factors_of_sums<S: Simd, B: IntegerBlock>(s: S, head: &[Chunk], pair: usize, half: usize) -> S::Ints {
    let first = if B::MINIMA { 2 + subs::<B>() / 4 } else { 2 };
    s.word_pair(s.load_ints(&head[first + pair / 2], half), pair % 2, !B::MINIMA)
}

/// Where in the tail of a packed block of activations the sums of pairs of sub-blocks begin.
const fn first_sum<B: IntegerBlock>() -> usize {
    1 + if B::SUB == 16 || B::ELEMENTS == 32 { 0 } else { sums_of_16::<256>() }
}

/// Rows of a tile of x, and sixteen interleaved rows of weights, over a K block.
struct TokenTask<'a> {
    /// The tile.
    x: &'a [i32],
    /// Its rows, and the first that is wanted.
    rows: usize,
    first: usize,
    blocks: usize,
    w: &'a [Chunk],
    /// The sums of the first row; those of each next are `PANEL_CHUNKS` further on.
    out: &'a mut [[f32; LANES]],
}

/// Adds the products of N rows to their sums, and says how many those were.
struct Tokens<'a, B, const N: usize>(TokenTask<'a>, PhantomData<B>);

impl<B: IntegerBlock, const N: usize> Kernel for Tokens<'_, B, N> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> usize {
        if N <= S::TOKENS {
            for half in 0..S::HALVES {
                match B::ELEMENTS {
                    32 => self.half::<S, 32>(s, half),
                    _ => self.half::<S, 256>(s, half),
                }
            }
        }
        N
    }
}

impl<B: IntegerBlock, const N: usize> Tokens<'_, B, N> {
    /// Half of the sixteen rows of weights.
    #[inline(always)]
    fn half<S: Simd, const SIZE: usize>(&mut self, s: S, half: usize) {
        let TokenTask { x, rows, first, blocks, w, .. } = self.0;
        let out: &mut [S::HalfInMemory] = cast_slice_mut(&mut *self.0.out);
        let mut sums = [s.splat_half(0.0); N];
        for n in 0..N {
            sums[n] = s.load_half(&out[n * PANEL_CHUNKS * S::HALVES + half]);
        }
        let blocks_of_x = x.chunks_exact(rows * dwords::<SIZE>()).take(blocks);
        for (w, x) in w.chunks_exact(unit_chunks::<B>()).zip(blocks_of_x) {
            let (groups, tails) = x.split_at(rows * SIZE / 4);
            let tails = &tails[first * tail::<SIZE>()..(first + N) * tail::<SIZE>()];
            let x = RowsOfX { groups: groups.as_chunks().0, tails, tail: tail::<SIZE>(), rows, first };
            let (products, minima) = match B::SCALED {
                true => scaled_sums::<S, B, N>(s, w, &x, half),
                false => plain_sums::<S, B, N>(s, w, &x, half),
            };
            let head: &[S::HalfInMemory] = cast_slice(&w[..2]);
            let scale = s.load_half(&head[half]);
            for n in 0..N {
                let xs = f32::from_bits(x.tail(n, 0) as u32);
                let product = s.mul_half(s.floats_of(products[n]), scale);
                sums[n] = s.fma_half(product, s.splat_half(xs), sums[n]);
                if B::MINIMA {
                    let minimum = s.load_half(&head[S::HALVES + half]);
                    let minimum = s.mul_half(s.floats_of(minima[n]), minimum);
                    // fma(-m, xs, s) and fma(m, -xs, s) are the same number.
                    sums[n] = s.fma_half(minimum, s.splat_half(-xs), sums[n]);
                }
            }
        }
        for n in 0..N {
            s.store_half(sums[n], &mut out[n * PANEL_CHUNKS * S::HALVES + half]);
        }
    }
}

/// Some rows of a packed block.
struct RowsOfX<'a> {
    /// Bytes of all rows of the tile, `[32 activations][row]`.
    groups: &'a [[i32; GROUP]],
    /// What else these rows have, `[row][tail]`.
    tails: &'a [i32],
    tail: usize,
    rows: usize,
    first: usize,
}

impl RowsOfX<'_> {
    /// The `g`-th 32 bytes of N rows.
    #[inline(always)]
    fn group<const N: usize>(&self, g: usize) -> &[[i32; GROUP]; N] {
        &self.groups[g * self.rows + self.first..].as_chunks().0[0]
    }

    /// Dword `i` of row n beside the bytes.
    #[inline(always)]
    fn tail(&self, n: usize, i: usize) -> i32 {
        self.tails[n * self.tail + i]
    }
}

/// Products and minima of a block without integer scales.
#[inline(always)]
fn plain_sums<S: Simd, B: IntegerBlock, const N: usize>(
    s: S,
    w: &[Chunk],
    x: &RowsOfX<'_>,
    half: usize,
) -> ([S::Ints; N], [S::Ints; N]) {
    let none = [s.splat_ints(0); N];
    let mut all = [0; N];
    for n in 0..N {
        all[n] = x.tail(n, 1);
    }
    let (mut products, mut minima) = (none, none);
    let zero = zero::<S, B>();
    if zero != 0 {
        products = s.dot_words(none, s.splat_ints(i32::from(-zero as u16)), all);
    }
    if B::MINIMA {
        minima = s.dot_words(none, s.splat_ints(1), all);
    }
    let (w, _) = w[2..].as_chunks::<GROUP>();
    products = s.dot_bytes(products, &w[0], half, bytes::<B>(), x.group(0), 0);
    (products, minima)
}

/// Products and minima of a block whose sub-blocks have integer scales.
#[inline(always)]
fn scaled_sums<S: Simd, B: IntegerBlock, const N: usize>(
    s: S,
    w: &[Chunk],
    x: &RowsOfX<'_>,
    half: usize,
) -> ([S::Ints; N], [S::Ints; N]) {
    let none = [s.splat_ints(0); N];
    let (head, w) = w.split_at(head_chunks::<B>());
    let mut products = none;
    for (g, w) in w.as_chunks::<GROUP>().0.iter().enumerate() {
        let x = x.group(g);
        // 32 activations are one sub-block, or two.
        for sub in 0..32 / B::SUB {
            let of_sub = match B::SUB {
                32 => s.dot_bytes(none, w, half, bytes::<B>(), x, 0),
                _ => {
                    let w: &[Chunk; GROUP / 2] = &w.as_chunks().0[sub];
                    s.dot_bytes(none, w, half, bytes::<B>(), x, sub * GROUP / 2)
                }
            };
            let scale = scale_of(s, head, g * (32 / B::SUB) + sub, half);
            for n in 0..N {
                products[n] = s.add_ints(products[n], s.mul_ints(of_sub[n], scale));
            }
        }
    }
    let zero = zero::<S, B>();
    if !B::MINIMA && zero == 0 {
        return (products, none);
    }
    let mut sums = none;
    for pair in 0..subs::<B>() / 2 {
        let mut of_pair = [0; N];
        for n in 0..N {
            of_pair[n] = x.tail(n, first_sum::<B>() + pair);
        }
        sums = s.dot_words(sums, factors_of_sums::<S, B>(s, head, pair, half), of_pair);
    }
    if B::MINIMA {
        return (products, sums);
    }
    for n in 0..N {
        products[n] = s.add_ints(products[n], s.mul_ints(sums[n], s.splat_ints(-zero)));
    }
    (products, none)
}

#[inline(always)]
fn bytes<B: IntegerBlock>() -> Bytes {
    if B::SIGNED { Bytes::Signed } else { Bytes::Unsigned { bits: B::BITS } }
}

/// One row of x times sixteen rows of weights, which are multiplied as they are unpacked.
struct OneRow<'a, B> {
    x: PackedRows<'a>,
    row: usize,
    w: WeightView<'a>,
    /// The first of the sixteen rows.
    n: usize,
    out: &'a mut [f32; LANES],
    block: PhantomData<B>,
}

/// Bytes of a row by which weights are asked for before they are needed: some microseconds of reading.
const AHEAD: usize = 1 << 10;

impl<B: IntegerBlock> Kernel for OneRow<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match B::ELEMENTS {
            32 => self.run_with::<S, 32>(s),
            _ => self.run_with::<S, 256>(s),
        }
    }
}

impl<B: IntegerBlock> OneRow<'_, B> {
    #[inline(always)]
    fn run_with<S: Simd, const SIZE: usize>(self, s: S) {
        let Self { x, row, w, n, out, .. } = self;
        let rows = sixteen_rows(w, n);
        let blocks = w.stride() / B::BYTES;
        let mut sums = [s.splat_half(0.0); 2];
        for kb in 0..x.blocks() {
            let tile: &[i32] = cast_slice(x.tiles(kb, row..row + 1));
            let first = kb * (BLOCK / SIZE);
            for (b, x) in (first..blocks).zip(tile.chunks_exact(dwords::<SIZE>()).take(BLOCK / SIZE)) {
                prefetch_blocks::<S, B>(s, w, n, b * B::BYTES + AHEAD, b);
                let blocks = SixteenBlocks { s, blocks: blocks_at::<B>(&rows, b * B::BYTES) };
                let (bytes, tail) = x.split_at(SIZE / 4);
                add_block::<S, B>(s, &blocks, bytes, tail, &mut sums);
            }
        }
        let out: &mut [S::HalfInMemory] = cast_slice_mut(out.as_mut_slice());
        for half in 0..S::HALVES {
            s.store_half(sums[half], &mut out[half]);
        }
    }
}

/// Adds the products of one block of activations and sixteen of weights.
#[inline(always)]
fn add_block<S: Simd, B: IntegerBlock>(
    s: S,
    blocks: &SixteenBlocks<'_, S>,
    x: &[i32],
    tail: &[i32],
    sums: &mut [S::Half; 2],
) {
    let mut head = [Chunk::ZERO; 2 + 4 + 4];
    let head = &mut head[..head_chunks::<B>()];
    interleave_head::<S, B>(s, blocks.blocks, head);
    let (none, zero) = (s.splat_ints(0), zero::<S, B>());
    let mut products = [none; 2];
    B::unpack(
        blocks,
        #[inline(always)]
        |g, codes| {
            for half in 0..S::HALVES {
                let mut sum = if B::SCALED { none } else { products[half] };
                for j in 0..4 {
                    let codes = finished::<S, B>(s, codes.vectors[j]);
                    sum = s.add_dot(sum, codes, half, bytes::<B>(), x[4 * g + j]);
                }
                products[half] = match B::SCALED {
                    true => {
                        let scale = scale_of(s, head, 16 * g / B::SUB, half);
                        s.add_ints(products[half], s.mul_ints(sum, scale))
                    }
                    false => sum,
                };
            }
        },
    );
    for half in 0..S::HALVES {
        let (mut products, mut minima) = (products[half], none);
        if B::SCALED {
            let mut sums = [none];
            for pair in 0..subs::<B>() / 2 {
                let factors = factors_of_sums::<S, B>(s, head, pair, half);
                sums = s.dot_words(sums, factors, [tail[first_sum::<B>() + pair]]);
            }
            match B::MINIMA {
                true => [minima] = sums,
                false => products = s.add_ints(products, s.mul_ints(sums[0], s.splat_ints(-zero))),
            }
        } else {
            // A sum of 32 activations, and beside it no other.
            let sum = i32::from(tail[1] as i16);
            products = s.add_ints(products, s.splat_ints(-zero * sum));
            minima = s.splat_ints(sum);
        }
        let floats = |chunk: &Chunk| s.load_half(&cast_slice::<f32, S::HalfInMemory>(&chunk.0)[half]);
        let xs = f32::from_bits(tail[0] as u32);
        let product = s.mul_half(s.floats_of(products), floats(&head[0]));
        sums[half] = s.fma_half(product, s.splat_half(xs), sums[half]);
        if B::MINIMA {
            let minimum = s.mul_half(s.floats_of(minima), floats(&head[1]));
            sums[half] = s.fma_half(minimum, s.splat_half(-xs), sums[half]);
        }
    }
}
