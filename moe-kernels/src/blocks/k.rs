//! Blocks of 256 elements with integer scales for each 16 or 32: ggml's K types.

use super::block::{Block, IntegerBlock, u16_at, widen_integers};
use super::sixteen::{BlockBytes, EachByte, halves, quarters};
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
    fn unpack_scales<R: BlockBytes>(
        from: &R,
        mut scale: impl FnMut(usize, R::Four),
        mut minimum: impl FnMut(usize, R::Four),
    ) {
        for (i, both) in from.fours(0).into_iter().enumerate() {
            scale(i, both.bits(0, 15));
            minimum(i, both.bits(4, 15));
        }
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
    fn unpack_scales<R: BlockBytes>(
        from: &R,
        mut scale: impl FnMut(usize, R::Four),
        _: impl FnMut(usize, R::Four),
    ) {
        let [_, a, b, high] = from.fours(92);
        for (i, low) in [a.bits(0, 15), b.bits(0, 15), a.bits(4, 15), b.bits(4, 15)].into_iter().enumerate() {
            scale(i, low.with_upper(high.bits(2 * i as u32, 3), 4).minus(32));
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
    fn unpack_scales<R: BlockBytes>(
        from: &R,
        scale: impl FnMut(usize, R::Four),
        minimum: impl FnMut(usize, R::Four),
    ) {
        six_bits(from, scale, minimum);
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
    fn unpack_scales<R: BlockBytes>(
        from: &R,
        scale: impl FnMut(usize, R::Four),
        minimum: impl FnMut(usize, R::Four),
    ) {
        six_bits(from, scale, minimum);
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
    fn unpack_scales<R: BlockBytes>(
        from: &R,
        mut scale: impl FnMut(usize, R::Four),
        _: impl FnMut(usize, R::Four),
    ) {
        for (i, scales) in from.fours(192).into_iter().enumerate() {
            scale(i, scales);
        }
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

/// 8 scales and 8 minima in bytes 4 to 15. Bytes 4 to 7 are scales 0 to 3 and the upper two bits of scales 4 to 7, bytes 8 to
/// 11 the same of the minima; the low halves of bytes 12 to 15 are the lower bits of scales 4 to 7, the high halves those of the
/// minima.
#[inline(always)]
fn six_bits<R: BlockBytes>(
    from: &R,
    mut scale: impl FnMut(usize, R::Four),
    mut minimum: impl FnMut(usize, R::Four),
) {
    let [_, scales, minima, low] = from.fours(0);
    scale(0, scales.bits(0, 63));
    scale(1, low.bits(0, 15).with_upper(scales.bits(6, 3), 4));
    minimum(0, minima.bits(0, 63));
    minimum(1, low.bits(4, 15).with_upper(minima.bits(6, 3), 4));
}
