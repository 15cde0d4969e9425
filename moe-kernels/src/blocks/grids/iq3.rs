//! About three bits a weight: points of four magnitudes, each one of eight.

use super::{even, points, put_32, signed, tables};
use crate::BlockType;
use crate::blocks::block::{Block, part, u16_at};
use crate::blocks::scale::widen_f16;

static IQ3_XXS: [[i8; 4]; 256] = points(&tables::IQ3_XXS, [4, 12, 20, 28, 36, 44, 52, 62]);
static IQ3_S: [[i8; 4]; 512] = points(&tables::IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);

/// The magnitudes of two points.
#[inline(always)]
fn two(first: [i8; 4], second: [i8; 4]) -> [i8; 8] {
    let mut both = [0; 8];
    both[..4].copy_from_slice(&first);
    both[4..].copy_from_slice(&second);
    both
}

/// [`BlockType::Iq3Xxs`]: d f16, points 64 x 8 bits, then for each 32 elements 4 signs x 7 bits, scale 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Iq3Xxs;

impl Block for Iq3Xxs {
    const TYPE: BlockType = BlockType::Iq3Xxs;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 98;

    #[inline(always)]
    fn widen(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
        let d = widen_f16(u16_at(block, 0));
        let numbers = part::<64>(block, 2);
        for s in 0..8 {
            let signs = u32::from_le_bytes(*part(block, 66 + 4 * s));
            let d = d * (0.5 + (signs >> 28) as f32) * 0.5;
            let mut values = [0.0; 32];
            for i in 0..4 {
                let point = |n: usize| IQ3_XXS[usize::from(numbers[8 * s + 2 * i + n])];
                signed(d, two(point(0), point(1)), even(signs >> (7 * i)), &mut values[8 * i..]);
            }
            put_32(s, values, &mut put);
        }
    }
}

/// [`BlockType::Iq3S`]: d f16, lower bits of the points 64 x 8, upper bits 64 x 1, signs 32 x 8, scales 8 x 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Iq3S;

impl Block for Iq3S {
    const TYPE: BlockType = BlockType::Iq3S;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn widen(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
        let d = widen_f16(u16_at(block, 0));
        let (low, high) = (part::<64>(block, 2), part::<8>(block, 66));
        let (signs, scales) = (part::<32>(block, 74), part::<4>(block, 106));
        for s in 0..8 {
            let d = d * f32::from(1 + 2 * (scales[s / 2] >> (4 * (s % 2)) & 15));
            let mut values = [0.0; 32];
            for i in 0..4 {
                let point = |n: usize| {
                    let number = usize::from(low[8 * s + n]) | usize::from(high[s] >> n & 1) << 8;
                    IQ3_S[number]
                };
                signed(d, two(point(2 * i), point(2 * i + 1)), signs[4 * s + i], &mut values[8 * i..]);
            }
            put_32(s, values, &mut put);
        }
    }
}
