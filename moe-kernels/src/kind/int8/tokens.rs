//! Tiles: some rows of x times sixteen interleaved rows of weights over a K block.

use std::marker::PhantomData;

use bytemuck::{cast_slice, cast_slice_mut};
use moe_core::numerics::LANES;

use super::activations::{GROUP, dwords, first_sum, tail};
use super::interleaved::{bytes, factors_of_sums, head_chunks, scale_of, subs, unit_chunks, zero};
use crate::blocks::IntegerBlock;
use crate::chunk::Chunk;
use crate::products::PANEL_CHUNKS;
use crate::simd::{Kernel, Simd};

/// Rows of a tile of x, and sixteen interleaved rows of weights, over a K block.
pub(super) struct TokenTask<'a> {
    /// The tile.
    pub(super) x: &'a [i32],
    /// Its rows, and the first that is wanted.
    pub(super) rows: usize,
    pub(super) first: usize,
    pub(super) blocks: usize,
    pub(super) w: &'a [Chunk],
    /// The sums of the first row; those of each next are `PANEL_CHUNKS` further on.
    pub(super) out: &'a mut [[f32; LANES]],
}

/// Adds the products of N rows to their sums, and says how many those were.
pub(super) struct Tokens<'a, B, const N: usize>(pub(super) TokenTask<'a>, pub(super) PhantomData<B>);

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
                    // fma(-m, xs, s) and fma(m, -xs, s) are the same number. Without scales the minimum is that of a
                    // negated sum.
                    let xs = if B::SCALED { -xs } else { xs };
                    sums[n] = s.fma_half(minimum, s.splat_half(xs), sums[n]);
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

/// Products of a block without integer scales, and minima for the negated sum.
#[inline(always)]
fn plain_sums<S: Simd, B: IntegerBlock, const N: usize>(
    s: S,
    w: &[Chunk],
    x: &RowsOfX<'_>,
    half: usize,
) -> ([S::Ints; N], [S::Ints; N]) {
    let (mut products, mut minima) = ([s.splat_ints(0); N], [s.splat_ints(0); N]);
    let zero = zero::<S, B>();
    for n in 0..N {
        let negated = s.splat_ints(x.tail(n, 1));
        if zero != 0 {
            // A power of two: a shift, beside the units that multiply.
            products[n] = s.mul_ints(negated, s.splat_ints(zero));
        }
        if B::MINIMA {
            minima[n] = negated;
        }
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
