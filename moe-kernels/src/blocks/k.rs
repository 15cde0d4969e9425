//! Blocks of 256 elements with integer scales for each 16 or 32: ggml's K types.

use super::block::{Block, IntegerBlock, part, places, u16_at, widen_integers};
use crate::BlockType;

/// A block of 256 elements: its name, its bytes, elements of a sub-block, and what else its [`IntegerBlock`] says.
macro_rules! k {
    ($name:ident, $bytes:literal, $sub:literal, $($rest:tt)*) => {
        #[doc = concat!("[`BlockType::", stringify!($name), "`].")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Block for $name {
            const TYPE: BlockType = BlockType::$name;
            const ELEMENTS: usize = 256;
            const BYTES: usize = $bytes;

            #[inline(always)]
            fn widen(block: &[u8], put: impl FnMut(usize, [f32; 16])) {
                widen_integers::<Self>(block, put);
            }
        }

        impl IntegerBlock for $name {
            const SUB: usize = $sub;
            const SCALED: bool = true;
            $($rest)*
        }
    };
}

k! {
    // scale and minimum 16 x 2 halves, q 64 x 4 quarters, d f16, m f16
    Q2K, 84, 16,
    const BITS: u32 = 2;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 80)
    }

    #[inline(always)]
    fn minimum_bits(block: &[u8]) -> u16 {
        u16_at(block, 82)
    }

    #[inline(always)]
    fn scales(block: &[u8], to: &mut [i8]) {
        let packed = part::<16>(block, 0);
        to.iter_mut().zip(packed).for_each(|(to, b)| *to = (b & 15) as i8);
    }

    #[inline(always)]
    fn minima(block: &[u8], to: &mut [u8]) {
        let packed = part::<16>(block, 0);
        to.iter_mut().zip(packed).for_each(|(to, b)| *to = b >> 4);
    }

    #[inline(always)]
    fn codes(block: &[u8], to: &mut [u8]) {
        quarters(part(block, 16), places(to), |low, _, _| low);
    }
}

k! {
    // third bits 8 x 32, q 64 x 4 quarters, scales 16 x 6 bits, d f16
    Q3K, 110, 16,
    const BITS: u32 = 3;
    const ZERO: i32 = 4;

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 108)
    }

    #[inline(always)]
    fn scales(block: &[u8], to: &mut [i8]) {
        let packed = part::<12>(block, 96);
        for (s, to) in to.iter_mut().enumerate() {
            let low = packed[s % 8] >> (4 * (s / 8)) & 15;
            let high = packed[8 + s % 4] >> (2 * (s / 4)) & 3;
            *to = (low | high << 4) as i8 - 32;
        }
    }

    #[inline(always)]
    fn codes(block: &[u8], to: &mut [u8]) {
        let third = part::<32>(block, 0);
        quarters(part(block, 32), places(to), |low, s, i| low | (third[i] >> s & 1) << 2);
    }
}

k! {
    // d f16, m f16, scales and minima 8 x 2 x 6 bits, q 128 x 2 halves
    Q4K, 144, 32,
    const BITS: u32 = 4;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 0)
    }

    #[inline(always)]
    fn minimum_bits(block: &[u8]) -> u16 {
        u16_at(block, 2)
    }

    #[inline(always)]
    fn scales(block: &[u8], to: &mut [i8]) {
        six_bit_scales(part(block, 4), to);
    }

    #[inline(always)]
    fn minima(block: &[u8], to: &mut [u8]) {
        six_bit_minima(part(block, 4), to);
    }

    #[inline(always)]
    fn codes(block: &[u8], to: &mut [u8]) {
        halves(part(block, 16), places(to), |low, _, _| low);
    }
}

k! {
    // d f16, m f16, scales and minima 8 x 2 x 6 bits, fifth bits 8 x 32, q 128 x 2 halves
    Q5K, 176, 32,
    const BITS: u32 = 5;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 0)
    }

    #[inline(always)]
    fn minimum_bits(block: &[u8]) -> u16 {
        u16_at(block, 2)
    }

    #[inline(always)]
    fn scales(block: &[u8], to: &mut [i8]) {
        six_bit_scales(part(block, 4), to);
    }

    #[inline(always)]
    fn minima(block: &[u8], to: &mut [u8]) {
        six_bit_minima(part(block, 4), to);
    }

    #[inline(always)]
    fn codes(block: &[u8], to: &mut [u8]) {
        let fifth = part::<32>(block, 16);
        halves(part(block, 48), places(to), |low, s, i| low | (fifth[i] >> s & 1) << 4);
    }
}

k! {
    // low bits 128 x 2 halves, high bits 64 x 4 quarters, scales 16 x i8, d f16
    Q6K, 210, 16,
    const BITS: u32 = 6;
    const ZERO: i32 = 32;

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 208)
    }

    #[inline(always)]
    fn scales(block: &[u8], to: &mut [i8]) {
        let packed = part::<16>(block, 192);
        to.iter_mut().zip(packed).for_each(|(to, b)| *to = *b as i8);
    }

    #[inline(always)]
    fn codes(block: &[u8], to: &mut [u8]) {
        let low = part::<128>(block, 0);
        // Of each 128 elements the first 64 are low halves.
        quarters(part(block, 128), places(to), |high, s, i| {
            low[64 * (s / 4) + 32 * (s % 2) + i] >> (4 * (s % 4 / 2)) & 15 | high << 4
        });
    }
}

/// Two bits of 256 elements in 64 bytes: bits 2 j and 2 j + 1 of bytes 0 to 31 are elements 32 j to 32 j + 31, those of the
/// other bytes 128 more. An element becomes what `code` makes of its bits, of the 32 it is in, and its place there.
#[inline(always)]
fn quarters(from: &[u8; 64], to: &mut [u8; 256], code: impl Fn(u8, usize, usize) -> u8) {
    for s in 0..8 {
        for i in 0..32 {
            to[32 * s + i] = code(from[32 * (s / 4) + i] >> (2 * (s % 4)) & 3, s, i);
        }
    }
}

/// Four bits of 256 elements in 128 bytes: 64 after 64, the low halves of 32 bytes before the high ones. An element becomes
/// what `code` makes of its bits, of the 32 it is in, and its place there.
#[inline(always)]
fn halves(from: &[u8; 128], to: &mut [u8; 256], code: impl Fn(u8, usize, usize) -> u8) {
    for s in 0..8 {
        for i in 0..32 {
            to[32 * s + i] = code(from[32 * (s / 2) + i] >> (4 * (s % 2)) & 15, s, i);
        }
    }
}

/// The scales among 8 scales and 8 minima in 12 bytes. Bytes 0 to 3 are scales 0 to 3 and the upper two bits of scales 4
/// to 7, bytes 4 to 7 the same of the minima; the low halves of bytes 8 to 11 are the lower bits of scales 4 to 7, the high
/// halves those of the minima.
#[inline(always)]
fn six_bit_scales(packed: &[u8; 12], to: &mut [i8]) {
    let (first, last) = to.split_at_mut(4);
    for i in 0..4 {
        first[i] = (packed[i] & 63) as i8;
        last[i] = (packed[8 + i] & 15 | packed[i] >> 6 << 4) as i8;
    }
}

/// The minima of [`six_bit_scales`]' bytes.
#[inline(always)]
fn six_bit_minima(packed: &[u8; 12], to: &mut [u8]) {
    let (first, last) = to.split_at_mut(4);
    for i in 0..4 {
        first[i] = packed[4 + i] & 63;
        last[i] = packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4;
    }
}
