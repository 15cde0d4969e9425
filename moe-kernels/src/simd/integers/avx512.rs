//! Products of bytes by AVX-512: with VNNI four at a time into dwords, without it as by AVX2.

use std::arch::x86_64::*;

use bytemuck::cast_ref;
use moe_core::numerics::LANES;

use super::{Bytes, Integers, pairs_in_word};
use crate::chunk::Chunk;
use crate::simd::avx512::{Avx512, Level};

/// Transposes 4 x 4 dwords in each 128-bit lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_vnni<const N: usize, const D: usize, const X: usize>(
    mut sums: [__m512i; N],
    w: [__m512i; D],
    x: &[[i32; X]; N],
    at: usize,
) -> [__m512i; N] {
    for d in 0..D {
        for n in 0..N {
            sums[n] = _mm512_dpbusd_epi32(sums[n], w[d], _mm512_set1_epi32(x[n][at + d]));
        }
    }
    sums
}

/// Sums of pairs of words, as dwords.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_pairs(words: __m512i, to: __m512i) -> __m512i {
    _mm512_add_epi32(to, _mm512_madd_epi16(words, _mm512_set1_epi16(1)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn dot_unsigned<const N: usize, const D: usize, const X: usize>(
    mut sums: [__m512i; N],
    w: [__m512i; D],
    bits: u32,
    x: &[[i32; X]; N],
    at: usize,
) -> [__m512i; N] {
    let together = pairs_in_word(bits).min(D);
    let mut d = 0;
    while d < D {
        let mut words = [_mm512_setzero_si512(); N];
        for i in d..(d + together).min(D) {
            for n in 0..N {
                let products = _mm512_maddubs_epi16(w[i], _mm512_set1_epi32(x[n][at + i]));
                words[n] = if i == d { products } else { _mm512_add_epi16(words[n], products) };
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
#[target_feature(enable = "avx512f,avx512bw")]
fn dot_signed<const N: usize, const D: usize, const X: usize>(
    mut sums: [__m512i; N],
    w: [__m512i; D],
    x: &[[i32; X]; N],
    at: usize,
) -> [__m512i; N] {
    for d in 0..D {
        let (magnitude, negative) = (_mm512_abs_epi8(w[d]), _mm512_movepi8_mask(w[d]));
        for n in 0..N {
            let x = _mm512_set1_epi32(x[n][at + d]);
            let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            sums[n] = add_pairs(_mm512_maddubs_epi16(magnitude, x), sums[n]);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot_words_vnni(sum: __m512i, w: __m512i, x: i32) -> __m512i {
    _mm512_dpwssd_epi32(sum, w, _mm512_set1_epi32(x))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn dot_words(sum: __m512i, w: __m512i, x: i32) -> __m512i {
    _mm512_add_epi32(sum, _mm512_madd_epi16(w, _mm512_set1_epi32(x)))
}

/// Copies of four bits, each a byte less one bit further on: bit k then is the lowest of byte k.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread_bits(bits: __m512i) -> [__m512i; 4] {
    let four = |bits| {
        let four = _mm512_and_si512(bits, _mm512_set1_epi32(15));
        let copies = _mm512_mullo_epi32(four, _mm512_set1_epi32(0x0020_4081));
        _mm512_and_si512(copies, _mm512_set1_epi8(1))
    };
    [
        four(bits),
        four(_mm512_srli_epi32::<4>(bits)),
        four(_mm512_srli_epi32::<8>(bits)),
        four(_mm512_srli_epi32::<12>(bits)),
    ]
}

/// Four rows of 16 bytes side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn four([a, b, c, d]: [__m128i; 4]) -> __m512i {
    let v = _mm512_castsi128_si512(a);
    let v = _mm512_inserti32x4::<1>(v, b);
    let v = _mm512_inserti32x4::<2>(v, c);
    _mm512_inserti32x4::<3>(v, d)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bits(v: __m512i, shift: u32, mask: u8) -> __m512i {
    _mm512_and_si512(_mm512_srlv_epi32(v, _mm512_set1_epi32(shift as i32)), _mm512_set1_epi8(mask as i8))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn with_upper(v: __m512i, upper: __m512i, shift: u32) -> __m512i {
    _mm512_or_si512(v, _mm512_sllv_epi32(upper, _mm512_set1_epi32(shift as i32)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn minus(v: __m512i, n: u8) -> __m512i {
    _mm512_sub_epi8(v, _mm512_set1_epi8(n as i8))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn signed_byte(lanes: __m512i, i: usize) -> __m512i {
    _mm512_srai_epi32::<24>(_mm512_sllv_epi32(lanes, _mm512_set1_epi32(24 - 8 * i as i32)))
}

/// Each byte goes into the upper half of its word first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn word_pair(lanes: __m512i, pair: usize, signed: bool) -> __m512i {
    let lanes = _mm512_srlv_epi32(lanes, _mm512_set1_epi32(16 * pair as i32));
    let low = _mm512_and_si512(_mm512_slli_epi32::<8>(lanes), _mm512_set1_epi32(0xff00));
    let high = _mm512_and_si512(_mm512_slli_epi32::<16>(lanes), _mm512_set1_epi32(0xff << 24));
    let words = _mm512_or_si512(low, high);
    if signed { _mm512_srai_epi16::<8>(words) } else { _mm512_srli_epi16::<8>(words) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn table_of(table: __m128i, codes: __m512i) -> __m512i {
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
}

impl<L: Level> Avx512<L> {
    #[inline(always)]
    fn load_64(self, from: &Chunk) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F was detected; `from` is 64 readable bytes; no alignment is asked for.
        unsafe { _mm512_loadu_si512(std::ptr::from_ref(from).cast()) }
    }

    #[inline(always)]
    fn store_64(self, value: __m512i, to: &mut Chunk) {
        // SAFETY: `self` exists only where AVX-512 F was detected; `to` is 64 writable bytes, any of which are floats; no
        // alignment is asked for.
        unsafe { _mm512_storeu_si512(std::ptr::from_mut(to).cast(), value) }
    }

    #[inline(always)]
    fn load_16(self, from: &[u8; 16]) -> __m128i {
        // SAFETY: `from` is 16 readable bytes, and the load asks for no alignment.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot<const N: usize, const D: usize, const X: usize>(
        self,
        sums: [__m512i; N],
        w: [__m512i; D],
        bytes: Bytes,
        x: &[[i32; X]; N],
        at: usize,
    ) -> [__m512i; N] {
        if L::VNNI {
            // SAFETY: this `self` exists only where VNNI was detected (`Avx512::new` of its level).
            return unsafe { dot_vnni(sums, w, x, at) };
        }
        match bytes {
            // SAFETY: `self` exists only where AVX-512 F and BW were detected (`Avx512::new`).
            Bytes::Unsigned { bits } => unsafe { dot_unsigned(sums, w, bits, x, at) },
            // SAFETY: as above.
            Bytes::Signed => unsafe { dot_signed(sums, w, x, at) },
        }
    }
}

impl<L: Level> Integers for Avx512<L> {
    type Ints = __m512i;
    const SIGNED_OFFSET: u8 = if L::VNNI { 128 } else { 0 };
    const TOKENS: usize = 8;

    #[inline(always)]
    fn splat_ints(self, value: i32) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn load_ints(self, from: &Chunk, _: usize) -> __m512i {
        self.load_64(from)
    }

    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn mul_ints(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn dot_bytes<const N: usize, const D: usize>(
        self,
        sums: [__m512i; N],
        w: &[Chunk; D],
        _: usize,
        bytes: Bytes,
        x: &[[i32; 8]; N],
        at: usize,
    ) -> [__m512i; N] {
        let w: [__m512i; D] = std::array::from_fn(
            #[inline(always)]
            |d| self.load_64(&w[d]),
        );
        self.dot(sums, w, bytes, x, at)
    }

    #[inline(always)]
    fn dot_unpacked<const D: usize>(
        self,
        sum: __m512i,
        w: [__m512i; D],
        _: usize,
        bytes: Bytes,
        x: &[i32; D],
    ) -> __m512i {
        let [sum] = self.dot([sum], w, bytes, &[*x], 0);
        sum
    }

    #[inline(always)]
    fn dot_words<const N: usize>(self, mut sums: [__m512i; N], w: __m512i, x: [i32; N]) -> [__m512i; N] {
        for n in 0..N {
            sums[n] = if L::VNNI {
                // SAFETY: this `self` exists only where VNNI was detected (`Avx512::new` of its level).
                unsafe { dot_words_vnni(sums[n], w, x[n]) }
            } else {
                // SAFETY: `self` exists only where AVX-512 F and BW were detected (`Avx512::new`).
                unsafe { dot_words(sums[n], w, x[n]) }
            };
        }
        sums
    }

    #[inline(always)]
    fn signed_byte(self, lanes: __m512i, i: usize) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F and BW were detected (`Avx512::new`).
        unsafe { signed_byte(lanes, i) }
    }

    #[inline(always)]
    fn word_pair(self, lanes: __m512i, pair: usize, signed: bool) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F and BW were detected (`Avx512::new`).
        unsafe { word_pair(lanes, pair, signed) }
    }

    type Bytes = __m512i;

    #[inline(always)]
    fn interleave(self, rows: [&[u8; 16]; LANES]) -> [__m512i; 4] {
        let mut every_fourth = [self.splat_ints(0); 4];
        for i in 0..4 {
            let rows = [
                self.load_16(rows[i]),
                self.load_16(rows[4 + i]),
                self.load_16(rows[8 + i]),
                self.load_16(rows[12 + i]),
            ];
            // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
            every_fourth[i] = unsafe { four(rows) };
        }
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        unsafe { transpose(every_fourth) }
    }

    #[inline(always)]
    fn bits(self, v: __m512i, shift: u32, mask: u8) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        unsafe { bits(v, shift, mask) }
    }

    #[inline(always)]
    fn with_upper(self, v: __m512i, upper: __m512i, shift: u32) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        unsafe { with_upper(v, upper, shift) }
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], codes: __m512i) -> __m512i {
        let table = self.load_16(cast_ref(table));
        // SAFETY: `self` exists only where AVX-512 F and BW were detected (`Avx512::new`).
        unsafe { table_of(table, codes) }
    }

    #[inline(always)]
    fn minus(self, v: __m512i, n: u8) -> __m512i {
        // SAFETY: `self` exists only where AVX-512 F and BW were detected (`Avx512::new`).
        unsafe { minus(v, n) }
    }

    #[inline(always)]
    fn spread_bits(self, bits: &Chunk) -> [__m512i; 4] {
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        unsafe { spread_bits(self.load_64(bits)) }
    }

    #[inline(always)]
    fn load_bytes(self, from: &Chunk) -> __m512i {
        self.load_64(from)
    }

    #[inline(always)]
    fn store_bytes(self, v: __m512i, to: &mut Chunk) {
        self.store_64(v, to);
    }
}
