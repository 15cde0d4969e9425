//! Weights in lanes: sixteen rows of a panel, unpacked and interleaved.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::cast;
use moe_core::numerics::{BLOCK, LANES};

use crate::WeightView;
use crate::blocks::IntegerBlock;
use crate::blocks::block::{part, u16_at};
use crate::blocks::sixteen::{BlockBytes, EachByte};
use crate::chunk::Chunk;
use crate::simd::{Bytes, Kernel, Simd, ints_chunk};

/// Sub-blocks of a block.
pub(super) const fn subs<B: IntegerBlock>() -> usize {
    B::ELEMENTS / B::SUB
}

/// What is subtracted from each of a block's interleaved bytes.
pub(super) const fn zero<S: Simd, B: IntegerBlock>() -> i32 {
    if B::SIGNED { S::SIGNED_OFFSET as i32 } else { B::ZERO }
}

/// Chunks of an interleaved block: scales, scales of minima, integer scales and minima of four sub-blocks each, and the bytes.
pub(super) const fn unit_chunks<B: IntegerBlock>() -> usize {
    head_chunks::<B>() + B::ELEMENTS / 4
}

/// Those before the bytes.
pub(super) const fn head_chunks<B: IntegerBlock>() -> usize {
    let of_subs = if B::SCALED { subs::<B>() / 4 } else { 0 };
    2 + if B::MINIMA { 2 * of_subs } else { of_subs }
}

/// Chunks of an interleaved K block, at most.
pub(super) const MOST_CHUNKS: usize = BLOCK / 32 * (2 + 32 / 4);
const _: () = assert!(BLOCK / 256 * (2 + 4 + 4 + 256 / 4) <= MOST_CHUNKS);

/// Unpacks sixteen rows of weights over a K block and interleaves them.
pub(super) struct Interleave<'a, B> {
    pub(super) w: WeightView<'a>,
    /// The first of the rows.
    pub(super) n: usize,
    /// Where in a row the K block is.
    pub(super) stored: Range<usize>,
    pub(super) to: &'a mut [Chunk],
    pub(super) block: PhantomData<B>,
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
pub(super) fn sixteen_rows(w: WeightView<'_>, n: usize) -> [&[u8]; LANES] {
    let mut rows = [w.row(n); LANES];
    for i in 1..LANES {
        rows[i] = w.row((n + i).min(w.rows() - 1));
    }
    rows
}

/// Their blocks from byte `at` on.
#[inline(always)]
pub(super) fn blocks_at<'a, B: IntegerBlock>(rows: &[&'a [u8]; LANES], at: usize) -> [&'a [u8]; LANES] {
    let mut blocks = *rows;
    for block in &mut blocks {
        *block = &block[at..at + B::BYTES];
    }
    blocks
}

