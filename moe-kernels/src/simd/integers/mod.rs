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

    /// Adds to each lane of `sums[n]` the products of its two signed words in `w` with those of `x[n]`.
    fn dot_words<const N: usize>(
        self,
        sums: [Self::Ints; N],
        w: &Chunk,
        half: usize,
        x: [i32; N],
    ) -> [Self::Ints; N];

    /// Transposes four bytes at a time: lane i of `to[j]` becomes bytes 4 j to 4 j + 3 of row i.
    fn interleave(self, rows: [&[u8; 16]; LANES], to: &mut [Chunk; 4]);

    /// Replaces every byte, a number below 16, by what stands there in a table.
    fn look_up(self, table: &[i8; 16], codes: &mut Chunk);
}

/// A vector of sixteen integers.
pub(crate) fn ints_chunk(lanes: [i32; LANES]) -> Chunk {
    cast(lanes)
}

/// How many products of two pairs, each of a byte below `1 << bits` and one of -127 to 127, add up in a signed word.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for instructions that add words"))]
pub(crate) const fn pairs_in_word(bits: u32) -> usize {
    i16::MAX as usize / (2 * ((1 << bits) - 1) * 127)
}

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
            fn dot_words<const N: usize>(
                self,
                mut sums: [Self::Ints; N],
                w: &$crate::chunk::Chunk,
                half: usize,
                x: [i32; N],
            ) -> [Self::Ints; N] {
                let lanes: &[i32; 16] = bytemuck::cast_ref(w);
                let words = |v: i32| [v as i16 as i32, v >> 16];
                for n in 0..N {
                    let x = words(x[n]);
                    for (sum, w) in sums[n].iter_mut().zip(&lanes[half * $lanes..]) {
                        let w = words(*w);
                        *sum += w[0] * x[0] + w[1] * x[1];
                    }
                }
                sums
            }

            #[inline(always)]
            fn interleave(self, rows: [&[u8; 16]; 16], to: &mut [$crate::chunk::Chunk; 4]) {
                for (j, to) in to.iter_mut().enumerate() {
                    let lanes: &mut [[u8; 4]; 16] = bytemuck::cast_mut(to);
                    for (lane, row) in lanes.iter_mut().zip(rows) {
                        *lane = std::array::from_fn(|i| row[4 * j + i]);
                    }
                }
            }

            #[inline(always)]
            fn look_up(self, table: &[i8; 16], codes: &mut $crate::chunk::Chunk) {
                let codes: &mut [u8; 64] = bytemuck::cast_mut(codes);
                codes.iter_mut().for_each(|code| *code = table[usize::from(*code & 15)] as u8);
            }
        }
    };
}
#[cfg(target_arch = "aarch64")]
pub(crate) use plain_integers;

plain_integers!(super::Portable, 16);
