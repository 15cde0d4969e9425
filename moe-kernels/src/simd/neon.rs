//! NEON: sixteen lanes in four registers.

use std::arch::aarch64::*;
use std::arch::asm;

use moe_core::numerics::{LANES, ROUND_MAGIC};

use super::integers::plain_integers;
use super::{Kernel, Simd};

/// Exists only where NEON was detected and memory is little-endian.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

/// Eight lanes: the first four and the last.
#[derive(Clone, Copy)]
pub(crate) struct Eight(float32x4_t, float32x4_t);

/// Lanes 0 to 7 and lanes 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(Eight, Eight);

instruction_set!(Neon, is_aarch64_feature_detected, "neon");

/// Operations on eight lanes, which are two of four each.
macro_rules! eight {
    ($(fn $name:ident($($arg:ident),+) = $four:expr;)+) => {$(
        #[inline]
        #[target_feature(enable = "neon")]
        fn $name($($arg: Eight),+) -> Eight {
            let four = $four;
            Eight(four($($arg.0),+), four($($arg.1),+))
        }
    )+};
}

eight! {
    fn add(a, b) = |a, b| vaddq_f32(a, b);
    fn sub(a, b) = |a, b| vsubq_f32(a, b);
    fn mul(a, b) = |a, b| vmulq_f32(a, b);
    fn div(a, b) = |a, b| vdivq_f32(a, b);
    fn fma(a, b, c) = |a, b, c| vfmaq_f32(c, a, b);
    // The instructions of these names give NaN where either is.
    fn max(a, b) = |a, b| vbslq_f32(vcgtq_f32(a, b), a, b);
    fn min(a, b) = |a, b| vbslq_f32(vcltq_f32(a, b), a, b);
    fn high_halves(a) = |a| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0xffff_0000)));
    fn low_halves(a) = |a| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(a)));
    // Of the integers n in the low bits of `shifted`: 2^⌊n/2⌋ and 2^(n-⌊n/2⌋).
    fn power_of_half(shifted) = |shifted| power_of_two(vshrq_n_s32::<1>(exponents(shifted)));
    fn power_of_rest(shifted) = |shifted| {
        let n = exponents(shifted);
        power_of_two(vsubq_s32(n, vshrq_n_s32::<1>(n)))
    };
}

/// The integers in the low bits of `shifted`.
#[inline]
#[target_feature(enable = "neon")]
fn exponents(shifted: float32x4_t) -> int32x4_t {
    vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(ROUND_MAGIC.to_bits() as i32))
}

#[inline]
#[target_feature(enable = "neon")]
fn power_of_two(n: int32x4_t) -> float32x4_t {
    vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))))
}

/// Lane i of the result is lane i plus lane i + 8, then plus i + 4, of the sixteen.
#[inline]
#[target_feature(enable = "neon")]
fn quarter(lanes: Lanes) -> float32x4_t {
    let Eight(low, high) = add(lanes.0, lanes.1);
    vaddq_f32(low, high)
}

/// The next level of two trees: lane i plus lane i + 2 of a, then of b.
#[inline]
#[target_feature(enable = "neon")]
fn eighths(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vaddq_f32(
        vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
        vcombine_f32(vget_high_f32(a), vget_high_f32(b)),
    )
}

#[inline]
#[target_feature(enable = "neon")]
fn tree_sum(lanes: Lanes) -> f32 {
    let four = quarter(lanes);
    vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
}

/// Four floats plus the sums of four trees, whose last two levels are shared.
#[inline]
#[target_feature(enable = "neon")]
fn add_tree_sums_4([a, b, c, d]: [Lanes; 4], to: float32x4_t) -> float32x4_t {
    vaddq_f32(to, vpaddq_f32(eighths(quarter(a), quarter(b)), eighths(quarter(c), quarter(d))))
}

/// Widens eight binary16.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(eight: uint16x8_t) -> Eight {
    // Not the intrinsics, which are stable from Rust 1.94 on.
    let (low, high);
    // SAFETY: an instruction of NEON that writes the one register that is named as written, and flags.
    unsafe { asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) low, in(vreg) eight, options(pure, nomem, nostack)) };
    // SAFETY: as above.
    unsafe { asm!("fcvtl2 {:v}.4s, {:v}.8h", out(vreg) high, in(vreg) eight, options(pure, nomem, nostack)) };
    Eight(low, high)
}

/// Widens eight bfloat16: each goes into the upper half of a lane.
#[inline]
#[target_feature(enable = "neon")]
fn widen_bf16(eight: uint16x8_t) -> Eight {
    Eight(
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(eight))),
        vreinterpretq_f32_u32(vshll_high_n_u16::<16>(eight)),
    )
}

/// Operations that are the same one on both halves.
macro_rules! lanewise {
    ($(fn $name:ident($($arg:ident),+);)+) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Lanes),+) -> Lanes {
            Lanes(
                // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
                unsafe { $name($($arg.0),+) },
                // SAFETY: as above.
                unsafe { $name($($arg.1),+) },
            )
        }
    )+};
}

impl Neon {
    lanewise! {
        fn power_of_half(shifted);
        fn power_of_rest(shifted);
    }

    #[inline(always)]
    fn load_4_floats(self, from: &[f32; 4]) -> float32x4_t {
        // SAFETY: `self` exists only where NEON was detected; `from` is 4 readable floats.
        unsafe { vld1q_f32(from.as_ptr()) }
    }

