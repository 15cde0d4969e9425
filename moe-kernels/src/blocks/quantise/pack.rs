//! Layouts written: what [`IntegerBlock`] takes apart is put together.

use super::levels::{E2M1Levels, Integers, Iq4Levels, Levels};
use crate::blocks::block::IntegerBlock;
use crate::blocks::k::{Q2K, Q3K, Q4K, Q5K, Q6K};
use crate::blocks::nonlinear::{Iq4Nl, Iq4Xs, Mxfp4};
use crate::blocks::simple::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

/// The parts of a block, as the methods of [`IntegerBlock`] give them; what a layout lacks is ignored.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub(super) scale: u16,
    pub(super) minimum: u16,
    pub(super) codes: [u8; 256],
    pub(super) scales: [i8; 16],
    pub(super) minima: [u8; 16],
}

impl Parts {
    /// Of a block of zeros.
    #[inline(always)]
    pub(super) fn zeros<L: Levels>() -> Self {
        let zero = L::code(L::nearest(0.0));
        Self { scale: 0, minimum: 0, codes: [zero; 256], scales: [0; 16], minima: [0; 16] }
    }
}

/// A layout that can be written.
pub(super) trait Pack: IntegerBlock {
    /// What an element may be, as a multiple of its scale.
    type Levels: Levels;
    /// What the scale of a sub-block may be, and its minimum.
    type Scales: Levels;

    /// Writes a block. `to` is zeros.
    fn pack(parts: &Parts, to: &mut [u8]);
}

/// Of a layout whose sub-blocks have no scales.
type One = Integers<1, 1, 0>;

impl Pack for Q8_0 {
    type Levels = Integers<-128, 127, 0>;
    type Scales = One;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        to[2..34].copy_from_slice(&parts.codes[..32]);
    }
}

impl Pack for Q4_0 {
    type Levels = Integers<-8, 7, 8>;
    type Scales = One;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        put_nibbles(&parts.codes, &mut to[2..]);
    }
}

impl Pack for Q4_1 {
    type Levels = Integers<0, 15, 0>;
    type Scales = One;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        put_u16(parts.minimum ^ 0x8000, to, 2);
        put_nibbles(&parts.codes, &mut to[4..]);
    }
}

impl Pack for Q5_0 {
    type Levels = Integers<-16, 15, 16>;
    type Scales = One;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        put_fifth_bits(&parts.codes, &mut to[2..]);
        put_nibbles(&parts.codes, &mut to[6..]);
    }
}

impl Pack for Q5_1 {
    type Levels = Integers<0, 31, 0>;
    type Scales = One;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        put_u16(parts.minimum ^ 0x8000, to, 2);
        put_fifth_bits(&parts.codes, &mut to[4..]);
        put_nibbles(&parts.codes, &mut to[8..]);
    }
}

impl Pack for Q2K {
    type Levels = Integers<0, 3, 0>;
    type Scales = Integers<0, 15, 0>;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        for s in 0..16 {
            to[s] = parts.scales[s] as u8 | parts.minima[s] << 4;
        }
        put_quarters(&parts.codes, 0, &mut to[16..]);
        put_u16(parts.scale, to, 80);
        put_u16(parts.minimum, to, 82);
    }
}

impl Pack for Q3K {
    type Levels = Integers<-4, 3, 4>;
    type Scales = Integers<-32, 31, 0>;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        for i in 0..256 {
            to[i % 32] |= (parts.codes[i] >> 2 & 1) << (i / 32);
        }
        put_quarters(&parts.codes, 0, &mut to[32..]);
        for s in 0..16 {
            let scale = (parts.scales[s] + 32) as u8;
            to[96 + s % 8] |= (scale & 15) << (4 * (s / 8));
            to[104 + s % 4] |= (scale >> 4) << (2 * (s / 4));
        }
        put_u16(parts.scale, to, 108);
    }
}

impl Pack for Q4K {
    type Levels = Integers<0, 15, 0>;
    type Scales = Integers<0, 63, 0>;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        put_u16(parts.minimum, to, 2);
        put_six_bits(parts, &mut to[4..]);
        put_halves(&parts.codes, &mut to[16..]);
    }
}

