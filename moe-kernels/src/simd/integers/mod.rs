//! Products of small integers in 32-bit lanes: what an instruction set adds to [`Simd`](super::Simd) for them.
//!
//! A lane is a row of weights. Sums of integers are exact, so instruction sets differ in how they come about and not in what
//! they are.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use bytemuck::cast;
use moe_core::numerics::LANES;

use crate::chunk::Chunk;

/// What weights' bytes are, of which four make a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// Unsigned, less than two to so many bits, at most 6.
    Unsigned {
        /// The number of bits.
        bits: u32,
    },
    /// Any signed byte, plus [`Integers::SIGNED_OFFSET`].
    Signed,
}

/// Operations on integers in 32-bit lanes, a [half](super::Simd::HALVES) at a time. None overflows on what kernels give it.
pub(crate) trait Integers: Copy {
    /// A half's lanes.
    type Ints: Copy;

    /// What is added to signed bytes of weights, whose products then are those of unsigned ones: 128 where instructions want
    /// one factor unsigned, otherwise 0.
    const SIGNED_OFFSET: u8;

    /// Tokens whose sums registers hold at a time.
    const TOKENS: usize;

    fn splat_ints(self, value: i32) -> Self::Ints;
    /// Half `half` of sixteen integers.
    fn load_ints(self, from: &Chunk, half: usize) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    /// Adds to each lane of `sums[n]` the products of its bytes in `w`, four in each of D vectors, with the signed bytes of
    /// D dwords of `x[n]` from dword `at` on, the same for all lanes.
    fn dot_bytes<const N: usize, const D: usize>(
        self,
        sums: [Self::Ints; N],
        w: &[Chunk; D],
        half: usize,
        bytes: Bytes,
        x: &[[i32; 8]; N],
        at: usize,
    ) -> [Self::Ints; N];

    /// The same for one row of x and weights in registers.
    fn dot_unpacked<const D: usize>(
        self,
        sum: Self::Ints,
        w: [Self::Bytes; D],
        half: usize,
        bytes: Bytes,
        x: &[i32; D],
    ) -> Self::Ints;

    /// Adds to each lane of `sums[n]` the products of its two signed words in `w` with those of `x[n]`.
    fn dot_words<const N: usize>(self, sums: [Self::Ints; N], w: Self::Ints, x: [i32; N]) -> [Self::Ints; N];

    /// Byte `i` of each lane, signed.
    fn signed_byte(self, lanes: Self::Ints, i: usize) -> Self::Ints;
    /// Bytes `2 pair` and `2 pair + 1` of each lane as words, the first one lower.
    fn word_pair(self, lanes: Self::Ints, pair: usize, signed: bool) -> Self::Ints;

    /// The 64 bytes of sixteen lanes.
    type Bytes: Copy;

    /// Transposes four bytes at a time: lane i of result j is bytes 4 j to 4 j + 3 of row i.
    fn interleave(self, rows: [&[u8; 16]; LANES]) -> [Self::Bytes; 4];
    /// `(v >> shift) & mask` of each byte; the mask has only bits that a byte has after the shift.
    fn bits(self, v: Self::Bytes, shift: u32, mask: u8) -> Self::Bytes;
    /// `v | upper << shift` of each byte; what is shifted stays within its byte.
    fn with_upper(self, v: Self::Bytes, upper: Self::Bytes, shift: u32) -> Self::Bytes;
    /// What stands in a table at the place that each byte, a number below 16, says.
    fn look_up(self, table: &[i8; 16], codes: Self::Bytes) -> Self::Bytes;
    /// `v - n` of each byte, modulo 256.
    fn minus(self, v: Self::Bytes, n: u8) -> Self::Bytes;
    /// The lower sixteen bits of each integer as bytes of 0 and 1, four in each vector, the lowest first.
    fn spread_bits(self, bits: &Chunk) -> [Self::Bytes; 4];
    fn load_bytes(self, from: &Chunk) -> Self::Bytes;
    fn store_bytes(self, v: Self::Bytes, to: &mut Chunk);
}

/// A vector of sixteen integers.
pub(crate) fn ints_chunk(lanes: [i32; LANES]) -> Chunk {
    cast(lanes)
}

/// How many products of two pairs, each of a byte below `1 << bits` and one of -127 to 127, add up in a signed word. With six bits
/// two pairs are at most 2 · 63 · 127 = 16,002, and two of those still fit; with five bits four of 7,874 do, with four eight of
/// 3,810.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for instructions that add words"))]
pub(crate) const fn pairs_in_word(bits: u32) -> usize {
    i16::MAX as usize / (2 * ((1 << bits) - 1) * 127)
}

const _: () = assert!(pairs_in_word(6) == 2 && pairs_in_word(5) == 4 && pairs_in_word(4) == 8);

