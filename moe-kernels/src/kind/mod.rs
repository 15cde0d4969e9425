//! The kinds of products: how `x · Wᵀ` is computed with weights of one format, chosen once and without the weights' bytes.
//!
//! A kind ties together what belongs together: how x is packed and how long a K block is ([`Packing`]), how a panel of
//! weights is swept, and what a weight must satisfy. [`exact`] is the kind of every format, [`bf16`] that of bfloat16 weights
//! where bfloat16 activations were asked for, [`int8`] that of blocks of integers where int8 activations were. A matrix whose
//! format lacks the kind that was asked for is multiplied exactly.

pub(crate) mod bf16;
pub(crate) mod exact;
pub(crate) mod int8;

use std::marker::PhantomData;
use std::ops::Range;

use crate::blocks::with_integer_block;
use crate::chunk::{Chunk, floats_mut};
use crate::element::with_element;
use crate::packed::{PackedAs, PackedRows, PackedSet, Packing};
use crate::simd::{Kernel, Simd};
use crate::tile::Tiling;
use crate::{Activations, Backend, Dtype, Result, WeightFormat, WeightView};
use exact::Weights;

/// One kind of product on one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    activations: Activations,
    format: WeightFormat,
    packing: Packing,
    tiling: Tiling,
    backend: Backend,
}

impl Kind {
    /// The kind of products with weights of this format, where activations may be treated so.
    pub(crate) fn of(format: WeightFormat, activations: Activations, backend: Backend) -> Self {
        let (activations, packed_as) = match (activations, format) {
            (Activations::Bf16, WeightFormat::Plain(Dtype::Bf16)) if backend.has_pairs() => {
                (activations, PackedAs::Pairs)
            }
            (Activations::Bf16, WeightFormat::Plain(Dtype::Bf16)) => (activations, PackedAs::OddsThenEvens),
            (Activations::Int8, WeightFormat::Blocks(block)) if block.has_int8() => match block.elements() {
                256 => (activations, PackedAs::Int8By256),
                _ => (activations, PackedAs::Int8By32),
            },
            _ => (Activations::F32, PackedAs::F32),
        };
        let packing = Packing::new(packed_as, backend);
        Self { activations, format, packing, tiling: backend.tiling(), backend }
    }

    /// The same cut into other tiles.
    #[cfg(test)]
    pub(crate) fn with_tiling(self, tiling: Tiling) -> Self {
        Self { tiling, ..self }
    }

    /// How weights are stored.
    pub(crate) fn format(self) -> WeightFormat {
        self.format
    }

    /// What it does to activations.
    pub(crate) fn activations(self) -> Activations {
        self.activations
    }

    /// How x is packed for it.
    pub(crate) fn packing(self) -> Packing {
        self.packing
    }

    /// Whether weights must be looked through before they are used.
    pub(crate) fn asks_weights(self) -> bool {
        self.activations == Activations::Bf16
    }

    /// Whether products can be made with this weight: reads the matrix if [`asks_weights`](Self::asks_weights).
    ///
    /// # Errors
    ///
    /// [`Error::TooSmall`](crate::Error::TooSmall).
    pub(crate) fn check(self, weight: WeightView<'_>) -> Result<()> {
        if self.asks_weights() { bf16::check(weight) } else { Ok(()) }
    }

    /// Computes `out[m][n] = x[m] · w[n]` for the given rows of x, which begin where a tile of them begins, and the weight
    /// rows of panel `p`.
    ///
    /// `out` is `[rows, PANEL]` and is overwritten; what lies beyond the columns of the matrix is unspecified.
    pub(crate) fn multiply_panel(
        self,
        x: &PackedSet<'_>,
        rows: Range<usize>,
        w: WeightView<'_>,
        p: usize,
        out: &mut [Chunk],
    ) {
        debug_assert_eq!(w.format(), self.format, "weights of the format that the kind was chosen for");
        let x = x.of(self.packing);
        let task = PanelTask { x, rows, w, p, tiling: self.tiling, out: floats_mut(out) };
        match self.packing.packed_as {
            PackedAs::F32 => self.backend.run(task),
            PackedAs::Pairs => self.backend.run_pairs(Of::<bf16::PairWeights>(task, PhantomData)),
            PackedAs::OddsThenEvens => self.backend.run(Of::<bf16::OddEvenWeights>(task, PhantomData)),
            PackedAs::Int8By32 | PackedAs::Int8By256 => self.backend.run_bytes(Int8(task)),
        }
    }
}

/// One panel of `x · Wᵀ` for a block of rows; as a kernel, exact.
struct PanelTask<'a> {
    x: PackedRows<'a>,
    rows: Range<usize>,
    w: WeightView<'a>,
    p: usize,
    tiling: Tiling,
    out: &'a mut [f32],
}

impl PanelTask<'_> {
    #[inline(always)]
    fn sweep<S: Simd, W: Weights>(self, s: S) {
        let Self { x, rows, w, p, tiling, out } = self;
        exact::multiply_panel::<S, W>(s, x, rows, w, p, tiling, out);
    }
}

impl Kernel for PanelTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.w.format() {
            WeightFormat::Plain(dtype) => with_element!(dtype, E => self.sweep::<S, exact::Plain<E>>(s)),
            WeightFormat::Blocks(_) => self.sweep::<S, exact::Blocks>(s),
        }
    }
}

/// The same with weights that are read in a way of their own.
struct Of<'a, W>(PanelTask<'a>, PhantomData<W>);

impl<W: Weights> Kernel for Of<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.sweep::<S, W>(s);
    }
}

/// The same with activations rounded to int8, for weights in blocks of integers.
struct Int8<'a>(PanelTask<'a>);

impl Kernel for Int8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PanelTask { x, rows, w, p, out, .. } = self.0;
        if let WeightFormat::Blocks(block) = w.format() {
            with_integer_block!(block, B => int8::multiply_panel::<S, B>(s, x, rows, w, p, out), else => {});
        }
    }
}

#[cfg(test)]
mod tests;
