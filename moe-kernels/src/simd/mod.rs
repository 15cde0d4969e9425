//! Sixteen f32 lanes, by instruction set.
//!
//! A kernel is written once, generic over [`Simd`]; a value of an implementing type is the proof that its instructions
//! may be used. [`Portable`] is the definition, and the others give its bits.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;
#[cfg(test)]
mod tests;

pub(crate) use portable::Portable;

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};
use moe_core::numerics::{EXP_MAX, EXP_MIN, EXP_POLY, LANES, LN2_HI, LN2_LO, LOG2_E, ROUND_MAGIC};

/// Work that is written once for every instruction set.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// Does it. Must be `#[inline(always)]`, as must whatever it calls that is generic over `S`: only what is inlined into
    /// the dispatching function is compiled for its instructions.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Sixteen f32 in memory: the unit in which packed rows are laid out. A chunk is one line of the cache, as a load that
/// crosses two takes twice the time.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Chunk(pub(crate) [f32; LANES]);

impl Chunk {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

impl Deref for Chunk {
    type Target = [f32; LANES];

    #[inline(always)]
    fn deref(&self) -> &[f32; LANES] {
        &self.0
    }
}

impl DerefMut for Chunk {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.0
    }
}

/// The floats of chunks.
#[inline(always)]
pub(crate) fn floats(chunks: &[Chunk]) -> &[f32] {
    bytemuck::cast_slice(chunks)
}

/// The floats of chunks.
#[inline(always)]
pub(crate) fn floats_mut(chunks: &mut [Chunk]) -> &mut [f32] {
    bytemuck::cast_slice_mut(chunks)
}

/// The operations kernels are made of, on sixteen lanes. Each lane is IEEE binary32, rounded to nearest even.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen lanes.
    type F: Copy;

    /// What is computed at a time of them: all, or lanes 0 to 7 and 8 to 15 in turn.
    type Part: Copy;
    /// A part in memory: so many floats.
    type Piece: Pod;

    /// How many parts sixteen lanes have.
    const PARTS: usize;
    /// Whether registers allow large tiles (thirty-two registers of sixteen lanes).
    const WIDE: bool;

    /// Asks for the line of the cache that `from` lies in; nothing else happens.
    #[inline(always)]
    fn prefetch<T>(self, _from: &T) {}

    /// Runs a kernel as a function of its own, not inlined, so that its loops have all registers to themselves.
    fn apart<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, lanes: Self::F, to: &mut [f32; LANES]);

    /// Sixteen little-endian binary32, wherever they lie.
    fn load_f32(self, from: &[u8; 64]) -> Self::F;
    /// Sixteen little-endian binary16, widened exactly.
    fn load_f16(self, from: &[u8; 32]) -> Self::F;
    /// Sixteen little-endian bfloat16, widened exactly.
    fn load_bf16(self, from: &[u8; 32]) -> Self::F;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn load_part(self, from: &Self::Piece) -> Self::Part;
    /// Part `i` of sixteen lanes.
    fn part(self, lanes: Self::F, i: usize) -> Self::Part;
    /// [`fma`](Self::fma) on a part.
    fn fma_part(self, a: Self::Part, b: Self::Part, c: Self::Part) -> Self::Part;
    /// The upper halves of lanes, the lower ones zero: of pairs of bfloat16, those with odd index.
    fn high_halves(self, lanes: Self::Part) -> Self::Part;
    /// The lower halves of lanes in the place of the upper ones: of pairs of bfloat16, those with even index.
    fn low_halves(self, lanes: Self::Part) -> Self::Part;
    /// The products of pairs of bfloat16 added to c: that of the upper halves first, each rounded once.
    #[inline(always)]
    fn fma_pairs(self, a: Self::Part, b: Self::Part, c: Self::Part) -> Self::Part {
        let c = self.fma_part(self.high_halves(a), self.high_halves(b), c);
        self.fma_part(self.low_halves(a), self.low_halves(b), c)
    }
    /// Computes a tile of chains part by part, so that more chains than half the registers fit: `f(i)` is part i of all.
    fn by_parts<const M: usize, const N: usize>(
        self,
        f: impl Fn(usize) -> [[Self::Part; N]; M],
    ) -> [[Self::F; N]; M];

    /// `a > b ? a : b`: the second where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: the second where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `y · 2^⌊n/2⌋ · 2^(n-⌊n/2⌋)`, where n is the integer in the low bits of `shifted` ([`ROUND_MAGIC`] was added to it),
    /// both powers are normal numbers and the first product is exact.
    fn scale_by_power_of_two(self, y: Self::F, shifted: Self::F) -> Self::F;

    /// [`moe_core::numerics::tree_sum`].
    fn tree_sum(self, lanes: Self::F) -> f32;

    /// Adds the tree sums of four vectors to four floats.
    #[inline(always)]
    fn add_tree_sums_4(self, lanes: [Self::F; 4], to: &mut [f32; 4]) {
        to.iter_mut().zip(lanes).for_each(|(to, lanes)| *to += self.tree_sum(lanes));
    }

    /// The same for eight.
    #[inline(always)]
    fn add_tree_sums_8(self, lanes: [Self::F; 8], to: &mut [f32; 8]) {
        let ([a, b, c, d, e, f, g, h], (to, _)) = (lanes, to.as_chunks_mut());
        self.add_tree_sums_4([a, b, c, d], &mut to[0]);
        self.add_tree_sums_4([e, f, g, h], &mut to[1]);
    }

    /// The same for sixteen.
    #[inline(always)]
    fn add_tree_sums_16(self, lanes: [Self::F; 16], to: &mut [f32; 16]) {
        let (to, _) = to.as_chunks_mut();
        for i in 0..2 {
            self.add_tree_sums_8(std::array::from_fn(|j| lanes[8 * i + j]), &mut to[i]);
        }
    }

    /// [`moe_core::numerics::exp`] in every lane.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let x = self.max(self.splat(EXP_MIN), x);
        let x = self.min(self.splat(EXP_MAX), x);
        let magic = self.splat(ROUND_MAGIC);
        let shifted = self.fma(x, self.splat(LOG2_E), magic);
        let n = self.sub(shifted, magic);
        // fma(n, -c, x) and fma(-n, c, x) are the same number.
        let r = self.fma(n, self.splat(-LN2_HI), x);
        let r = self.fma(n, self.splat(-LN2_LO), r);
        let mut q = self.splat(EXP_POLY[4]);
        for i in (0..4).rev() {
            q = self.fma(q, r, self.splat(EXP_POLY[i]));
        }
        let y = self.add(self.fma(self.mul(r, r), q, r), self.splat(1.0));
        self.scale_by_power_of_two(y, shifted)
    }

    /// [`moe_core::numerics::silu`] in every lane.
    #[inline(always)]
    fn silu(self, x: Self::F) -> Self::F {
        let negative = self.sub(self.splat(-0.0), x);
        self.div(x, self.add(self.splat(1.0), self.exp(negative)))
    }
}