impl Pack for Q5K {
    type Levels = Integers<0, 31, 0>;
    type Scales = Integers<0, 63, 0>;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        put_u16(parts.minimum, to, 2);
        put_six_bits(parts, &mut to[4..]);
        for i in 0..256 {
            to[16 + i % 32] |= (parts.codes[i] >> 4 & 1) << (i / 32);
        }
        put_halves(&parts.codes, &mut to[48..]);
    }
}

impl Pack for Q6K {
    type Levels = Integers<-32, 31, 32>;
    type Scales = Integers<-128, 127, 0>;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        for i in 0..256 {
            let s = i / 32;
            to[64 * (s / 4) + 32 * (s % 2) + i % 32] |= (parts.codes[i] & 15) << (4 * (s % 4 / 2));
        }
        put_quarters(&parts.codes, 4, &mut to[128..]);
        for s in 0..16 {
            to[192 + s] = parts.scales[s] as u8;
        }
        put_u16(parts.scale, to, 208);
    }
}

impl Pack for Iq4Nl {
    type Levels = Iq4Levels;
    type Scales = One;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        put_nibbles(&parts.codes, &mut to[2..]);
    }
}

impl Pack for Iq4Xs {
    type Levels = Iq4Levels;
    type Scales = Integers<-32, 31, 0>;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        put_u16(parts.scale, to, 0);
        let mut high = 0;
        for s in 0..8 {
            let scale = (parts.scales[s] + 32) as u8;
            to[4 + s / 2] |= (scale & 15) << (4 * (s % 2));
            high |= u16::from(scale >> 4) << (2 * s);
            put_nibbles(&parts.codes[32 * s..], &mut to[8 + 16 * s..]);
        }
        put_u16(high, to, 2);
    }
}

impl Pack for Mxfp4 {
    type Levels = E2M1Levels;
    type Scales = One;

    #[inline(always)]
    fn pack(parts: &Parts, to: &mut [u8]) {
        to[0] = parts.scale as u8;
        put_nibbles(&parts.codes, &mut to[1..]);
    }
}

#[inline(always)]
fn put_u16(bits: u16, to: &mut [u8], at: usize) {
    to[at..at + 2].copy_from_slice(&bits.to_le_bytes());
}

/// The lower four bits of 32 codes.
#[inline(always)]
fn put_nibbles(codes: &[u8], to: &mut [u8]) {
    for i in 0..16 {
        to[i] = codes[i] & 15 | codes[i + 16] << 4;
    }
}

/// The fifth bits of 32 codes.
#[inline(always)]
fn put_fifth_bits(codes: &[u8], to: &mut [u8]) {
    for i in 0..32 {
        to[i / 8] |= (codes[i] >> 4 & 1) << (i % 8);
    }
}

/// The lower four bits of 256 codes.
#[inline(always)]
fn put_halves(codes: &[u8; 256], to: &mut [u8]) {
    for i in 0..256 {
        to[i / 64 * 32 + i % 32] |= (codes[i] & 15) << (i / 32 % 2 * 4);
    }
}

/// Two bits of 256 codes, from bit `from` on.
#[inline(always)]
fn put_quarters(codes: &[u8; 256], from: usize, to: &mut [u8]) {
    for i in 0..256 {
        to[i / 128 * 32 + i % 32] |= (codes[i] >> from & 3) << (i / 32 % 4 * 2);
    }
}

/// Scales and minima of Q4_K and Q5_K.
#[inline(always)]
fn put_six_bits(parts: &Parts, to: &mut [u8]) {
    for i in 0..4 {
        let (scale, minimum) = (parts.scales[4 + i] as u8, parts.minima[4 + i]);
        to[i] = parts.scales[i] as u8 | scale >> 4 << 6;
        to[4 + i] = parts.minima[i] | minimum >> 4 << 6;
        to[8 + i] = scale & 15 | minimum << 4;
    }
}
