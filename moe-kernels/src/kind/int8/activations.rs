//! Activations rounded to int8, as tiles multiply them.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::cast_slice_mut;
use moe_core::numerics::{BLOCK, INT8_LEAST, LANES};

use crate::Backend;
use crate::blocks::IntegerBlock;
use crate::chunk::Chunk;
use crate::packed::{RowSource, Tile};
use crate::simd::{Kernel, Simd};

/// Dwords of 32 bytes.
pub(super) const GROUP: usize = 8;

/// Dwords beside the bytes of a packed block of `SIZE` activations of one row: its scale, and its sums. Blocks of 256 have, as
/// pairs of words, the sums of each 16 activations, then those of each 32; blocks of 32 have one, negated.
pub(super) const fn tail<const SIZE: usize>() -> usize {
    1 + sums_of_16::<SIZE>() + sums_of_32::<SIZE>()
}

pub(super) const fn sums_of_16<const SIZE: usize>() -> usize {
    if SIZE == 32 { 0 } else { SIZE / 32 }
}

pub(super) const fn sums_of_32<const SIZE: usize>() -> usize {
    if SIZE == 32 { 1 } else { SIZE / 64 }
}

/// Dwords of a packed block of one row.
pub(super) const fn dwords<const SIZE: usize>() -> usize {
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
        let pair = |i: usize| sum(2 * i) + sum(2 * i + 1);
        for (i, to) in of_32.iter_mut().enumerate() {
            *to = if SIZE == 32 { -pair(0) } else { words(pair(2 * i), pair(2 * i + 1)) };
        }
        true
    }
}

/// Where in the tail of a packed block of activations the sums of pairs of sub-blocks begin.
pub(super) const fn first_sum<B: IntegerBlock>() -> usize {
    1 + if B::SUB == 16 || B::ELEMENTS == 32 { 0 } else { sums_of_16::<256>() }
}
