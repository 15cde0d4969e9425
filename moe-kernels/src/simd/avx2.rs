//! AVX2 with FMA and F16C: sixteen lanes in two registers.

use std::arch::x86_64::*;

use moe_core::numerics::{LANES, ROUND_MAGIC};

use super::{Kernel, Simd};

/// Exists only where AVX2, FMA and F16C were detected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// Lanes 0 to 7 and lanes 8 to 15.
#[derive(Clone, Copy)]
pub(crate) struct Lanes(__m256, __m256);

instruction_set!(Avx2, is_x86_feature_detected, "avx2", "fma", "f16c");

/// Operations that are one instruction a register.
macro_rules! lanewise {
    ($(fn $name:ident($($arg:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Lanes),+) -> Lanes {
            Lanes(
                // SAFETY: `self` exists only where AVX2 and FMA were detected (`Avx2::new`).
                unsafe { $intrinsic($($arg.0),+) },
                // SAFETY: as above.
                unsafe { $intrinsic($($arg.1),+) },
            )
        }
    )+};
}

/// `2^⌊n/2⌋` and `2^(n-⌊n/2⌋)` for the integers in the low bits of `shifted`.
#[inline]
#[target_feature(enable = "avx2")]
fn powers_of_two(shifted: __m256) -> (__m256, __m256) {
    let magic = _mm256_set1_epi32(ROUND_MAGIC.to_bits() as i32);
    let n = _mm256_sub_epi32(_mm256_castps_si256(shifted), magic);
    let half = _mm256_srai_epi32::<1>(n);
    let rest = _mm256_sub_epi32(n, half);
    let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))));
    (power(half), power(rest))
}

/// Lane i of the result is lane i plus lane i + 8, then plus i + 4, of the sixteen.
#[inline]
#[target_feature(enable = "avx2")]
fn quarter(lanes: Lanes) -> __m128 {
    let eight = _mm256_add_ps(lanes.0, lanes.1);
    _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight))
}

