//! Stored elements: chunks of sixteen as bytes, wherever they lie, widened exactly.

use half::{bf16, f16};
use moe_core::numerics::LANES;

use crate::Dtype;
use crate::simd::Simd;

/// An element type as a type. Little-endian, of any alignment.
pub(crate) trait Element: Copy + Send + Sync {
    /// Sixteen elements as they are stored.
    type Stored: Copy + Send + Sync;

    /// Sixteen elements of `bytes`, or fewer followed by zeros; and the rest.
    fn split(bytes: &[u8]) -> (&[Self::Stored], Self::Stored, bool);

    fn load<S: Simd>(s: S, from: &Self::Stored) -> S::F;
}

#[derive(Clone, Copy)]
pub(crate) struct F32;
#[derive(Clone, Copy)]
pub(crate) struct F16;
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

/// Whole chunks of N bytes, the rest padded with zeros, and whether there is a rest.
#[inline(always)]
fn split<const N: usize>(bytes: &[u8]) -> (&[[u8; N]], [u8; N], bool) {
    let (whole, rest) = bytes.as_chunks::<N>();
    let mut tail = [0; N];
    if !rest.is_empty() {
        tail[..rest.len()].copy_from_slice(rest);
    }
    (whole, tail, !rest.is_empty())
}

macro_rules! element {
    ($name:ident, $bytes:literal, $load:ident) => {
        impl Element for $name {
            type Stored = [u8; $bytes];

            #[inline(always)]
            fn split(bytes: &[u8]) -> (&[Self::Stored], Self::Stored, bool) {
                split(bytes)
            }

            #[inline(always)]
            fn load<S: Simd>(s: S, from: &Self::Stored) -> S::F {
                s.$load(from)
            }
        }
    };
}

element!(F32, 64, load_f32);
element!(F16, 32, load_f16);
element!(Bf16, 32, load_bf16);

/// Runs `$body` with the type `$E` standing for a [`Dtype`]'s element.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::Dtype::F32 => {
                type $E = $crate::element::F32;
                $body
            }
            $crate::Dtype::F16 => {
                type $E = $crate::element::F16;
                $body
            }
            $crate::Dtype::Bf16 => {
                type $E = $crate::element::Bf16;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// Widens stored elements to f32: `to[i] = from[i]`. The shorter decides.
pub fn widen_row(dtype: Dtype, from: &[u8], to: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            let (from, _) = from.as_chunks();
            to.iter_mut().zip(from).for_each(|(to, b)| *to = f32::from_le_bytes(*b));
        }
        Dtype::F16 => {
            let (from, _) = from.as_chunks();
            to.iter_mut().zip(from).for_each(|(to, b)| *to = f16::from_le_bytes(*b).to_f32());
        }
        Dtype::Bf16 => {
            let (from, _) = from.as_chunks();
            to.iter_mut().zip(from).for_each(|(to, b)| *to = bf16::from_le_bytes(*b).to_f32());
        }
    }
}

/// Rounds f32 to stored elements, to nearest even: `to[i] = from[i]`. The shorter decides.
pub fn narrow_row(dtype: Dtype, from: &[f32], to: &mut [u8]) {
    match dtype {
        Dtype::F32 => {
            let (to, _) = to.as_chunks_mut();
            to.iter_mut().zip(from).for_each(|(to, v)| *to = v.to_le_bytes());
        }
        Dtype::F16 => {
            let (to, _) = to.as_chunks_mut();
            to.iter_mut().zip(from).for_each(|(to, v)| *to = f16::from_f32(*v).to_le_bytes());
        }
        Dtype::Bf16 => {
            let (to, _) = to.as_chunks_mut();
            to.iter_mut().zip(from).for_each(|(to, v)| *to = bf16::from_f32(*v).to_le_bytes());
        }
    }
}

/// Bytes of a row of `columns` elements, padded to whole chunks of sixteen.
pub fn padded_row_bytes(dtype: Dtype, columns: usize) -> usize {
    columns.next_multiple_of(LANES) * dtype.bytes()
}

/// Number of chunks that hold `columns` floats.
pub(crate) fn chunks_of(columns: usize) -> usize {
    columns.div_ceil(LANES)
}
