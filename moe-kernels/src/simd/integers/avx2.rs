//! Products of bytes by AVX2: in pairs, in words that saturate and therefore must not be full.

use std::arch::x86_64::*;

use bytemuck::{cast_mut, cast_ref};
use moe_core::numerics::LANES;

use super::{Bytes, Integers, pairs_in_word};
use crate::chunk::Chunk;
use crate::simd::avx2::Avx2;

/// Transposes 4 x 4 dwords in each 128-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Sums of pairs of words, as dwords.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(words: __m256i, to: __m256i) -> __m256i {
    _mm256_add_epi32(to, _mm256_madd_epi16(words, _mm256_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn dot_unsigned<const N: usize, const D: usize, const X: usize>(
    mut sums: [__m256i; N],
    w: [__m256i; D],
    bits: u32,
    x: &[[i32; X]; N],
    at: usize,
) -> [__m256i; N] {
    let together = pairs_in_word(bits).min(D);
    let mut d = 0;
    while d < D {
        let mut words = [_mm256_setzero_si256(); N];
        for i in d..(d + together).min(D) {
            for n in 0..N {
                let products = _mm256_maddubs_epi16(w[i], _mm256_set1_epi32(x[n][at + i]));
                words[n] = if i == d { products } else { _mm256_add_epi16(words[n], products) };
            }
        }
        for n in 0..N {
            sums[n] = add_pairs(words[n], sums[n]);
        }
        d += together;
    }
    sums
}

/// A product of signed bytes is that of the magnitude of one with the other, negated where the first is negative.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_signed<const N: usize, const D: usize, const X: usize>(
    mut sums: [__m256i; N],
    w: [__m256i; D],
    x: &[[i32; X]; N],
    at: usize,
) -> [__m256i; N] {
    for d in 0..D {
        let magnitude = _mm256_abs_epi8(w[d]);
        for n in 0..N {
            let x = _mm256_sign_epi8(_mm256_set1_epi32(x[n][at + d]), w[d]);
            sums[n] = add_pairs(_mm256_maddubs_epi16(magnitude, x), sums[n]);
        }
    }
    sums
}

/// Copies of four bits, each a byte less one bit further on: bit k then is the lowest of byte k.
#[inline]
#[target_feature(enable = "avx2")]
fn spread_bits(bits: __m256i) -> [__m256i; 4] {
    let four = |bits| {
        let four = _mm256_and_si256(bits, _mm256_set1_epi32(15));
        let copies = _mm256_mullo_epi32(four, _mm256_set1_epi32(0x0020_4081));
        _mm256_and_si256(copies, _mm256_set1_epi8(1))
    };
    [
        four(bits),
        four(_mm256_srli_epi32::<4>(bits)),
        four(_mm256_srli_epi32::<8>(bits)),
        four(_mm256_srli_epi32::<12>(bits)),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn two(low: __m128i, high: __m128i) -> __m256i {
    _mm256_set_m128i(high, low)
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits(v: __m256i, shift: u32, mask: u8) -> __m256i {
    _mm256_and_si256(_mm256_srlv_epi32(v, _mm256_set1_epi32(shift as i32)), _mm256_set1_epi8(mask as i8))
}

#[inline]
#[target_feature(enable = "avx2")]
fn minus(v: __m256i, n: u8) -> __m256i {
    _mm256_sub_epi8(v, _mm256_set1_epi8(n as i8))
}

#[inline]
#[target_feature(enable = "avx2")]
fn with_upper(v: __m256i, upper: __m256i, shift: u32) -> __m256i {
    _mm256_or_si256(v, _mm256_sllv_epi32(upper, _mm256_set1_epi32(shift as i32)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn signed_byte(lanes: __m256i, i: usize) -> __m256i {
    _mm256_srai_epi32::<24>(_mm256_sllv_epi32(lanes, _mm256_set1_epi32(24 - 8 * i as i32)))
}

/// Each byte goes into the upper half of its word first.
#[inline]
#[target_feature(enable = "avx2")]
fn word_pair(lanes: __m256i, pair: usize, signed: bool) -> __m256i {
    let lanes = _mm256_srlv_epi32(lanes, _mm256_set1_epi32(16 * pair as i32));
    let low = _mm256_and_si256(_mm256_slli_epi32::<8>(lanes), _mm256_set1_epi32(0xff00));
    let high = _mm256_and_si256(_mm256_slli_epi32::<16>(lanes), _mm256_set1_epi32(0xff << 24));
    let words = _mm256_or_si256(low, high);
    if signed { _mm256_srai_epi16::<8>(words) } else { _mm256_srli_epi16::<8>(words) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn table_of(table: __m128i, codes: __m256i) -> __m256i {
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes)
}

impl Avx2 {
    #[inline(always)]
    fn load_32(self, from: &[u8; 32]) -> __m256i {
        // SAFETY: `self` exists only where AVX2 was detected; `from` is 32 readable bytes; no alignment is asked for.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store_32(self, value: __m256i, to: &mut [u8; 32]) {
        // SAFETY: `self` exists only where AVX2 was detected; `to` is 32 writable bytes; no alignment is asked for.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
    }

    #[inline(always)]
    fn load_16(self, from: &[u8; 16]) -> __m128i {
        // SAFETY: `from` is 16 readable bytes, and the load asks for no alignment.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot_half<const N: usize, const D: usize, const X: usize>(
        self,
        sums: [__m256i; N],
        w: [__m256i; D],
        bytes: Bytes,
        x: &[[i32; X]; N],
        at: usize,
    ) -> [__m256i; N] {
        match bytes {
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            Bytes::Unsigned { bits } => unsafe { dot_unsigned(sums, w, bits, x, at) },
            // SAFETY: as above.
            Bytes::Signed => unsafe { dot_signed(sums, w, x, at) },
        }
    }
}

#[inline(always)]
fn halves(chunk: &Chunk) -> &[[u8; 32]; 2] {
    cast_ref(chunk)
}

impl Integers for Avx2 {
    type Ints = __m256i;
    const SIGNED_OFFSET: u8 = 0;
    const TOKENS: usize = 4;

    #[inline(always)]
    fn splat_ints(self, value: i32) -> __m256i {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    fn load_ints(self, from: &Chunk, half: usize) -> __m256i {
        self.load_32(&halves(from)[half])
    }

    #[inline(always)]
    fn add_ints(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_ints(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { _mm256_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn dot_bytes<const N: usize, const D: usize>(
        self,
        sums: [__m256i; N],
        w: &[Chunk; D],
        half: usize,
        bytes: Bytes,
        x: &[[i32; 8]; N],
        at: usize,
    ) -> [__m256i; N] {
        let w: [__m256i; D] = std::array::from_fn(
            #[inline(always)]
            |d| self.load_ints(&w[d], half),
        );
        self.dot_half(sums, w, bytes, x, at)
    }

    #[inline(always)]
    fn dot_unpacked<const D: usize>(
        self,
        sum: __m256i,
        w: [[__m256i; 2]; D],
        half: usize,
        bytes: Bytes,
        x: &[i32; D],
    ) -> __m256i {
        let mut w_half = [sum; D];
        for d in 0..D {
            w_half[d] = w[d][half];
        }
        let [sum] = self.dot_half([sum], w_half, bytes, &[*x], 0);
        sum
    }

    #[inline(always)]
    fn dot_words<const N: usize>(self, mut sums: [__m256i; N], w: __m256i, x: [i32; N]) -> [__m256i; N] {
        for n in 0..N {
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            let products = unsafe { _mm256_madd_epi16(w, self.splat_ints(x[n])) };
            sums[n] = self.add_ints(sums[n], products);
        }
        sums
    }

    #[inline(always)]
    fn signed_byte(self, lanes: __m256i, i: usize) -> __m256i {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { signed_byte(lanes, i) }
    }

    #[inline(always)]
    fn word_pair(self, lanes: __m256i, pair: usize, signed: bool) -> __m256i {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        unsafe { word_pair(lanes, pair, signed) }
    }

    // Rows 0 to 7 and rows 8 to 15.
    type Bytes = [__m256i; 2];

    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; LANES]) -> [[__m256i; 2]; 4] {
        let mut halves = [[self.splat_ints(0); 4]; 2];
        for half in 0..2 {
            let mut four = [self.splat_ints(0); 4];
            for i in 0..4 {
                let (low, high) = (self.load_16(rows[8 * half + i]), self.load_16(rows[8 * half + 4 + i]));
                // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
                four[i] = unsafe { two(low, high) };
            }
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            halves[half] = unsafe { transpose(four) };
        }
        let [[a, b, c, d], [e, f, g, h]] = halves;
        [[a, e], [b, f], [c, g], [d, h]]
    }

    #[inline(always)]
    fn bits(self, [low, high]: [__m256i; 2], shift: u32, mask: u8) -> [__m256i; 2] {
        [
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            unsafe { bits(low, shift, mask) },
            // SAFETY: as above.
            unsafe { bits(high, shift, mask) },
        ]
    }

    #[inline(always)]
    fn with_upper(self, v: [__m256i; 2], upper: [__m256i; 2], shift: u32) -> [__m256i; 2] {
        [
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            unsafe { with_upper(v[0], upper[0], shift) },
            // SAFETY: as above.
            unsafe { with_upper(v[1], upper[1], shift) },
        ]
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], [low, high]: [__m256i; 2]) -> [__m256i; 2] {
        let table = self.load_16(cast_ref(table));
        [
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            unsafe { table_of(table, low) },
            // SAFETY: as above.
            unsafe { table_of(table, high) },
        ]
    }

    #[inline(always)]
    fn minus(self, [low, high]: [__m256i; 2], n: u8) -> [__m256i; 2] {
        [
            // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
            unsafe { minus(low, n) },
            // SAFETY: as above.
            unsafe { minus(high, n) },
        ]
    }

    #[inline(always)]
    fn spread_bits(self, bits: &Chunk) -> [[__m256i; 2]; 4] {
        // SAFETY: `self` exists only where AVX2 was detected (`Avx2::new`).
        let [a, b, c, d] = unsafe { spread_bits(self.load_ints(bits, 0)) };
        // SAFETY: as above.
        let [e, f, g, h] = unsafe { spread_bits(self.load_ints(bits, 1)) };
        [[a, e], [b, f], [c, g], [d, h]]
    }

    #[inline(always)]
    fn load_bytes(self, from: &Chunk) -> [__m256i; 2] {
        [self.load_ints(from, 0), self.load_ints(from, 1)]
    }

    #[inline(always)]
    fn store_bytes(self, v: [__m256i; 2], to: &mut Chunk) {
        let [low, high]: &mut [[u8; 32]; 2] = cast_mut(to);
        self.store_32(v[0], low);
        self.store_32(v[1], high);
    }
}
