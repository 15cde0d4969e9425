//! AVX-512: sixteen lanes in one register, with or without instructions for bytes (VNNI) and pairs of bfloat16 (BF16).

use std::arch::x86_64::*;
use std::marker::PhantomData;

use moe_core::numerics::{LANES, ROUND_MAGIC};

use super::{Kernel, Simd};

/// Exists only where AVX-512 F, VL, BW and DQ were detected, and what the level has besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<L>(PhantomData<L>);

/// Lanes 0 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(__m512);

/// AVX-512 F, VL, BW and DQ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base;
/// The same with VNNI: products of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vnni;
/// The same with VNNI and BF16: products of pairs of bfloat16 too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bf16;

instruction_set!(Avx512<Base>, is_x86_feature_detected, "avx512f", "avx512vl", "avx512bw", "avx512dq");
instruction_set!(
    Avx512<Vnni>,
    is_x86_feature_detected,
    "avx512f",
    "avx512vl",
    "avx512bw",
    "avx512dq",
    "avx512vnni"
);
instruction_set!(
    Avx512<Bf16>,
    is_x86_feature_detected,
    "avx512f",
    "avx512vl",
    "avx512bw",
    "avx512dq",
    "avx512vnni",
    "avx512bf16"
);

impl<L: Level> Avx512<L> {
    /// The same processor without the level's own instructions, for kernels that have no use for them.
    pub(crate) fn base(self) -> Avx512<Base> {
        Avx512(PhantomData)
    }
}

impl Avx512<Bf16> {
    /// The same processor without BF16.
    pub(crate) fn vnni(self) -> Avx512<Vnni> {
        Avx512(PhantomData)
    }
}

/// What AVX-512 has on a processor.
pub(crate) trait Level: Copy + Send + Sync {
    /// Whether there are products of bytes.
    const VNNI: bool;
    /// Whether there are products of pairs of bfloat16.
    const BF16: bool;

    /// Runs a kernel as a function of its own.
    fn outlined<K: Kernel>(isa: Avx512<Self>, kernel: K) -> K::Output;
}

macro_rules! levels {
    ($($level:ident: VNNI = $vnni:literal, BF16 = $bf16:literal;)+) => {$(
        impl Level for $level {
            const VNNI: bool = $vnni;
            const BF16: bool = $bf16;

            #[inline(always)]
            fn outlined<K: Kernel>(isa: Avx512<Self>, kernel: K) -> K::Output {
                // SAFETY: `isa` exists only where the features of its level were detected (`Avx512::new`).
                unsafe { isa.run_outlined(kernel) }
            }
        }
    )+};
}

levels! {
    Base: VNNI = false, BF16 = false;
    Vnni: VNNI = true, BF16 = false;
    Bf16: VNNI = true, BF16 = true;
}

/// Operations that are one instruction.
macro_rules! lanewise {
    ($(fn $name:ident($($arg:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Lanes),+) -> Lanes {
            // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
            Lanes(unsafe { $intrinsic($($arg.0),+) })
        }
    )+};
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn tree_sum(lanes: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps::<1>(lanes));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// The halves of two vectors added: of the first, then of the second.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_halves(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
}

/// Four trees side by side after their second level, each a quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_quarters([a, b, c, d]: [__m512; 4]) -> __m512 {
    let (ab, cd) = (add_halves(a, b), add_halves(c, d));
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
}

/// Four floats plus the sums of four trees.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_tree_sums_4(lanes: [__m512; 4], to: __m128) -> __m128 {
    let four = add_quarters(lanes);
    let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
    let one = _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two));
    // Every lane of a quarter holds its vector's sum by now.
    let first = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    _mm_add_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one)))
}

/// Sixteen floats plus the sums of sixteen trees.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_tree_sums_16(lanes: [__m512; 16], to: __m512) -> __m512 {
    // Every fourth in one, so that a quarter ends up with four that follow each other.
    let every_fourth = |i: usize| add_quarters([lanes[i], lanes[4 + i], lanes[8 + i], lanes[12 + i]]);
    let pair = |a, b| {
        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    };
    let first = pair(every_fourth(0), every_fourth(1));
    let second = pair(every_fourth(2), every_fourth(3));
    let even = _mm512_shuffle_ps::<0b10_00_10_00>(first, second);
    let odd = _mm512_shuffle_ps::<0b11_01_11_01>(first, second);
    _mm512_add_ps(to, _mm512_add_ps(even, odd))
}

/// Widens sixteen bfloat16: each word goes into the upper half of a lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen_bf16(sixteen: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(sixteen)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn high_halves(lanes: __m512) -> __m512 {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(lanes), upper))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn low_halves(lanes: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(lanes)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn fma_pairs(a: __m512, b: __m512, c: __m512) -> __m512 {
    // SAFETY: both types are 64 bytes of which any bits are values.
    let a = unsafe { std::mem::transmute::<__m512, __m512bh>(a) };
    // SAFETY: as above.
    let b = unsafe { std::mem::transmute::<__m512, __m512bh>(b) };
    _mm512_dpbf16_ps(c, a, b)
}