/// The definition, for instruction sets without instructions of their own, whose half is all sixteen lanes or eight of them.
macro_rules! plain_integers {
    ($isa:ty, $lanes:literal) => {
        impl $crate::simd::integers::Integers for $isa {
            type Ints = [i32; $lanes];
            const SIGNED_OFFSET: u8 = 0;
            const TOKENS: usize = 4;

            #[inline(always)]
            fn splat_ints(self, value: i32) -> Self::Ints {
                [value; $lanes]
            }

            #[inline(always)]
            fn load_ints(self, from: &$crate::chunk::Chunk, half: usize) -> Self::Ints {
                let lanes: &[i32; 16] = bytemuck::cast_ref(from);
                std::array::from_fn(|i| lanes[half * $lanes + i])
            }

            #[inline(always)]
            fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
                std::array::from_fn(|i| a[i] + b[i])
            }

            #[inline(always)]
            fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
                std::array::from_fn(|i| a[i] * b[i])
            }

            #[inline(always)]
            fn dot_bytes<const N: usize, const D: usize>(
                self,
                mut sums: [Self::Ints; N],
                w: &[$crate::chunk::Chunk; D],
                half: usize,
                bytes: $crate::simd::integers::Bytes,
                x: &[[i32; 8]; N],
                at: usize,
            ) -> [Self::Ints; N] {
                for (d, w) in w.iter().enumerate() {
                    let w = &bytemuck::cast_ref::<$crate::chunk::Chunk, [[u8; 4]; 16]>(w)[half * $lanes..]
                        [..$lanes];
                    for n in 0..N {
                        let x = x[n][at + d].to_ne_bytes();
                        for (sum, w) in sums[n].iter_mut().zip(w) {
                            for i in 0..4 {
                                let w = match bytes {
                                    $crate::simd::integers::Bytes::Signed => i32::from(w[i] as i8),
                                    $crate::simd::integers::Bytes::Unsigned { .. } => i32::from(w[i]),
                                };
                                *sum += w * i32::from(x[i] as i8);
                            }
                        }
                    }
                }
                sums
            }

            #[inline(always)]
            fn dot_unpacked<const D: usize>(
                self,
                mut sum: Self::Ints,
                w: [[u8; 64]; D],
                half: usize,
                bytes: $crate::simd::integers::Bytes,
                x: &[i32; D],
            ) -> Self::Ints {
                for (w, x) in w.iter().zip(x) {
                    let x = x.to_ne_bytes();
                    for (sum, w) in sum.iter_mut().zip(w[4 * half * $lanes..].chunks_exact(4)) {
                        for i in 0..4 {
                            let w = match bytes {
                                $crate::simd::integers::Bytes::Signed => i32::from(w[i] as i8),
                                $crate::simd::integers::Bytes::Unsigned { .. } => i32::from(w[i]),
                            };
                            *sum += w * i32::from(x[i] as i8);
                        }
                    }
                }
                sum
            }

            #[inline(always)]
            fn dot_words<const N: usize>(
                self,
                mut sums: [Self::Ints; N],
                w: Self::Ints,
                x: [i32; N],
            ) -> [Self::Ints; N] {
                let words = |v: i32| [v as i16 as i32, v >> 16];
                for n in 0..N {
                    let x = words(x[n]);
                    for (sum, w) in sums[n].iter_mut().zip(w) {
                        let w = words(w);
                        *sum += w[0] * x[0] + w[1] * x[1];
                    }
                }
                sums
            }

            #[inline(always)]
            fn signed_byte(self, lanes: Self::Ints, i: usize) -> Self::Ints {
                lanes.map(|lane| i32::from(lane.to_ne_bytes()[i] as i8))
            }

            #[inline(always)]
            fn word_pair(self, lanes: Self::Ints, pair: usize, signed: bool) -> Self::Ints {
                lanes.map(|lane| {
                    let bytes = lane.to_ne_bytes();
                    let word = |i: usize| match signed {
                        true => i32::from(bytes[2 * pair + i] as i8),
                        false => i32::from(bytes[2 * pair + i]),
                    };
                    word(0) & 0xffff | word(1) << 16
                })
            }

            type Bytes = [u8; 64];

            #[inline(always)]
            fn interleave(self, rows: [&[u8; 16]; 16]) -> [[u8; 64]; 4] {
                let mut to = [[0; 64]; 4];
                for (j, to) in to.iter_mut().enumerate() {
                    for (lane, row) in to.chunks_exact_mut(4).zip(rows) {
                        lane.copy_from_slice(&row[4 * j..4 * j + 4]);
                    }
                }
                to
            }

            #[inline(always)]
            fn bits(self, v: [u8; 64], shift: u32, mask: u8) -> [u8; 64] {
                std::array::from_fn(|i| v[i] >> shift & mask)
            }

            #[inline(always)]
            fn with_upper(self, v: [u8; 64], upper: [u8; 64], shift: u32) -> [u8; 64] {
                std::array::from_fn(|i| v[i] | upper[i] << shift)
            }

            #[inline(always)]
            fn look_up(self, table: &[i8; 16], codes: [u8; 64]) -> [u8; 64] {
                std::array::from_fn(|i| table[usize::from(codes[i] & 15)] as u8)
            }

            #[inline(always)]
            fn minus(self, v: [u8; 64], n: u8) -> [u8; 64] {
                std::array::from_fn(|i| v[i].wrapping_sub(n))
            }

            #[inline(always)]
            fn spread_bits(self, bits: &$crate::chunk::Chunk) -> [[u8; 64]; 4] {
                let bits: &[i32; 16] = bytemuck::cast_ref(bits);
                let bit = |i: usize, j: usize| (bits[i] >> j) as u8 & 1;
                std::array::from_fn(|j| std::array::from_fn(|i| bit(i / 4, 4 * j + i % 4)))
            }

            #[inline(always)]
            fn load_bytes(self, from: &$crate::chunk::Chunk) -> [u8; 64] {
                bytemuck::cast(*from)
            }

            #[inline(always)]
            fn store_bytes(self, v: [u8; 64], to: &mut $crate::chunk::Chunk) {
                *to = bytemuck::cast(v);
            }
        }
    };
}
#[cfg(target_arch = "aarch64")]
pub(crate) use plain_integers;

plain_integers!(super::Portable, 16);