    #[inline(always)]
    fn store_4_floats(self, lanes: float32x4_t, to: &mut [f32; 4]) {
        // SAFETY: `self` exists only where NEON was detected; `to` is 4 writable floats.
        unsafe { vst1q_f32(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn load_16_bytes(self, from: &[u8; 16]) -> uint8x16_t {
        // SAFETY: `self` exists only where NEON was detected; `from` is 16 readable bytes.
        unsafe { vld1q_u8(from.as_ptr()) }
    }

    #[inline(always)]
    fn load_4_floats_le(self, from: &[u8; 16]) -> float32x4_t {
        // SAFETY: `self` exists only where NEON was detected and memory is little-endian.
        unsafe { vreinterpretq_f32_u8(self.load_16_bytes(from)) }
    }

    #[inline(always)]
    fn load_8_words_le(self, from: &[u8; 16]) -> uint16x8_t {
        // SAFETY: `self` exists only where NEON was detected and memory is little-endian.
        unsafe { vreinterpretq_u16_u8(self.load_16_bytes(from)) }
    }
}

// The integers of a half are plain code, which the compiler makes vectors of.
plain_integers!(Neon, 8);

impl Simd for Neon {
    type F32x16 = Lanes;
    // Two registers: three times four of them leave eight of thirty-two for operands, and one row of x against four of
    // weights is still eight chains.
    type Half = Eight;
    type HalfInMemory = [f32; 8];
    const HALVES: usize = 2;
    const MANY_REGISTERS: bool = false;

    lanewise! {
        fn add(a, b);
        fn sub(a, b);
        fn mul(a, b);
        fn div(a, b);
        fn fma(a, b, c);
        fn max(a, b);
        fn min(a, b);
    }

    #[inline(always)]
    fn load_half(self, from: &[f32; 8]) -> Eight {
        let (fours, _) = from.as_chunks::<4>();
        Eight(self.load_4_floats(&fours[0]), self.load_4_floats(&fours[1]))
    }

    #[inline(always)]
    fn half(self, lanes: Lanes, i: usize) -> Eight {
        if i == 0 { lanes.0 } else { lanes.1 }
    }

    #[inline(always)]
    fn fma_half(self, a: Eight, b: Eight, c: Eight) -> Eight {
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        unsafe { fma(a, b, c) }
    }

    #[inline(always)]
    fn splat_half(self, value: f32) -> Eight {
        self.splat(value).0
    }

    #[inline(always)]
    fn mul_half(self, a: Eight, b: Eight) -> Eight {
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        unsafe { mul(a, b) }
    }

    #[inline(always)]
    fn floats_of(self, ints: [i32; 8]) -> Eight {
        self.load_half(&ints.map(|v| v as f32))
    }

    #[inline(always)]
    fn store_half(self, lanes: Eight, to: &mut [f32; 8]) {
        let (fours, _) = to.as_chunks_mut::<4>();
        self.store_4_floats(lanes.0, &mut fours[0]);
        self.store_4_floats(lanes.1, &mut fours[1]);
    }

    #[inline(always)]
    fn high_halves(self, lanes: Eight) -> Eight {
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        unsafe { high_halves(lanes) }
    }

    #[inline(always)]
    fn low_halves(self, lanes: Eight) -> Eight {
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        unsafe { low_halves(lanes) }
    }

    #[inline(always)]
    fn by_halves<const M: usize, const N: usize>(
        self,
        f: impl Fn(usize) -> [[Eight; N]; M],
    ) -> [[Lanes; N]; M] {
        let (low, high) = (f(0), f(1));
        std::array::from_fn(|m| std::array::from_fn(|n| Lanes(low[m][n], high[m][n])))
    }

    #[inline(always)]
    fn outlined<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        unsafe { self.run_outlined(kernel) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        let four = unsafe { vdupq_n_f32(value) };
        Lanes(Eight(four, four), Eight(four, four))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        let (fours, _) = from.as_chunks::<4>();
        let four = |i: usize| self.load_4_floats(&fours[i]);
        Lanes(Eight(four(0), four(1)), Eight(four(2), four(3)))
    }

    #[inline(always)]
    fn store(self, lanes: Lanes, to: &mut [f32; LANES]) {
        let (fours, _) = to.as_chunks_mut::<4>();
        self.store_4_floats(lanes.0.0, &mut fours[0]);
        self.store_4_floats(lanes.0.1, &mut fours[1]);
        self.store_4_floats(lanes.1.0, &mut fours[2]);
        self.store_4_floats(lanes.1.1, &mut fours[3]);
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Lanes {
        let (fours, _) = from.as_chunks::<16>();
        let four = |i: usize| self.load_4_floats_le(&fours[i]);
        Lanes(Eight(four(0), four(1)), Eight(four(2), four(3)))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Lanes {
        let (eights, _) = from.as_chunks::<16>();
        Lanes(
            // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
            unsafe { widen_f16(self.load_8_words_le(&eights[0])) },
            // SAFETY: as above.
            unsafe { widen_f16(self.load_8_words_le(&eights[1])) },
        )
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Lanes {
        let (eights, _) = from.as_chunks::<16>();
        Lanes(
            // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
            unsafe { widen_bf16(self.load_8_words_le(&eights[0])) },
            // SAFETY: as above.
            unsafe { widen_bf16(self.load_8_words_le(&eights[1])) },
        )
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, y: Lanes, shifted: Lanes) -> Lanes {
        self.mul(self.mul(y, self.power_of_half(shifted)), self.power_of_rest(shifted))
    }

    #[inline(always)]
    fn tree_sum(self, lanes: Lanes) -> f32 {
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        unsafe { tree_sum(lanes) }
    }

    #[inline(always)]
    fn add_tree_sums_4(self, lanes: [Lanes; 4], to: &mut [f32; 4]) {
        let before = self.load_4_floats(to);
        // SAFETY: `self` exists only where NEON was detected (`Neon::new`).
        let after = unsafe { add_tree_sums_4(lanes, before) };
        self.store_4_floats(after, to);
    }
}
