//! Blocks whose four-bit codes are numbers of a table's entries.

use super::block::{Block, IntegerBlock, u16_at, widen_integers};
use super::scale::widen_half_e8m0;
use super::sixteen::{BlockBytes, EachByte, nibbles};
use crate::BlockType;

/// The integers of [`BlockType::Iq4Nl`] and [`BlockType::Iq4Xs`] (`kvalues_iq4nl` of ggml, by the ggml authors, MIT licence).
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of the 4-bit floats (E2M1) of OCP Microscaling Formats 1.0, -0 being 0.
pub(super) const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// [`BlockType::Iq4Nl`]: d f16, q 16 x 2 halves.
#[derive(Clone, Copy)]
pub(crate) struct Iq4Nl;

impl Block for Iq4Nl {
    const TYPE: BlockType = BlockType::Iq4Nl;
    const ELEMENTS: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn widen(block: &[u8], put: impl FnMut(usize, [f32; 16])) {
        widen_integers::<Self>(block, put);
    }
}

impl IntegerBlock for Iq4Nl {
    const SUB: usize = 32;
    const BITS: u32 = 8;
    const SIGNED: bool = true;
    const TABLE: Option<&'static [i8; 16]> = Some(&IQ4);

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 0)
    }

    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        nibbles(from, 2, 0, put);
    }
}

/// [`BlockType::Iq4Xs`]: d f16, upper bits of the scales 8 x 2, lower bits 8 x 4, q 8 x 16 x 2 halves.
#[derive(Clone, Copy)]
pub(crate) struct Iq4Xs;

impl Block for Iq4Xs {
    const TYPE: BlockType = BlockType::Iq4Xs;
    const ELEMENTS: usize = 256;
    const BYTES: usize = 136;

    #[inline(always)]
    fn widen(block: &[u8], put: impl FnMut(usize, [f32; 16])) {
        widen_integers::<Self>(block, put);
    }
}

impl IntegerBlock for Iq4Xs {
    const SUB: usize = 32;
    const BITS: u32 = 8;
    const SIGNED: bool = true;
    const SCALED: bool = true;
    const TABLE: Option<&'static [i8; 16]> = Some(&IQ4);

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 0)
    }

    #[inline(always)]
    fn unpack_scales<R: BlockBytes>(
        from: &R,
        mut scale: impl FnMut(usize, R::Four),
        _: impl FnMut(usize, R::Four),
    ) {
        for i in 0..2 {
            let four = from.four(
                #[inline(always)]
                |block| {
                    let (low, high) = (u16_at(block, 4 + 2 * i), u16_at(block, 2) >> (8 * i));
                    let mut four = [0; 4];
                    for (s, to) in four.iter_mut().enumerate() {
                        *to = (low >> (4 * s) & 15 | (high >> (2 * s) & 3) << 4) as u8;
                    }
                    four
                },
            );
            scale(i, four.minus(32));
        }
    }

    #[allow(
        clippy::redundant_closure,
        reason = "a reference to a closure is not inlined, and then is no vector code"
    )]
    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, mut put: impl FnMut(usize, R::Sixteen)) {
        for s in 0..8 {
            nibbles(
                from,
                8 + 16 * s,
                2 * s,
                #[inline(always)]
                |g, codes| put(g, codes),
            );
        }
    }
}

/// [`BlockType::Mxfp4`]: e E8M0, q 16 x 2 halves. Quants are twice the floats, and the scale is half of 2ᵉ.
#[derive(Clone, Copy)]
pub(crate) struct Mxfp4;

impl Block for Mxfp4 {
    const TYPE: BlockType = BlockType::Mxfp4;
    const ELEMENTS: usize = 32;
    const BYTES: usize = 17;

    #[inline(always)]
    fn widen(block: &[u8], put: impl FnMut(usize, [f32; 16])) {
        widen_integers::<Self>(block, put);
    }
}

impl IntegerBlock for Mxfp4 {
    const SUB: usize = 32;
    const BITS: u32 = 8;
    const SIGNED: bool = true;
    const SCALE_IS_F16: bool = false;
    const TABLE: Option<&'static [i8; 16]> = Some(&E2M1);

    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16::from(block[0])
    }

    #[inline(always)]
    fn widen_scale(bits: u16) -> f32 {
        widen_half_e8m0(bits as u8)
    }

    #[inline(always)]
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen)) {
        nibbles(from, 1, 0, put);
    }
}