#[inline]
#[target_feature(enable = "avx2")]
fn tree_sum(lanes: Lanes) -> f32 {
    let four = quarter(lanes);
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Four floats plus the sums of four trees, whose last two levels are shared.
#[inline]
#[target_feature(enable = "avx2")]
fn add_tree_sums_4(lanes: [Lanes; 4], to: __m128) -> __m128 {
    let [a, b, c, d] = [quarter(lanes[0]), quarter(lanes[1]), quarter(lanes[2]), quarter(lanes[3])];
    let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
    let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
    let even = _mm_shuffle_ps::<0b10_00_10_00>(ab, cd);
    _mm_add_ps(to, _mm_add_ps(even, _mm_shuffle_ps::<0b11_01_11_01>(ab, cd)))
}

/// Eight floats plus the sums of eight trees, whose last three levels are shared.
#[inline]
#[target_feature(enable = "avx2")]
fn add_tree_sums_8(lanes: [Lanes; 8], to: __m256) -> __m256 {
    // Two that are four apart in one, so that a half ends up with four that follow each other.
    let quarters = |i: usize| {
        let a = _mm256_add_ps(lanes[i].0, lanes[i].1);
        let b = _mm256_add_ps(lanes[4 + i].0, lanes[4 + i].1);
        _mm256_add_ps(_mm256_blend_ps::<0b1111_0000>(a, b), _mm256_permute2f128_ps::<0x21>(a, b))
    };
    let pair = |a, b| {
        let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
        let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
        _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
    };
    let first = pair(quarters(0), quarters(1));
    let second = pair(quarters(2), quarters(3));
    let even = _mm256_shuffle_ps::<0b10_00_10_00>(first, second);
    let odd = _mm256_shuffle_ps::<0b11_01_11_01>(first, second);
    _mm256_add_ps(to, _mm256_add_ps(even, odd))
}

/// Widens eight bfloat16.
#[inline]
#[target_feature(enable = "avx2")]
fn widen_bf16(eight: __m128i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(eight)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn high_halves(lanes: __m256) -> __m256 {
    _mm256_and_ps(lanes, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn low_halves(lanes: __m256) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(lanes)))
}

/// The two halves of 32 bytes.
#[inline(always)]
fn halves(from: &[u8; 32]) -> (&[u8; 16], &[u8; 16]) {
    let (pieces, _) = from.as_chunks::<16>();
    (&pieces[0], &pieces[1])
}

impl Avx2 {
    #[inline(always)]
    fn load_16_bytes(self, from: &[u8; 16]) -> __m128i {
        // SAFETY: `from` is 16 readable bytes, and the load asks for no alignment.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_8_floats(self, from: &[f32; 8]) -> __m256 {
        // SAFETY: `self` exists only where AVX2 was detected; `from` is 8 readable floats; no alignment is asked for.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store_8_floats(self, lanes: __m256, to: &mut [f32; 8]) {
        // SAFETY: `self` exists only where AVX2 was detected; `to` is 8 writable floats; no alignment is asked for.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn load_8_floats_le(self, from: &[u8; 32]) -> __m256 {
        // SAFETY: `self` exists only where AVX2 was detected; `from` is 32 readable bytes; no alignment is asked for, any
        // bits are floats, and x86 is little-endian.
        unsafe { _mm256_loadu_ps(from.as_ptr().cast()) }
    }
}

impl Simd for Avx2 {
    type F32x16 = Lanes;
    type Half = __m256;
    type HalfInMemory = [f32; 8];
    const HALVES: usize = 2;
    const MANY_REGISTERS: bool = false;

    lanewise! {
        fn add(a, b) = _mm256_add_ps;
        fn sub(a, b) = _mm256_sub_ps;
        fn mul(a, b) = _mm256_mul_ps;
        fn div(a, b) = _mm256_div_ps;
        fn fma(a, b, c) = _mm256_fmadd_ps;
        fn max(a, b) = _mm256_max_ps;
        fn min(a, b) = _mm256_min_ps;
    }

    #[inline(always)]
    fn load_half(self, from: &[f32; 8]) -> __m256 {
        self.load_8_floats(from)
    }

    #[inline(always)]
    fn half(self, lanes: Lanes, i: usize) -> __m256 {
        if i == 0 { lanes.0 } else { lanes.1 }
    }

    #[inline(always)]
    fn fma_half(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` exists only where FMA was detected (`Avx2::new`).
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn splat_half(self, value: f32) -> __m256 {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn mul_half(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn floats_of(self, ints: __m256i) -> __m256 {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { _mm256_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn store_half(self, lanes: __m256, to: &mut [f32; 8]) {
        self.store_8_floats(lanes, to);
    }

    #[inline(always)]
    fn high_halves(self, lanes: __m256) -> __m256 {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { high_halves(lanes) }
    }

    #[inline(always)]
    fn low_halves(self, lanes: __m256) -> __m256 {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { low_halves(lanes) }
    }

    #[inline(always)]
    fn by_halves<const M: usize, const N: usize>(
        self,
        f: impl Fn(usize) -> [[__m256; N]; M],
    ) -> [[Lanes; N]; M] {
        let (low, high) = (f(0), f(1));
        std::array::from_fn(|m| std::array::from_fn(|n| Lanes(low[m][n], high[m][n])))
    }

    #[inline(always)]
    fn outlined<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` exists only where AVX2, FMA and F16C were detected (`new`).
        unsafe { self.run_outlined(kernel) }
    }

    #[inline(always)]
    fn prefetch<T>(self, from: &T) {
        // SAFETY: prefetching has no effect that a program can see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(from).cast()) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        let lanes = unsafe { _mm256_set1_ps(value) };
        Lanes(lanes, lanes)
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        let (halves, _) = from.as_chunks::<8>();
        Lanes(self.load_8_floats(&halves[0]), self.load_8_floats(&halves[1]))
    }

    #[inline(always)]
    fn store(self, lanes: Lanes, to: &mut [f32; LANES]) {
        let (halves, _) = to.as_chunks_mut::<8>();
        self.store_8_floats(lanes.0, &mut halves[0]);
        self.store_8_floats(lanes.1, &mut halves[1]);
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; 64]) -> Lanes {
        let (halves, _) = from.as_chunks::<32>();
        Lanes(self.load_8_floats_le(&halves[0]), self.load_8_floats_le(&halves[1]))
    }

    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Lanes {
        let (low, high) = halves(from);
        Lanes(
            // SAFETY: `self` exists only where F16C was detected (`Avx2::new`).
            unsafe { _mm256_cvtph_ps(self.load_16_bytes(low)) },
            // SAFETY: as above.
            unsafe { _mm256_cvtph_ps(self.load_16_bytes(high)) },
        )
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u8; 32]) -> Lanes {
        let (low, high) = halves(from);
        Lanes(
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            unsafe { widen_bf16(self.load_16_bytes(low)) },
            // SAFETY: as above.
            unsafe { widen_bf16(self.load_16_bytes(high)) },
        )
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, y: Lanes, shifted: Lanes) -> Lanes {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        let low = unsafe { powers_of_two(shifted.0) };
        // SAFETY: as above.
        let high = unsafe { powers_of_two(shifted.1) };
        self.mul(self.mul(y, Lanes(low.0, high.0)), Lanes(low.1, high.1))
    }

    #[inline(always)]
    fn tree_sum(self, lanes: Lanes) -> f32 {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { tree_sum(lanes) }
    }

    #[inline(always)]
    fn add_tree_sums_4(self, lanes: [Lanes; 4], to: &mut [f32; 4]) {
        // SAFETY: `to` is 4 readable floats; no alignment is asked for.
        let before = unsafe { _mm_loadu_ps(to.as_ptr()) };
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        let after = unsafe { add_tree_sums_4(lanes, before) };
        // SAFETY: `to` is 4 writable floats; no alignment is asked for.
        unsafe { _mm_storeu_ps(to.as_mut_ptr(), after) };
    }

    #[inline(always)]
    fn add_tree_sums_8(self, lanes: [Lanes; 8], to: &mut [f32; 8]) {
        let before = self.load_8_floats(to);
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        let after = unsafe { add_tree_sums_8(lanes, before) };
        self.store_8_floats(after, to);
    }
}
