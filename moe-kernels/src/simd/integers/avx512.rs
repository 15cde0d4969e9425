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
fn dot_vnni<const N: usize, const D: usize>(
    mut sums: [__m512i; N],
    w: [__m512i; D],
    x: &[[i32; 8]; N],
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
fn dot_unsigned<const N: usize, const D: usize>(
    mut sums: [__m512i; N],
    w: [__m512i; D],
    bits: u32,
    x: &[[i32; 8]; N],
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
fn dot_signed<const N: usize, const D: usize>(
    mut sums: [__m512i; N],
    w: [__m512i; D],
    x: &[[i32; 8]; N],
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

    #[inline(always)]
    fn dot_words<const N: usize>(
        self,
        mut sums: [__m512i; N],
        w: &Chunk,
        _: usize,
        x: [i32; N],
    ) -> [__m512i; N] {
        let w = self.load_64(w);
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
    fn interleave(self, rows: [&[u8; 16]; LANES], to: &mut [Chunk; 4]) {
        let every_fourth = std::array::from_fn(
            #[inline(always)]
            |i| {
                let rows = [rows[i], rows[4 + i], rows[8 + i], rows[12 + i]].map(
                    #[inline(always)]
                    |row| self.load_16(row),
                );
                // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
                unsafe { four(rows) }
            },
        );
        // SAFETY: `self` exists only where AVX-512 F was detected (`Avx512::new`).
        let columns = unsafe { transpose(every_fourth) };
        for (to, column) in to.iter_mut().zip(columns) {
            self.store_64(column, to);
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], codes: &mut Chunk) {
        let table = self.load_16(cast_ref(table));
        // SAFETY: `self` exists only where AVX-512 F and BW were detected (`Avx512::new`).
        let values = unsafe { table_of(table, self.load_64(codes)) };
        self.store_64(values, codes);
    }
}
