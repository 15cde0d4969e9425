//! Stored elements: chunks of sixteen, or of thirty-two bfloat16, as bytes, wherever they lie.

use half::{bf16, f16};
use moe_core::numerics::LANES;

use crate::Dtype;
use crate::simd::Simd;

/// An element type as a type. Little-endian, of any alignment.
pub(crate) trait Element: Copy + Send + Sync {
    /// The bytes of a stored chunk.
    type Stored: Copy + Send + Sync;
    /// What elements are once they are widened into memory: what tiles of them multiply alike.
    type Widened: Element;
    /// How many elements these are: as many as [`X_CHUNKS`](Self::X_CHUNKS) chunks of x meet.
    const ELEMENTS: usize = LANES;
    /// Chunks of x that a stored chunk is multiplied with.
    const X_CHUNKS: usize = 1;

    /// The elements of `bytes` by so many, and the bytes of those that are left over.
    fn chunks(bytes: &[u8]) -> (&[Self::Stored], &[u8]);
    /// Less than a stored chunk, followed by zeros.
    fn padded(rest: &[u8]) -> Self::Stored;
    /// What is multiplied with chunk `i` of x.
    fn load<S: Simd>(s: S, from: &Self::Stored, i: usize) -> S::F32x16;
    /// A chunk of x times what was loaded, plus `sum`.
    #[inline(always)]
    fn mul_add<S: Simd>(s: S, x: S::Half, w: S::Half, sum: S::Half) -> S::Half {
        s.fma_half(x, w, sum)
    }
}

/// `bytes[i]` where there is one, and zeros.
#[inline(always)]
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

macro_rules! element {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $widened:ident, |$s:ident, $from:ident, $i:ident| $load:expr $(, $more:item)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Element for $name {
            type Stored = [u8; $bytes];
            type Widened = $widened;
            $($more)*

            #[inline(always)]
            fn chunks(bytes: &[u8]) -> (&[Self::Stored], &[u8]) {
                bytes.as_chunks()
            }

            #[inline(always)]
            fn padded(rest: &[u8]) -> Self::Stored {
                padded(rest)
            }

            #[inline(always)]
            fn load<S: Simd>($s: S, $from: &Self::Stored, $i: usize) -> S::F32x16 {
                $load
            }
        }
    };
}

element!(F32, 64, F32, |s, from, _i| s.load_f32(from));
element!(F16, 32, F32, |s, from, _i| s.load_f16(from));
element!(Bf16, 32, F32, |s, from, _i| s.load_bf16(from));
element!(
    /// Bfloat16 for chunks of x that are 32 of them, where instructions multiply such pairs.
    Pairs, 64, Pairs, |s, from, _i| s.load_f32(from),
    const ELEMENTS: usize = 2 * LANES;,
    #[inline(always)]
    fn mul_add<S: Simd>(s: S, x: S::Half, w: S::Half, sum: S::Half) -> S::Half {
        s.fma_pairs(x, w, sum)
    }
);
element!(
    /// Bfloat16 for chunks of x in twos, the elements of odd index and those of even.
    OddsThenEvens, 64, F32, |s, from, i| {
        let pairs = s.load_f32(from);
        s.by_halves::<1, 1>(
            #[inline(always)]
            |half| {
                let pairs = s.half(pairs, half);
                [[if i == 0 { s.high_halves(pairs) } else { s.low_halves(pairs) }]]
            },
        )[0][0]
    },
    const ELEMENTS: usize = 2 * LANES;,
    const X_CHUNKS: usize = 2;
);

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