/// Asks for block number `b`, `at` bytes from where the sixteen rows from `n` on begin; where they end before that, for what
/// the sixteen rows after them have instead. Where lines hold several blocks, a line is asked for by one of them.
#[inline(always)]
pub(super) fn prefetch_blocks<S: Simd, B: IntegerBlock>(
    s: S,
    w: WeightView<'_>,
    n: usize,
    at: usize,
    b: usize,
) {
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
pub(super) struct SixteenBlocks<'a, S> {
    pub(super) s: S,
    pub(super) blocks: [&'a [u8]; LANES],
}

/// N vectors, in each of which a lane has four bytes of a row.
#[derive(Clone, Copy)]
pub(super) struct Vectors<S: Simd, const N: usize> {
    s: S,
    pub(super) vectors: [S::Bytes; N],
}

impl<S: Simd> BlockBytes for SixteenBlocks<'_, S> {
    type Sixteen = Vectors<S, 4>;
    type Four = Vectors<S, 1>;

    #[inline(always)]
    fn sixteen(&self, at: usize) -> Vectors<S, 4> {
        let mut rows = [&[0; 16]; LANES];
        for i in 0..LANES {
            rows[i] = part(self.blocks[i], at);
        }
        Vectors { s: self.s, vectors: self.s.interleave(rows) }
    }

    #[inline(always)]
    fn sixteen_bits(&self, at: usize) -> Vectors<S, 4> {
        let mut bits = [0; LANES];
        for i in 0..LANES {
            bits[i] = i32::from(u16_at(self.blocks[i], at));
        }
        Vectors { s: self.s, vectors: self.s.spread_bits(&ints_chunk(bits)) }
    }

    #[inline(always)]
    fn fours(&self, at: usize) -> [Vectors<S, 1>; 4] {
        let s = self.s;
        self.sixteen(at).vectors.map(
            #[inline(always)]
            |v| Vectors { s, vectors: [v] },
        )
    }

    #[inline(always)]
    fn four(&self, of: impl Fn(&[u8]) -> [u8; 4]) -> Vectors<S, 1> {
        let mut lanes = [[0; 4]; LANES];
        for i in 0..LANES {
            lanes[i] = of(self.blocks[i]);
        }
        Vectors { s: self.s, vectors: [self.s.load_bytes(&cast(lanes))] }
    }
}

impl<S: Simd, const N: usize> EachByte for Vectors<S, N> {
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

    #[inline(always)]
    fn minus(mut self, n: u8) -> Self {
        for v in &mut self.vectors {
            *v = self.s.minus(*v, n);
        }
        self
    }
}

#[inline(always)]
pub(super) fn interleave_block<S: Simd, B: IntegerBlock>(s: S, blocks: [&[u8]; LANES], to: &mut [Chunk]) {
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
pub(super) fn finished<S: Simd, B: IntegerBlock>(s: S, codes: S::Bytes) -> S::Bytes {
    let quants = match B::TABLE {
        Some(table) => s.look_up(table, codes),
        None => codes,
    };
    // Of signed bytes plus 128 and less 128 is the same.
    if B::SIGNED && S::SIGNED_OFFSET != 0 { s.minus(quants, S::SIGNED_OFFSET) } else { quants }
}

/// What an interleaved block has before its bytes.
#[inline(always)]
pub(super) fn interleave_head<S: Simd, B: IntegerBlock>(s: S, blocks: [&[u8]; LANES], to: &mut [Chunk]) {
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
pub(super) fn interleave_scales<S: Simd, B: IntegerBlock>(s: S, blocks: [&[u8]; LANES], to: &mut [Chunk]) {
    let (scales_to, minima_to) = to.split_at_mut(subs::<B>() / 4);
    B::unpack_scales(
        &SixteenBlocks { s, blocks },
        #[inline(always)]
        |i, scales| s.store_bytes(scales.vectors[0], &mut scales_to[i]),
        #[inline(always)]
        |i, minima| s.store_bytes(minima.vectors[0], &mut minima_to[i]),
    );
}

/// The integer scale of a sub-block, of what an interleaved block begins with.
#[inline(always)]
pub(super) fn scale_of<S: Simd>(s: S, head: &[Chunk], sub: usize, half: usize) -> S::Ints {
    s.signed_byte(s.load_ints(&head[2 + sub / 4], half), sub % 4)
}

/// What sums of activations are multiplied with: for two sub-blocks their minima, or without those their scales.
#[inline(always)]
pub(super) fn factors_of_sums<S: Simd, B: IntegerBlock>(
    s: S,
    head: &[Chunk],
    pair: usize,
    half: usize,
) -> S::Ints {
    let first = if B::MINIMA { 2 + subs::<B>() / 4 } else { 2 };
    s.word_pair(s.load_ints(&head[first + pair / 2], half), pair % 2, !B::MINIMA)
}

#[inline(always)]
pub(super) fn bytes<B: IntegerBlock>() -> Bytes {
    if B::SIGNED { Bytes::Signed } else { Bytes::Unsigned { bits: B::BITS } }
}
