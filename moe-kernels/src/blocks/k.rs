//! Blocks of 256 elements with integer scales for each 16 or 32: ggml's K types.

use super::block::{Block, IntegerBlock, part, u16_at, widen_integers};
use super::sixteen::{BlockBytes, Sixteen, halves, quarters};
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
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        quarters(
            from,
            16,
            #[inline(always)]
            |low, _, _| low,
            put,
        );
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
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        let third = [from.sixteen(0), from.sixteen(16)];
        quarters(
            from,
            32,
            #[inline(always)]
            |low, s, half| low.with_upper(third[half].bits(s, 1), 2),
            put,
        );
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
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        halves(
            from,
            16,
            #[inline(always)]
            |low, _, _| low,
            put,
        );
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
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        let fifth = [from.sixteen(16), from.sixteen(32)];
        halves(
            from,
            48,
            #[inline(always)]
            |low, s, half| low.with_upper(fifth[half].bits(s, 1), 4),
            put,
        );
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
    fn unpack<R: BlockBytes>(from: &R, mut put: impl FnMut(usize, R::Sixteen)) {
        // Of each 128 elements the first 64 are low halves of 64 bytes.
        for four in 0..2 {
            for half in 0..2 {
                let high = from.sixteen(128 + 32 * four + 16 * half);
                for i in 0..2 {
                    let low = from.sixteen(64 * four + 32 * i + 16 * half);
                    for j in 0..2 {
                        let s = 2 * j + i;
                        let upper = high.bits(2 * s as u32, 3);
                        put(2 * (4 * four + s) + half, low.bits(4 * j as u32, 15).with_upper(upper, 4));
                    }
                }
            }
        }
    }
}

/// The scales among 8 scales and 8 minima in 12 bytes. Bytes 0 to 3 are scales 0 to 3 and the upper two bits of scales 4
/// to 7, bytes 4 to 7 the same of the minima; the low halves of bytes 8 to 11 are the lower bits of scales 4 to 7, the high
/// halves those of the minima.
#[inline(always)]
fn six_bit_scales(packed: &[u8; 12], to: &mut [i8]) {
    let [a, _, c] = dwords(packed);
    let scales = [a & SIX, c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4];
    to.iter_mut().zip(scales.map(u32::to_le_bytes).as_flattened()).for_each(|(to, s)| *to = *s as i8);
}

/// The minima of [`six_bit_scales`]' bytes.
#[inline(always)]
fn six_bit_minima(packed: &[u8; 12], to: &mut [u8]) {
    let [_, b, c] = dwords(packed);
    let minima = [b & SIX, c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4];
    to.copy_from_slice(minima.map(u32::to_le_bytes).as_flattened());
}

/// The lower six bits of each byte of a dword.
const SIX: u32 = 0x3f3f_3f3f;

#[inline(always)]
fn dwords(packed: &[u8; 12]) -> [u32; 3] {
    let (four, _) = packed.as_chunks();
    [u32::from_le_bytes(four[0]), u32::from_le_bytes(four[1]), u32::from_le_bytes(four[2])]
}
