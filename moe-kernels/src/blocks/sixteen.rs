//! Sixteen bytes at a time: what codes are unpacked from.
//!
//! A layout says once how its codes lie in a block, in operations on each of sixteen bytes that follow each other. Those may
//! be bytes of one row, or of many rows at once in whatever form a kernel keeps them.

/// Some bytes of a block, or of each of several.
pub(crate) trait EachByte: Copy {
    /// `(self >> shift) & mask` of each byte; the mask has only bits that a byte has after the shift.
    fn bits(self, shift: u32, mask: u8) -> Self;

    /// `self | upper << shift` of each byte; what is shifted stays within its byte.
    fn with_upper(self, upper: Self, shift: u32) -> Self;

    /// `self - n` of each byte; what is less than nothing becomes a signed byte.
    fn minus(self, n: u8) -> Self;
}

/// The bytes of a block, or of each of several.
pub(crate) trait BlockBytes {
    /// What is read at a time.
    type Sixteen: EachByte;
    /// A quarter of that.
    type Four: EachByte;

    /// Bytes `at` to `at + 15`.
    fn sixteen(&self, at: usize) -> Self::Sixteen;

    /// The bits of bytes `at` and `at + 1`, the lowest first, each as a byte of 0 or 1.
    fn sixteen_bits(&self, at: usize) -> Self::Sixteen;

    /// Bytes `at` to `at + 15`, four by four.
    fn fours(&self, at: usize) -> [Self::Four; 4];

    /// What is made of a block, byte by byte.
    fn four(&self, of: impl Fn(&[u8]) -> [u8; 4]) -> Self::Four;
}

impl<const N: usize> EachByte for [u8; N] {
    #[inline(always)]
    fn bits(self, shift: u32, mask: u8) -> Self {
        let mut to = self;
        for byte in &mut to {
            *byte = *byte >> shift & mask;
        }
        to
    }

    #[inline(always)]
    fn with_upper(self, upper: Self, shift: u32) -> Self {
        let mut to = self;
        for i in 0..N {
            to[i] |= upper[i] << shift;
        }
        to
    }

    #[inline(always)]
    fn minus(self, n: u8) -> Self {
        let mut to = self;
        for byte in &mut to {
            *byte = byte.wrapping_sub(n);
        }
        to
    }
}

/// The bytes of one block.
#[derive(Clone, Copy)]
pub(crate) struct OneBlock<'a>(pub(crate) &'a [u8]);

impl BlockBytes for OneBlock<'_> {
    type Sixteen = [u8; 16];
    type Four = [u8; 4];

    #[inline(always)]
    fn sixteen(&self, at: usize) -> [u8; 16] {
        *super::block::part(self.0, at)
    }

    #[inline(always)]
    fn sixteen_bits(&self, at: usize) -> [u8; 16] {
        let bits = super::block::u16_at(self.0, at);
        let mut to = [0; 16];
        for i in 0..16 {
            to[i] = (bits >> i) as u8 & 1;
        }
        to
    }

    #[inline(always)]
    fn fours(&self, at: usize) -> [[u8; 4]; 4] {
        let four = |i: usize| *super::block::part(self.0, at + 4 * i);
        [four(0), four(1), four(2), four(3)]
    }

    #[inline(always)]
    fn four(&self, of: impl Fn(&[u8]) -> [u8; 4]) -> [u8; 4] {
        of(self.0)
    }
}

/// Four-bit codes in 16 bytes from `at` on: their low halves are group `g` of sixteen elements, the high ones the next.
#[inline(always)]
pub(super) fn nibbles<R: BlockBytes>(from: &R, at: usize, g: usize, mut put: impl FnMut(usize, R::Sixteen)) {
    let both = from.sixteen(at);
    put(g, both.bits(0, 15));
    put(g + 1, both.bits(4, 15));
}

/// Four bits of 256 elements in 128 bytes from `at` on: 64 after 64, the low halves of 32 bytes before the high ones. Sixteen
/// elements become what `code` makes of their bits, of the 32 they are in, and of which half of those they are.
#[inline(always)]
pub(super) fn halves<R: BlockBytes>(
    from: &R,
    at: usize,
    code: impl Fn(R::Sixteen, u32, usize) -> R::Sixteen,
    mut put: impl FnMut(usize, R::Sixteen),
) {
    for pair in 0..4 {
        for half in 0..2 {
            let both = from.sixteen(at + 32 * pair + 16 * half);
            for i in 0..2 {
                let s = 2 * pair + i;
                put(2 * s + half, code(both.bits(4 * i as u32, 15), s as u32, half));
            }
        }
    }
}

/// Two bits of 256 elements in 64 bytes from `at` on: bits 2 j and 2 j + 1 of bytes 0 to 31 are elements 32 j to 32 j + 31,
/// those of the other bytes 128 more. Sixteen elements become what `code` makes of their bits, of the 32 they are in, and of
/// which half of those they are.
#[inline(always)]
pub(super) fn quarters<R: BlockBytes>(
    from: &R,
    at: usize,
    code: impl Fn(R::Sixteen, u32, usize) -> R::Sixteen,
    mut put: impl FnMut(usize, R::Sixteen),
) {
    for four in 0..2 {
        for half in 0..2 {
            let all = from.sixteen(at + 32 * four + 16 * half);
            for i in 0..4 {
                let s = 4 * four + i;
                put(2 * s + half, code(all.bits(2 * i as u32, 3), s as u32, half));
            }
        }
    }
}
