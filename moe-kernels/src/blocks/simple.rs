//! Blocks of 32 elements with one scale.

use super::block::{Block, IntegerBlock, nibbles, part, places, u16_at, widen_integers};
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
    fn codes(block: &[u8], to: &mut [u8]) {
        *places(to) = *part::<32>(block, 2);
    }
}

simple! {
    // d f16, q 16 x 2 halves
    Q4_0, 18,
    const BITS: u32 = 4;
    const ZERO: i32 = 8;

    #[inline(always)]
    fn codes(block: &[u8], to: &mut [u8]) {
        nibbles(part(block, 2), places(to));
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
    fn codes(block: &[u8], to: &mut [u8]) {
        nibbles(part(block, 4), places(to));
    }
}

simple! {
    // d f16, fifth bits 32, q 16 x 2 halves
    Q5_0, 22,
    const BITS: u32 = 5;
    const ZERO: i32 = 16;

    #[inline(always)]
    fn codes(block: &[u8], to: &mut [u8]) {
        five_bits(part(block, 2), part(block, 6), places(to));
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
    fn codes(block: &[u8], to: &mut [u8]) {
        five_bits(part(block, 4), part(block, 8), places(to));
    }
}

/// Five-bit codes: four of each as in [`nibbles`], and bit i of `fifth` for element i.
#[inline(always)]
fn five_bits(fifth: &[u8; 4], low: &[u8; 16], to: &mut [u8; 32]) {
    nibbles(low, to);
    for i in 0..32 {
        to[i] |= if fifth[i / 8] & 1 << (i % 8) != 0 { 16 } else { 0 };
    }
}
