//! Block-quantised weights, as GGUF files store them.
//!
//! A row is cut into blocks of 32 or 256 elements. A block is a few scales and a small integer, or the number of an entry in
//! a table, for every element. [`BlockType`] names the layouts and widens them to f32 in exactly the operations, and hence
//! the bits, of the `gguf` package and of ggml.
//!
//! Inside the crate a layout is a type: [`Block`] can be widened, and an [`IntegerBlock`] can be taken apart into integers
//! and scales, which products of integers need. Layouts and tables of numbers are facts about the format (ggml, by the ggml
//! authors, MIT licence); the code is this crate's own.

pub(crate) mod block;
pub(crate) mod grids;
pub(crate) mod k;
pub(crate) mod nonlinear;
mod quantise;
mod scale;
pub(crate) mod simple;
pub(crate) mod sixteen;

use std::fmt;
use std::str::FromStr;

#[allow(unused_imports, reason = "they are for the kernels")]
pub(crate) use block::{Block, IntegerBlock};

use crate::{Error, Result};

/// The table of types: a row is `Variant = ggml's number, "name", module;`, the module having the type of the
/// variant's name that implements it; those that are small integers times scales come first. The leading `$` lets the macros it defines have variables of their own.
macro_rules! block_types {
    (
        $dollar:tt
        integer { $($(#[$idoc:meta])* $ivariant:ident = $inumber:literal, $iname:literal, $imodule:ident;)* }
        other { $($(#[$odoc:meta])* $ovariant:ident = $onumber:literal, $oname:literal, $omodule:ident;)* }
    ) => {
        /// How a block of quantised weights is stored.
        ///
        /// A name is a GGUF type's in lower case. In the formulas d and m are a block's f16 scales, s and t the small integers
        /// of a sub-block, and q an element's. What they widen to is rounded after each operation in the order written, never
        /// fused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum BlockType {
            $($(#[$idoc])* $ivariant,)*
            $($(#[$odoc])* $ovariant,)*
        }

        impl BlockType {
            /// All types there are.
            pub const ALL: &'static [Self] = &[$(Self::$ivariant,)* $(Self::$ovariant,)*];

            /// The name in GGUF's spelling, in lower case: `q4_k`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$ivariant => $iname,)*
                    $(Self::$ovariant => $oname,)*
                }
            }

            /// The number that ggml, and so a GGUF file, gives the type.
            pub const fn ggml_type(self) -> u32 {
                match self {
                    $(Self::$ivariant => $inumber,)*
                    $(Self::$ovariant => $onumber,)*
                }
            }

            /// The type of a number of ggml's; `None` if the number is none, or a type that is no block type of this crate.
            pub const fn from_ggml_type(number: u32) -> Option<Self> {
                match number {
                    $($inumber => Some(Self::$ivariant),)*
                    $($onumber => Some(Self::$ovariant),)*
                    _ => None,
                }
            }
        }

        /// Runs `$body` with the type `$B` standing for a [`BlockType`]'s block.
        macro_rules! with_block {
            ($dollar ty:expr, $dollar B:ident => $dollar body:expr) => {
                match $dollar ty {
                    $($crate::blocks::BlockType::$ivariant => {
                        type $dollar B = $crate::blocks::$imodule::$ivariant;
                        $dollar body
                    })*
                    $($crate::blocks::BlockType::$ovariant => {
                        type $dollar B = $crate::blocks::$omodule::$ovariant;
                        $dollar body
                    })*
                }
            };
        }

        /// Runs `$body` with the type `$B` standing for a [`BlockType`]'s block if that is of integers, else `$other`.
        macro_rules! with_integer_block {
            ($dollar ty:expr, $dollar B:ident => $dollar body:expr, else => $dollar other:expr) => {
                match $dollar ty {
                    $($crate::blocks::BlockType::$ivariant => {
                        type $dollar B = $crate::blocks::$imodule::$ivariant;
                        $dollar body
                    })*
                    _ => $dollar other,
                }
            };
        }

        #[allow(unused_imports, reason = "they are for the kernels")]
        pub(crate) use {with_block, with_integer_block};
    };
}

block_types! {
    $
    integer {
        /// 8.5 bits a weight in blocks of 32: `d · q`, q of -128 to 127.
        Q8_0 = 8, "q8_0", simple;
        /// 4.5 bits a weight in blocks of 32: `d · (q - 8)`, q of 0 to 15.
        Q4_0 = 2, "q4_0", simple;
        /// 5 bits a weight in blocks of 32: `d · q + m`, q of 0 to 15.
        Q4_1 = 3, "q4_1", simple;
        /// 5.5 bits a weight in blocks of 32: `d · (q - 16)`, q of 0 to 31.
        Q5_0 = 6, "q5_0", simple;
        /// 6 bits a weight in blocks of 32: `d · q + m`, q of 0 to 31.
        Q5_1 = 7, "q5_1", simple;
        /// 2.625 bits a weight in blocks of 256: `(d · s) · q - (m · t)`, q of 0 to 3, s and t of 0 to 15 for each 16.
        Q2K = 10, "q2_k", k;
        /// 3.4375 bits a weight in blocks of 256: `(d · s) · (q - 4)`, q of 0 to 7, s of -32 to 31 for each 16.
        Q3K = 11, "q3_k", k;
        /// 4.5 bits a weight in blocks of 256: `(d · s) · q - (m · t)`, q of 0 to 15, s and t of 0 to 63 for each 32.
        Q4K = 12, "q4_k", k;
        /// 5.5 bits a weight in blocks of 256: `(d · s) · q - (m · t)`, q of 0 to 31, s and t of 0 to 63 for each 32.
        Q5K = 13, "q5_k", k;
        /// 6.5625 bits a weight in blocks of 256: `(d · s) · (q - 32)`, q of 0 to 63, s of -128 to 127 for each 16.
        Q6K = 14, "q6_k", k;
        /// 4.5 bits a weight in blocks of 32: `d · table[q]`, a table of 16 integers that lie closer around zero.
        Iq4Nl = 20, "iq4_nl", nonlinear;
        /// 4.25 bits a weight in blocks of 256: `(d · s) · table[q]`, the table of [`Iq4Nl`](Self::Iq4Nl), s of -32 to 31 for
        /// each 32.
        Iq4Xs = 23, "iq4_xs", nonlinear;
        /// 4.25 bits a weight in blocks of 32: `2ᵉ · q`, q a 4-bit float of 0 to 6 and a sign, e of -127 to 128 (OCP
        /// Microscaling Formats 1.0; as in ggml the exponent 255 is a scale and no NaN).
        Mxfp4 = 39, "mxfp4", nonlinear;
    }
    other {
        /// 3.4375 bits a weight in blocks of 256: `(d · (1 + 2 s)) · q`, four q at a time a point of a grid with odd
        /// coordinates up to 15, and signs; s of 0 to 15 for each 32.
        Iq3S = 21, "iq3_s", grids;
        /// 3.0625 bits a weight in blocks of 256: `(d · (½ + s) · ½) · q`, four q at a time a point of a grid with
        /// coordinates of 4 to 62, and signs, eight of which have an even number of minuses; s of 0 to 15 for each 32.
        Iq3Xxs = 18, "iq3_xxs", grids;
        /// 2.5625 bits a weight in blocks of 256: `(d · (½ + s) · ¼) · q`, eight q at a time a point of a grid with
        /// coordinates 8, 25 and 43, and signs; s of 0 to 15 for each 16.
        Iq2S = 22, "iq2_s", grids;
        /// 2.3125 bits a weight in blocks of 256: as [`Iq2S`](Self::Iq2S), with a smaller grid, and of eight signs an even
        /// number of minuses.
        Iq2Xs = 17, "iq2_xs", grids;
        /// 2.0625 bits a weight in blocks of 256: as [`Iq2Xs`](Self::Iq2Xs), with a smaller grid, and s for each 32.
        Iq2Xxs = 16, "iq2_xxs", grids;
        /// 1.5625 bits a weight in blocks of 256: `(d · (1 + 2 s)) · (q ± ⅛)`, eight q at a time a point of a grid of -1, 0
        /// and 1; s of 0 to 7 and the sign of ⅛ for each 32.
        Iq1S = 19, "iq1_s", grids;
        /// 1.75 bits a weight in blocks of 256: as [`Iq1S`](Self::Iq1S), with s for each 16 and the sign of ⅛ for each 8.
        Iq1M = 29, "iq1_m", grids;
    }
}

impl BlockType {
    /// Elements of a block: 32 or 256. A row is a whole number of blocks.
    pub const fn elements(self) -> usize {
        with_block!(self, B => B::ELEMENTS)
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        with_block!(self, B => B::BYTES)
    }

    /// Bytes of a row of `columns` elements; `None` if they are no whole number of blocks, or the bytes are beyond counting.
    pub const fn row_bytes(self, columns: usize) -> Option<usize> {
        if columns.is_multiple_of(self.elements()) {
            (columns / self.elements()).checked_mul(self.bytes())
        } else {
            None
        }
    }

    /// Whether its blocks are small integers times scales, so that products with integer activations can be made.
    pub const fn has_int8(self) -> bool {
        with_integer_block!(self, _B => true, else => false)
    }

    /// Widens a row: `to[i]` becomes element i, as the type's formula says.
    ///
    /// # Errors
    ///
    /// [`Error::PartialBlock`] unless `to` has a whole number of blocks; [`Error::RowBytes`] unless `from` has exactly the
    /// bytes of so many elements.
    pub fn dequantise_row(self, from: &[u8], to: &mut [f32]) -> Result<()> {
        self.check_row(to.len(), from.len())?;
        with_block!(self, B => widen_row::<B>(from, to));
        Ok(())
    }

    /// That a row of `columns` elements is one of `bytes` bytes.
    fn check_row(self, columns: usize, bytes: usize) -> Result<()> {
        let partial = Error::PartialBlock { block: self, elements: self.elements(), columns };
        let expected = self.row_bytes(columns).ok_or(partial)?;
        if bytes == expected {
            Ok(())
        } else {
            Err(Error::RowBytes { block: self, columns, expected, found: bytes })
        }
    }
}

/// Widens whole blocks. The shorter decides.
#[inline(always)]
pub(crate) fn widen_row<B: Block>(from: &[u8], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(B::BYTES).zip(to.chunks_exact_mut(B::ELEMENTS)) {
        let (to, _) = to.as_chunks_mut::<16>();
        B::widen(
            from,
            #[inline(always)]
            |j, values| to[j] = values,
        );
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BlockType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|ty| ty.name() == name).ok_or_else(|| Error::UnknownBlockType {
            known: Self::ALL.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(", "),
            found: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts_make_up<B: IntegerBlock>(block: &[u8]) {
        let (subs, name) = (B::ELEMENTS / B::SUB, B::TYPE);
        let (mut codes, mut quants) = (vec![0; B::ELEMENTS], vec![0; B::ELEMENTS]);
        let (mut scales, mut minima) = (vec![0; subs], vec![0; subs]);
        B::unpack(&sixteen::OneBlock(block), |g, sixteen| {
            codes[16 * g..16 * (g + 1)].copy_from_slice(&sixteen);
        });
        B::quants(block, &mut quants);
        B::scales(block, &mut scales);
        B::minima(block, &mut minima);
        assert!(B::SCALED || scales.iter().all(|s| *s == 1), "{name}");
        assert!(B::MINIMA || minima.iter().all(|m| *m == 0), "{name}");
        match B::TABLE {
            Some(table) => {
                assert!(codes.iter().zip(&quants).all(|(c, q)| table[usize::from(*c)] == *q as i8), "{name}");
            }
            None => assert_eq!(codes, quants, "{name}"),
        }
        assert!(B::SIGNED || quants.iter().all(|q| *q < 64), "{name}");
        if B::SCALE_IS_F16 {
            assert_eq!(B::scale(block), half::f16::from_bits(B::scale_bits(block)).to_f32(), "{name}");
        }
        let mut widened = vec![0.0; B::ELEMENTS];
        widen_row::<B>(block, &mut widened);
        for (i, widened) in widened.iter().enumerate() {
            let q = if B::SIGNED { i32::from(quants[i] as i8) } else { i32::from(quants[i]) } - B::ZERO;
            let d = B::scale(block) * f32::from(scales[i / B::SUB]);
            let m = B::minimum(block) * f32::from(minima[i / B::SUB]);
            assert_eq!(*widened, d * q as f32 - m, "{name} {i}");
        }
    }

    #[test]
    fn the_parts_of_an_integer_block_make_up_its_elements() {
        for &ty in BlockType::ALL {
            assert_eq!(ty.elements() % 16, 0);
            // Bytes that no scale made of them is infinite or a NaN.
            let block: Vec<u8> = (0..ty.bytes()).map(|i| (i * i * 29 + i * 7 + 11) as u8 & 0xbf).collect();
            with_integer_block!(ty, B => parts_make_up::<B>(&block), else => assert!(!ty.has_int8()));
        }
    }
}
