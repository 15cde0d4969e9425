//! A linear map, `y = x · Wᵀ`.

use std::sync::{Arc, OnceLock};

use moe_core::memory::held;
use moe_core::{Error as CoreError, Gate, Result as CoreResult, Scratch, ScratchValue, TokenContext};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::chunk::Chunk;
use crate::kind::Kind;
use crate::packed::PackedMemory;
use crate::products::{Job, Product, lay_out, multiply};
use crate::schedule::enter_if_worth;
use crate::{Activations, Backend, Result, WeightMatrix};

/// A linear map from K to N with weight `[N, K]`; as a [`Gate`], from D to E.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: WeightMatrix,
    kind: Kind,
    backend: Backend,
    fit: Fit,
}

/// Memory that linear maps reuse from call to call; it only grows.
#[derive(Debug, Default)]
pub struct LinearScratch {
    packed: PackedMemory,
    jobs: Vec<Job>,
    panels: Vec<Chunk>,
}

impl ScratchValue for LinearScratch {
    fn bytes(&self) -> usize {
        self.packed.bytes() + held(&self.jobs) + held(&self.panels)
    }
}

impl Linear {
    /// The map with this weight, computed by this backend.
    pub fn new(weight: WeightMatrix, backend: Backend) -> Self {
        let kind = Kind::of(weight.format(), Activations::F32, backend);
        Self { weight, kind, backend, fit: Fit::default() }
    }

    /// The same map cut into other tiles.
    #[cfg(test)]
    pub(crate) fn with_tiling(self, tiling: crate::tile::Tiling) -> Self {
        Self { kind: self.kind.with_tiling(tiling), ..self }
    }

    /// The same map with its input treated so, where the weight's format has such products; otherwise exact.
    pub fn with_input_precision(self, activations: Activations) -> Self {
        Self { kind: Kind::of(self.weight.format(), activations, self.backend), ..self }
    }

    /// The weight, `[N, K]`.
    pub fn weight(&self) -> &WeightMatrix {
        &self.weight
    }

    /// What its products do to the input.
    pub fn input_precision(&self) -> Activations {
        self.kind.activations()
    }

    /// Whether the weight is fit for this kind of products: with bfloat16 activations, looks through it the first time.
    ///
    /// # Errors
    ///
    /// [`Error::TooSmall`](crate::Error::TooSmall), with bfloat16 activations only.
    pub fn check(&self) -> Result<()> {
        self.fit.check(self.kind, &self.weight)
    }

    /// Computes `y[t][n] = x[t] · w[n]`, each a canonical dot product; x is `[T, K]`, y is `[T, N]` and is overwritten.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), [`Error::InputNotFinite`](crate::Error::InputNotFinite) with int8 activations, and
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
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
        Self::forward_each([self], x, scratch, [y])
    }

    /// [`forward`](Self::forward) of several maps of the same x, which is packed once for all that multiply alike, in one
    /// parallel pass: the queries, keys and values of an attention layer, say.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), [`Error::InputNotFinite`](crate::Error::InputNotFinite) with int8 activations, and
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    #[track_caller]
    pub fn forward_each<const N: usize>(
        maps: [&Self; N],
        x: ArrayView2<'_, f32>,
        scratch: &mut LinearScratch,
        ys: [ArrayViewMut2<'_, f32>; N],
    ) -> Result<()> {
        let Some(&Self { backend, .. }) = maps.first().copied() else { return Ok(()) };
        let (tokens, inner) = x.dim();
        for (map, y) in maps.iter().zip(&ys) {
            assert_eq!(inner, map.weight.columns(), "width of the input");
            assert_eq!(y.dim(), (tokens, map.weight.rows()), "shape of the output");
            map.check()?;
        }
        let LinearScratch { packed, jobs, panels } = scratch;
        let outer = maps.iter().map(|map| map.weight.rows()).sum::<usize>();
        lay_out(jobs, maps.iter().enumerate().map(|(i, map)| (i, 0..tokens, map.weight.rows())));
        enter_if_worth(tokens.saturating_mul(inner).saturating_mul(outer), || {
            let all = 0..tokens;
            let x = packed.pack(maps.map(|map| map.kind.packing()), std::slice::from_ref(&all), &x)?;
            let product = |i: usize| Product::Linear(maps[i].kind, maps[i].weight.view());
            let products = multiply(backend, x, jobs, inner, product, panels)?;
            for (i, y) in ys.into_iter().enumerate() {
                products.copy_jobs_to(i..i + 1, y);
            }
            Ok(())
        })
    }
}

/// Whether a weight is fit for its kind of products, once that was asked. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fit(Arc<OnceLock<()>>);

impl Fit {
    /// Looks through the weight if its kind asks for that and nobody has found it fit yet.
    pub(crate) fn check(&self, kind: Kind, weight: &WeightMatrix) -> Result<()> {
        if !kind.asks_weights() || self.0.get().is_some() {
            return Ok(());
        }
        // Not inside the cell's initialiser: a thread of the pool that waits there may take up another caller's pass, which
        // would wait for the cell. Two that look at once find the same.
        kind.check(weight.view())?;
        self.0.get_or_init(|| ());
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
        self.forward(hidden, scratch.of(), out).map_err(|error| error.in_layer(CoreError::gate))
    }
}
