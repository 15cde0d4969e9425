//! About two bits a weight: points of eight magnitudes, each one of three.

use super::{even, points, put_32, signed, tables};
use crate::BlockType;
use crate::blocks::block::{Block, part, u16_at};
use crate::blocks::scale::widen_f16;

/// The magnitudes, 8 times about 1, 3 and 5.
const LEVELS: [i8; 8] = [8, 25, 43, 0, 0, 0, 0, 0];

static IQ2_XXS: [[i8; 8]; 256] = points(&tables::IQ2_XXS, LEVELS);
static IQ2_XS: [[i8; 8]; 512] = points(&tables::IQ2_XS, LEVELS);
static IQ2_S: [[i8; 8]; 1024] = points(&tables::IQ2_S, LEVELS);

/// The scale of a sub-block.
#[inline(always)]
fn scale(d: f32, s: u8) -> f32 {
    d * (0.5 + f32::from(s)) * 0.25
}

/// [`BlockType::Iq2Xxs`]: d f16, then for each 32 elements 4 points x 8 bits, 4 signs x 7 bits, scale 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Iq2Xxs;

impl Block for Iq2Xxs {
    const TYPE: BlockType = BlockType::Iq2Xxs;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 66;

    #[inline(always)]
    fn widen(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
        let d = widen_f16(u16_at(block, 0));
        for s in 0..8 {
            let numbers = part::<4>(block, 2 + 8 * s);
            let signs = u32::from_le_bytes(*part(block, 6 + 8 * s));
            let d = scale(d, (signs >> 28) as u8);
            let mut values = [0.0; 32];
            for i in 0..4 {
                let point = IQ2_XXS[usize::from(numbers[i])];
                signed(d, point, even(signs >> (7 * i)), &mut values[8 * i..]);
            }
            put_32(s, values, &mut put);
        }
    }
}

/// [`BlockType::Iq2Xs`]: d f16, 32 x (point 9 bits, signs 7 bits), scales 16 x 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Iq2Xs;

impl Block for Iq2Xs {
    const TYPE: BlockType = BlockType::Iq2Xs;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 74;

    #[inline(always)]
    fn widen(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
        let d = widen_f16(u16_at(block, 0));
        let scales = part::<8>(block, 66);
        for s in 0..8 {
            let d = [scale(d, scales[s] & 15), scale(d, scales[s] >> 4)];
            let mut values = [0.0; 32];
            for i in 0..4 {
                let code = u16_at(block, 2 + 8 * s + 2 * i);
                let point = IQ2_XS[usize::from(code % 512)];
                signed(d[i / 2], point, even(u32::from(code >> 9)), &mut values[8 * i..]);
            }
            put_32(s, values, &mut put);
        }
    }
}

/// [`BlockType::Iq2S`]: d f16, lower bits of the points 32 x 8, signs 32 x 8, upper bits 32 x 2, scales 16 x 4 bits.
#[derive(Clone, Copy)]
pub(crate) struct Iq2S;

impl Block for Iq2S {
    const TYPE: BlockType = BlockType::Iq2S;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 82;

    #[inline(always)]
    fn widen(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
        let d = widen_f16(u16_at(block, 0));
        let (low, signs) = (part::<32>(block, 2), part::<32>(block, 34));
        let (high, scales) = (part::<8>(block, 66), part::<8>(block, 74));
        for s in 0..8 {
            let d = [scale(d, scales[s] & 15), scale(d, scales[s] >> 4)];
            let mut values = [0.0; 32];
            for i in 0..4 {
                let number = usize::from(low[4 * s + i]) | usize::from(high[s] >> (2 * i) & 3) << 8;
                signed(d[i / 2], IQ2_S[number], signs[4 * s + i], &mut values[8 * i..]);
            }
            put_32(s, values, &mut put);
        }
    }
}
