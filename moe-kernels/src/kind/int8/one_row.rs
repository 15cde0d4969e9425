//! A single row of x times sixteen rows of weights, which are multiplied as they are unpacked.

use std::marker::PhantomData;

use bytemuck::{cast_slice, cast_slice_mut};
use moe_core::numerics::{BLOCK, LANES};

use super::activations::{dwords, first_sum};
use super::interleaved::{
    SixteenBlocks, blocks_at, bytes, factors_of_sums, finished, head_chunks, interleave_head,
    prefetch_blocks, scale_of, sixteen_rows, subs, zero,
};
use crate::WeightView;
use crate::blocks::IntegerBlock;
use crate::chunk::Chunk;
use crate::packed::PackedRows;
use crate::simd::{Kernel, Simd};

/// One row of x times sixteen rows of weights, which are multiplied as they are unpacked.
pub(super) struct OneRow<'a, B> {
    pub(super) x: PackedRows<'a>,
    pub(super) row: usize,
    pub(super) w: WeightView<'a>,
    /// The first of the sixteen rows.
    pub(super) n: usize,
    pub(super) out: &'a mut [f32; LANES],
    pub(super) block: PhantomData<B>,
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
    let (x, _) = x.as_chunks::<4>();
    let mut products = [none; 2];
    B::unpack(
        blocks,
        #[inline(always)]
        |g, codes| {
            let mut quants = codes.vectors;
            for codes in &mut quants {
                *codes = finished::<S, B>(s, *codes);
            }
            for half in 0..S::HALVES {
                let sum = if B::SCALED { none } else { products[half] };
                let sum = s.dot_unpacked(sum, quants, half, bytes::<B>(), &x[g]);
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
            // A sum of 32 activations is negated there.
            let sum = -tail[1];
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
