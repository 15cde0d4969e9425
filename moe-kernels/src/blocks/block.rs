//! What kernels know of a layout.

use super::scale::widen_f16;
use super::sixteen::{BlockBytes, OneBlock};
use crate::BlockType;

/// A layout as a type.
///
/// Methods are inlined into the kernels that use them, and are written so that they become that kernel's vector
/// instructions. They panic if given fewer bytes than a block has.
pub(crate) trait Block: Copy + Send + Sync + 'static {
    /// The type's name in the table.
    #[allow(dead_code, reason = "a fact of the layout")]
    const TYPE: BlockType;
    /// Elements of a block, a multiple of 16.
    const ELEMENTS: usize;
    /// Bytes of a block.
    const BYTES: usize;

    /// Widens a block: `put(j, e)` is given elements 16 j to 16 j + 15, for each j in order.
    fn widen(block: &[u8], put: impl FnMut(usize, [f32; 16]));
}

/// Blocks of small integers times scales: element i of sub-block s is
///
/// ```text
/// (scale · scales[s]) · (q[i] - ZERO) - (minimum · minima[s])
/// ```
///
/// where a factor that the layout lacks is not multiplied with, and what it lacks as minimum is not subtracted.
pub(crate) trait IntegerBlock: Block {
    /// Elements of a sub-block.
    const SUB: usize;
    /// Whether a quant is a byte's i8; otherwise it is 0 to 63.
    #[allow(dead_code, reason = "a fact of the layout")]
    const SIGNED: bool = false;
    /// How many bits a quant has: at most 6, or 8 where it is [`SIGNED`](Self::SIGNED).
    const BITS: u32;
    /// What is subtracted from a quant.
    const ZERO: i32 = 0;
    /// Whether sub-blocks have integer scales.
    const SCALED: bool = false;
    /// Whether sub-blocks have minima.
    const MINIMA: bool = false;
    /// Whether [`scale_bits`](Self::scale_bits) is an f16.
    #[allow(dead_code, reason = "a fact of the layout")]
    const SCALE_IS_F16: bool = true;
    /// What unpacked codes are numbers of, where quants are not the codes themselves.
    #[allow(dead_code, reason = "a fact of the layout")]
    const TABLE: Option<&'static [i8; 16]> = None;

    /// The scale as it is stored: an f16, or the byte of an E8M0.
    fn scale_bits(block: &[u8]) -> u16;

    /// A scale from what is stored.
    #[inline(always)]
    fn widen_scale(bits: u16) -> f32 {
        widen_f16(bits)
    }

    /// The scale.
    #[inline(always)]
    fn scale(block: &[u8]) -> f32 {
        Self::widen_scale(Self::scale_bits(block))
    }

    /// The scale of the minima, an f16. What the layout adds is negated here.
    #[inline(always)]
    fn minimum_bits(_block: &[u8]) -> u16 {
        0
    }

    /// The scale of the minima.
    #[inline(always)]
    fn minimum(block: &[u8]) -> f32 {
        widen_f16(Self::minimum_bits(block))
    }

    /// Unpacks what is stored for each element: the quants, or with a [`TABLE`](Self::TABLE) their numbers in it. Calls
    /// `put(g, codes)` with the codes of elements 16 g to 16 g + 15, once for every g.
    fn unpack<R: BlockBytes>(from: &R, put: impl FnMut(usize, R::Sixteen));

    /// Writes the quants, in the order of the elements.
    #[inline(always)]
    fn quants(block: &[u8], to: &mut [u8]) {
        let (to, _) = to.as_chunks_mut::<16>();
        Self::unpack(
            &OneBlock(&block[..Self::BYTES]),
            #[inline(always)]
            |g, codes| {
                to[g] = match Self::TABLE {
                    Some(table) => codes.map(|code| look_up(table, code)),
                    None => codes,
                }
            },
        );
    }

    /// Unpacks scales and minima of sub-blocks, where the layout has them, as signed and as unsigned bytes: calls
    /// `scale(i, four)` and `minimum(i, four)` with those of sub-blocks 4 i to 4 i + 3, once for every i.
    #[inline(always)]
    fn unpack_scales<R: BlockBytes>(
        _from: &R,
        _scale: impl FnMut(usize, R::Four),
        _minimum: impl FnMut(usize, R::Four),
    ) {
    }

    /// Writes the scales of the sub-blocks, 1 where the layout has none.
    #[inline(always)]
    fn scales(block: &[u8], to: &mut [i8]) {
        to.fill(1);
        let (to, _) = bytemuck::cast_slice_mut(to).as_chunks_mut();
        Self::unpack_scales(&OneBlock(block), |i, four| to[i] = four, |_, _| ());
    }

    /// Writes the minima of the sub-blocks, 0 where the layout has none.
    #[inline(always)]
    fn minima(block: &[u8], to: &mut [u8]) {
        to.fill(0);
        let (to, _) = to.as_chunks_mut();
        Self::unpack_scales(&OneBlock(block), |_, _| (), |i, four| to[i] = four);
    }
}

/// [`Block::widen`] of a block of integers.
#[inline(always)]
pub(crate) fn widen_integers<B: IntegerBlock>(block: &[u8], mut put: impl FnMut(usize, [f32; 16])) {
    let block = &block[..B::BYTES];
    let subs = B::ELEMENTS / B::SUB;
    let mut quants = [0; 256];
    B::quants(block, &mut quants[..B::ELEMENTS]);
    let mut d = [B::scale(block); 16];
    if B::SCALED {
        let mut scales = [0; 16];
        B::scales(block, &mut scales[..subs]);
        for s in 0..16 {
            d[s] *= f32::from(scales[s]);
        }
    }
    let mut m = [0.0; 16];
    if B::MINIMA {
        let mut minima = [0; 16];
        B::minima(block, &mut minima[..subs]);
        let minimum = B::minimum(block);
        for s in 0..16 {
            m[s] = minimum * f32::from(minima[s]);
        }
    }
    let (quants, _) = quants.as_chunks::<16>();
    for j in 0..B::ELEMENTS / 16 {
        // Without this the compiler, having unrolled the loop over a chunk, makes vectors across chunks or even across
        // blocks, which it has to gather byte by byte.
        std::hint::black_box(());
        let (d, m) = (d[16 * j / B::SUB], m[16 * j / B::SUB]);
        let mut values = [0.0; 16];
        for i in 0..16 {
            // Of both signs in a byte: one conversion for all layouts.
            let q = f32::from((quants[j][i] as i8).wrapping_sub(B::ZERO as i8));
            values[i] = if B::MINIMA { d * q - m } else { d * q };
        }
        put(j, values);
    }
}

/// The `N` bytes from `at` on.
#[inline(always)]
pub(crate) fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("a whole block")
}

/// The two bytes from `at` on, little-endian.
#[inline(always)]
pub(crate) fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*part(block, at))
}

/// The bits of `table[code]`, as a choice for each bit of the code: a compiler makes no vector of a table that is looked
/// up, but it does of choices.
#[inline(always)]
fn look_up(table: &[i8; 16], code: u8) -> u8 {
    let (mut level, mut length) = (*table, 16);
    for bit in 0..4 {
        length /= 2;
        let set = code & 1 << bit != 0;
        for i in 0..length {
            level[i] = if set { level[2 * i + 1] } else { level[2 * i] };
        }
    }
    level[0] as u8
}