impl<L: Level> Avx512<L> {
    #[inline(always)]
    fn load_32_bytes(self, from: &[u8; 32]) -> __m256i {
        // SAFETY: `self` exists only where AVX-512 F, and so AVX, was detected; `from` is 32 readable bytes, and no
        // alignment is asked for.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
}

impl<L: Level> Simd for Avx512<L> {
    type F32x16 = Lanes;
    type Half = Lanes;
    type HalfInMemory = [f32; LANES];
    const HALVES: usize = 1;
    const MANY_REGISTERS: bool = true;

    lanewise! {
        fn add(a, b) = _mm512_add_ps;
        fn sub(a, b) = _mm512_sub_ps;
        fn mul(a, b) = _mm512_mul_ps;
        fn div(a, b) = _mm512_div_ps;
        fn fma(a, b, c) = _mm512_fmadd_ps;
        fn max(a, b) = _mm512_max_ps;
        fn min(a, b) = _mm512_min_ps;
    }

    #[inline(always)]
    fn load_half(self, from: &[f32; LANES]) -> Lanes {
        self.load(from)
    }

    #[inline(always)]
    fn half(self, lanes: Lanes, _: usize) -> Lanes {
        lanes
    }

    #[inline(always)]
    fn fma_half(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        self.fma(a, b, c)
    }

    #[inline(always)]
    fn splat_half(self, value: f32) -> Lanes {
        self.splat(value)
    }

    #[inline(always)]
    fn mul_half(self, a: Lanes, b: Lanes) -> Lanes {
        self.mul(a, b)
    }

    #[inline(always)]
    fn floats_of(self, ints: __m512i) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        Lanes(unsafe { _mm512_cvtepi32_ps(ints) })
    }

    #[inline(always)]
    fn store_half(self, lanes: Lanes, to: &mut [f32; LANES]) {
        self.store(lanes, to);
    }

    #[inline(always)]
    fn high_halves(self, lanes: Lanes) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        Lanes(unsafe { high_halves(lanes.0) })
    }

    #[inline(always)]
    fn low_halves(self, lanes: Lanes) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        Lanes(unsafe { low_halves(lanes.0) })
    }

    #[inline(always)]
    fn fma_pairs(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        if L::BF16 {
            // SAFETY: this `self` exists only where BF16 was detected (`Avx512::<Bf16>::new`).
            Lanes(unsafe { fma_pairs(a.0, b.0, c.0) })
        } else {
            let c = self.fma(self.high_halves(a), self.high_halves(b), c);
            self.fma(self.low_halves(a), self.low_halves(b), c)
        }
    }

    #[inline(always)]
    fn by_halves<const M: usize, const N: usize>(
        self,
        f: impl Fn(usize) -> [[Lanes; N]; M],
    ) -> [[Lanes; N]; M] {
        f(0)
    }

    #[inline(always)]
    fn outlined<K: Kernel>(self, kernel: K) -> K::Output {
        L::outlined(self, kernel)
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T) {
        // SAFETY: prefetching has no effect that a program can see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(from).cast()) }
    }

    #[inline(always)]
    fn prefetch_near<T>(self, from: &T) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(from).cast()) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        Lanes(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected; `from` is 16 readable floats; no alignment is asked for.
        Lanes(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, lanes: Lanes, to: &mut [f32; LANES]) {
        // SAFETY: `self` exists only where AVX-512 F was detected; `to` is 16 writable floats; no alignment is asked for.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes.0) }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected; `from` is 64 readable bytes; no alignment is asked for,
        // any bits are floats, and x86 is little-endian.
        Lanes(unsafe { _mm512_loadu_ps(from.as_ptr().cast()) })
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        Lanes(unsafe { _mm512_cvtph_ps(self.load_32_bytes(from)) })
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Lanes {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        Lanes(unsafe { widen_bf16(self.load_32_bytes(from)) })
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, y: Lanes, shifted: Lanes) -> Lanes {
        // The first of the two products is exact, so that both are rounded once, as this is.
        let n = self.sub(shifted, self.splat(ROUND_MAGIC));
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        Lanes(unsafe { _mm512_scalef_ps(y.0, n.0) })
    }

    #[inline(always)]
    fn tree_sum(self, lanes: Lanes) -> f32 {
        // SAFETY: `self` exists only where AVX-512 F and DQ were detected (`Avx512::new`).
        unsafe { tree_sum(lanes.0) }
    }

    #[inline(always)]
    fn add_tree_sums_4(self, lanes: [Lanes; 4], to: &mut [f32; 4]) {
        // SAFETY: `to` is 4 readable floats; no alignment is asked for.
        let before = unsafe { _mm_loadu_ps(to.as_ptr()) };
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        let after = unsafe { add_tree_sums_4(lanes.map(|v| v.0), before) };
        // SAFETY: `to` is 4 writable floats; no alignment is asked for.
        unsafe { _mm_storeu_ps(to.as_mut_ptr(), after) };
    }

    #[inline(always)]
    fn add_tree_sums_16(self, lanes: [Lanes; 16], to: &mut [f32; 16]) {
        let before = self.load(to).0;
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        let after = unsafe { add_tree_sums_16(lanes.map(|v| v.0), before) };
        self.store(Lanes(after), to);
    }
}
