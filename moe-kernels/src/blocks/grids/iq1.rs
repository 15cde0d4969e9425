//! Less than two bits a weight: points of eight of -1, 0 and 1, all moved by an eighth up or down.

use super::{points, put_32, tables};
use crate::BlockType;
use crate::blocks::block::{Block, part, u16_at};
use crate::blocks::scale::widen_f16;

static IQ1: [[i8; 8]; 2048] = points(&tables::IQ1_S, [-1, 0, 1, 0, 0, 0, 0, 0]);

/// Widens eight elements: `d` times the point's, moved down by an eighth where `down`.
#[inline(always)]
fn moved(d: f32, point: [i8; 8], down: bool, to: &mut [f32]) {
    let shift = if down { -0.125 } else { 0.125 };
    for i in 0..8 {
        to[i] = d * (f32::from(point[i]) + shift);
    }
}

/// [`BlockType::Iq1S`]: d f16, lower bits of the points 32 x 8, then for each 32 elements upper bits 4 x 3, scale 3 bits,
/// 1 bit for down.
#[derive(Clone, Copy)]
pub(crate) struct Iq1S;

impl Block for Iq1S {
    const TYPE: BlockType = BlockType::Iq1S;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 50;

    #[inline(always)]
    fn widen(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
        let d = widen_f16(u16_at(block, 0));
        let low = part::<32>(block, 2);
        for s in 0..8 {
            let high = u16_at(block, 34 + 2 * s);
            let d = d * f32::from(2 * (high >> 12 & 7) + 1);
            let mut values = [0.0; 32];
            for i in 0..4 {
                let number = usize::from(low[4 * s + i]) | usize::from(high >> (3 * i) & 7) << 8;
                moved(d, IQ1[number], high >> 15 != 0, &mut values[8 * i..]);
            }
            put_32(s, values, &mut put);
        }
    }
}

/// [`BlockType::Iq1M`]: lower bits of the points 32 x 8, then upper bits and down 32 x (3 + 1), scales 4 x (4 x 3 bits, 4 of
/// the f16 d).
#[derive(Clone, Copy)]
pub(crate) struct Iq1M;

impl Block for Iq1M {
    const TYPE: BlockType = BlockType::Iq1M;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 56;

    #[inline(always)]
    fn widen(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
        let (low, high) = (part::<32>(block, 0), part::<16>(block, 32));
        let scales: [u16; 4] = [0, 1, 2, 3].map(|i| u16_at(block, 48 + 2 * i));
        let d =
            widen_f16(scales[0] >> 12 | scales[1] >> 12 << 4 | scales[2] >> 12 << 8 | scales[3] >> 12 << 12);
        for s in 0..8 {
            let scale = |n: usize| scales[s / 2] >> (6 * (s % 2) + 3 * n) & 7;
            let d = [d * f32::from(2 * scale(0) + 1), d * f32::from(2 * scale(1) + 1)];
            let mut values = [0.0; 32];
            for i in 0..4 {
                let high = high[2 * s + i / 2] >> (4 * (i % 2));
                let number = usize::from(low[4 * s + i]) | usize::from(high & 7) << 8;
                moved(d[i / 2], IQ1[number], high & 8 != 0, &mut values[8 * i..]);
            }
            put_32(s, values, &mut put);
        }
    }
}
