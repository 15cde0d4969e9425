//! A linear map, `y = x · Wᵀ`.

use moe_core::{Error as CoreError, Gate, Result as CoreResult, Scratch, TokenContext};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::grouped::{Group, Product, products};
use crate::pack::{Layout, pack};
use crate::simd::Chunk;
use crate::{Activations, Backend, Result, WeightMatrix};

/// A linear map from K to N with weight `[N, K]`; as a [`Gate`], from D to E.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: WeightMatrix,
    backend: Backend,
    activations: Activations,
}

/// Memory that linear maps reuse from call to call; it only grows.
#[derive(Debug, Default)]
pub struct LinearScratch {
    packed: Vec<Chunk>,
    panels: Vec<Chunk>,
}

impl Linear {
    /// The map with this weight, computed by this backend.
    pub fn new(weight: WeightMatrix, backend: Backend) -> Self {
        Self { weight, backend, activations: Activations::F32 }
    }

    /// The same map with another kind of products.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// The weight, `[N, K]`.
    pub fn weight(&self) -> &WeightMatrix {
        &self.weight
    }

    /// Computes `y[t][n] = x[t] · w[n]`, each a canonical dot product; x is `[T, K]`, y is `[T, N]` and is overwritten.
    ///
    /// # Errors
    ///
    /// Those of [`WeightMatrix::check`]: none with [`Activations::F32`].
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward(
        &self,
        x: ArrayView2<'_, f32>,
        scratch: &mut LinearScratch,
        y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        assert_eq!(x.ncols(), self.weight.columns(), "width of the input");
        assert_eq!(y.dim(), (x.nrows(), self.weight.rows()), "shape of the output");
        self.weight.check(self.activations)?;
        let LinearScratch { packed, panels } = scratch;
        let layout = Layout::of(self.activations, self.backend);
        let whole = [Group { expert: 0, rows: 0..x.nrows() }];
        let x = pack(layout, packed, &whole, x);
        products(self.backend, x, &whole, self.weight.rows(), |_| Product::Plain(&self.weight), panels)
            .copy_to(y);
        Ok(())
    }
}

impl Gate for Linear {
    fn experts(&self) -> usize {
        self.weight.rows()
    }

    fn dim(&self) -> usize {
        self.weight.columns()
    }

    fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        _: &TokenContext<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> CoreResult<()> {
        CoreError::check_shape("gate input", &[hidden.nrows(), self.dim()], hidden.shape())?;
        CoreError::check_shape("gate output", &[hidden.nrows(), self.experts()], out.shape())?;
        self.forward(hidden, scratch.of(), out).map_err(CoreError::gate)
    }
}
