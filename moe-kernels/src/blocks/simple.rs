//! Blocks of 32 elements with one scale.

use super::block::{Block, IntegerBlock, u16_at, widen_integers};
use super::sixteen::{BlockBytes, EachByte, nibbles};
use crate::BlockType;

/// A block of 32 elements: its name, its bytes, and what else its [`IntegerBlock`] says.
macro_rules! simple {
    ($name:ident, $bytes:literal, $($rest:tt)*) => {
        #[doc = concat!("[`BlockType::", stringify!($name), "`].")]
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Block for $name {
            const TYPE: BlockType = BlockType::$name;
            const ELEMENTS: usize = 32;
            const BYTES: usize = $bytes;

            #[inline(always)]
            fn widen(block: &[u8], put: impl FnMut(usize, [f32; 16])) {
                widen_integers::<Self>(block, put);
            }
        }

        impl IntegerBlock for $name {
            const SUB: usize = 32;
            $($rest)*

            #[inline(always)]
            fn scale_bits(block: &[u8]) -> u16 {
                u16_at(block, 0)
            }
        }
    };
}

simple! {
    // d f16, q 32 x i8
    Q8_0, 34,
    const BITS: u32 = 8;
    const SIGNED: bool = true;

    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, mut put: impl FnMut(usize, R::Sixteen)) {
        put(0, from.sixteen(2));
        put(1, from.sixteen(18));
    }
}

simple! {
    // d f16, q 16 x 2 halves
    Q4_0, 18,
    const BITS: u32 = 4;
    const ZERO: i32 = 8;

    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        nibbles(from, 2, 0, put);
    }
}

simple! {
    // d f16, m f16, q 16 x 2 halves
    Q4_1, 20,
    const BITS: u32 = 4;
    const MINIMA: bool = true;

    #[inline(always)]
    fn minimum_bits(block: &[u8]) -> u16 {
        u16_at(block, 2) ^ 0x8000
    }

    #[inline(always)]
    fn minima(_block: &[u8], to: &mut [u8]) {
        to.fill(1);
    }

    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        nibbles(from, 4, 0, put);
    }
}

simple! {
    // d f16, fifth bits 32, q 16 x 2 halves
    Q5_0, 22,
    const BITS: u32 = 5;
    const ZERO: i32 = 16;

    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        five_bits(from, 2, 6, put);
    }
}

simple! {
    // d f16, m f16, fifth bits 32, q 16 x 2 halves
    Q5_1, 24,
    const BITS: u32 = 5;
    const MINIMA: bool = true;

    #[inline(always)]
    fn minimum_bits(block: &[u8]) -> u16 {
        u16_at(block, 2) ^ 0x8000
    }

    #[inline(always)]
    fn minima(_block: &[u8], to: &mut [u8]) {
        to.fill(1);
    }

    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        five_bits(from, 4, 8, put);
    }
}

/// Five-bit codes: four bits of each from `low` on as in [`nibbles`], and bit i of the four bytes from `fifth` on for element
/// i.
#[inline(always)]
fn five_bits<R: BlockBytes>(from: &R, fifth: usize, low: usize, mut put: impl FnMut(usize, R::Sixteen)) {
    nibbles(
        from,
        low,
        0,
        #[inline(always)]
        |g, four| put(g, four.with_upper(from.sixteen_bits(fifth + 2 * g), 4)),
    );
}
