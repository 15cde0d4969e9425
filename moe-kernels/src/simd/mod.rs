//! Sixteen f32 lanes, by instruction set.
//!
//! A kernel is written once, generic over [`Simd`]; a value of an implementing type is the proof that its instructions
//! may be used. [`Portable`] is the definition, and the others give its bits.

/// Makes a type stand for an instruction set: its features are listed here alone, so that what is detected is what code is
/// compiled for.
///
/// The type has one private field of type `()` and gets `new`, which is `Some` where the processor has every feature, `run`,
/// and `run_outlined`, which is never inlined.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! instruction_set {
    ($name:ty, $detected:ident, $($feature:tt),+) => {
        impl $name {
            /// `Some` where the processor has all of its instructions, and memory is little-endian.
            pub(crate) fn new() -> Option<Self> {
                let detected = cfg!(target_endian = "little") $(&& std::arch::$detected!($feature))+;
                detected.then_some(Self(Default::default()))
            }

            /// Runs a kernel compiled for these instructions.
            ///
            /// # Safety
            ///
            /// The processor must have them, which the existence of `self` shows.
            $(#[target_feature(enable = $feature)])+
            pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
                kernel.run(self)
            }

            /// The same, never inlined.
            ///
            /// # Safety
            ///
            /// As for [`run`](Self::run).
            #[inline(never)]
            $(#[target_feature(enable = $feature)])+
            unsafe fn run_outlined<K: Kernel>(self, kernel: K) -> K::Output {
                kernel.run(self)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod integers;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod portable;
#[cfg(test)]
mod tests;

pub(crate) use integers::{Bytes, Integers, ints_chunk};
pub(crate) use portable::Portable;

use bytemuck::Pod;
use moe_core::numerics::{EXP_MAX, EXP_MIN, EXP_POLY, LANES, LN2_HI, LN2_LO, LOG2_E, ROUND_MAGIC};

/// Work that is written once for every instruction set.
pub(crate) trait Kernel {
    /// What it computes.
    type Output;

    /// Does it. Must be `#[inline(always)]`, as must whatever it calls that is generic over `S`: only what is inlined into
    /// the dispatching function is compiled for its instructions.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// The operations kernels are made of, on sixteen lanes. Each lane is IEEE binary32, rounded to nearest even.
pub(crate) trait Simd: Integers + Send + Sync {
    /// Sixteen lanes.
    type F32x16: Copy;

    /// What tiles compute at a time: lanes 0 to 7, then 8 to 15, where a register holds no more; otherwise the one half is all
    /// sixteen.
    type Half: Copy;
    /// A half in memory: so many floats.
    type HalfInMemory: Pod;

    /// How many halves there are, 1 or 2.
    const HALVES: usize;
    /// Whether registers allow large tiles: thirty-two of sixteen lanes, where others have sixteen of eight.
    const MANY_REGISTERS: bool;

    /// Asks the second-level cache for the line that `from` lies in; nothing else happens.
    #[inline(always)]
    fn prefetch<T>(self, _from: &T) {}

    /// The same of the first-level cache.
    #[inline(always)]
    fn prefetch_near<T>(self, _from: &T) {}

    /// Runs a kernel as a function of its own, not inlined, so that its loops have all registers to themselves.
    fn outlined<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::F32x16;
    fn load(self, from: &[f32; LANES]) -> Self::F32x16;
    fn store(self, lanes: Self::F32x16, to: &mut [f32; LANES]);

    /// Sixteen little-endian binary32, wherever they lie.
    fn load_f32(self, from: &[u8; 64]) -> Self::F32x16;
    /// Sixteen little-endian binary16, widened exactly.
    fn load_f16(self, from: &[u8; 32]) -> Self::F32x16;
    /// Sixteen little-endian bfloat16, widened exactly.
    fn load_bf16(self, from: &[u8; 32]) -> Self::F32x16;

    fn add(self, a: Self::F32x16, b: Self::F32x16) -> Self::F32x16;
    fn sub(self, a: Self::F32x16, b: Self::F32x16) -> Self::F32x16;
    fn mul(self, a: Self::F32x16, b: Self::F32x16) -> Self::F32x16;
    fn div(self, a: Self::F32x16, b: Self::F32x16) -> Self::F32x16;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32x16, b: Self::F32x16, c: Self::F32x16) -> Self::F32x16;
    fn load_half(self, from: &Self::HalfInMemory) -> Self::Half;
    /// Half `i` of sixteen lanes.
    fn half(self, lanes: Self::F32x16, i: usize) -> Self::Half;
    /// [`fma`](Self::fma) on a half.
    fn fma_half(self, a: Self::Half, b: Self::Half, c: Self::Half) -> Self::Half;
    fn splat_half(self, value: f32) -> Self::Half;
    fn mul_half(self, a: Self::Half, b: Self::Half) -> Self::Half;
    /// Integers as floats, rounded to nearest even.
    fn floats_of(self, ints: Self::Ints) -> Self::Half;
    fn store_half(self, lanes: Self::Half, to: &mut Self::HalfInMemory);
    /// The upper halves of lanes, the lower ones zero: of pairs of bfloat16, those with odd index.
    fn high_halves(self, lanes: Self::Half) -> Self::Half;
    /// The lower halves of lanes in the place of the upper ones: of pairs of bfloat16, those with even index.
    fn low_halves(self, lanes: Self::Half) -> Self::Half;
    /// The products of pairs of bfloat16 added to c: that of the upper halves first, each rounded once.
    #[inline(always)]
    fn fma_pairs(self, a: Self::Half, b: Self::Half, c: Self::Half) -> Self::Half {
        let c = self.fma_half(self.high_halves(a), self.high_halves(b), c);
        self.fma_half(self.low_halves(a), self.low_halves(b), c)
    }
    /// Computes a tile of chains half by half, so that more chains than half the registers fit: `f(i)` is half i of all.
    fn by_halves<const M: usize, const N: usize>(
        self,
        f: impl Fn(usize) -> [[Self::Half; N]; M],
    ) -> [[Self::F32x16; N]; M];

    /// `a > b ? a : b`: the second where either is NaN.
    fn max(self, a: Self::F32x16, b: Self::F32x16) -> Self::F32x16;
    /// `a < b ? a : b`: the second where either is NaN.
    fn min(self, a: Self::F32x16, b: Self::F32x16) -> Self::F32x16;
    /// `y · 2^⌊n/2⌋ · 2^(n-⌊n/2⌋)`, where n is the integer in the low bits of `shifted` ([`ROUND_MAGIC`] was added to it),
    /// both powers are normal numbers and the first product is exact.
    fn scale_by_power_of_two(self, y: Self::F32x16, shifted: Self::F32x16) -> Self::F32x16;

    /// [`moe_core::numerics::tree_sum`].
    fn tree_sum(self, lanes: Self::F32x16) -> f32;

    /// Adds the tree sums of four vectors to four floats.
    #[inline(always)]
    fn add_tree_sums_4(self, lanes: [Self::F32x16; 4], to: &mut [f32; 4]) {
        to.iter_mut().zip(lanes).for_each(|(to, lanes)| *to += self.tree_sum(lanes));
    }

    /// The same for eight.
    #[inline(always)]
    fn add_tree_sums_8(self, lanes: [Self::F32x16; 8], to: &mut [f32; 8]) {
        let ([a, b, c, d, e, f, g, h], (to, _)) = (lanes, to.as_chunks_mut());
        self.add_tree_sums_4([a, b, c, d], &mut to[0]);
        self.add_tree_sums_4([e, f, g, h], &mut to[1]);
    }

    /// The same for sixteen.
    #[inline(always)]
    fn add_tree_sums_16(self, lanes: [Self::F32x16; 16], to: &mut [f32; 16]) {
        let (to, _) = to.as_chunks_mut();
        for i in 0..2 {
            self.add_tree_sums_8(std::array::from_fn(|j| lanes[8 * i + j]), &mut to[i]);
        }
    }

    /// [`moe_core::numerics::exp`] in every lane.
    #[inline(always)]
    fn exp(self, x: Self::F32x16) -> Self::F32x16 {
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
    fn silu(self, x: Self::F32x16) -> Self::F32x16 {
        let negative = self.sub(self.splat(-0.0), x);
        self.div(x, self.add(self.splat(1.0), self.exp(negative)))
    }
}
