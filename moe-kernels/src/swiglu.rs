//! Mixtral's bank of experts: `f(x) = (silu(x · W1ᵀ) ⊙ (x · W3ᵀ)) · W2ᵀ`.
//!
//! Two flat parallel passes over (expert, panel of columns): the first makes the hidden rows, both products and the
//! activation in one task, the second the output. Within a task rows are looped inside, so that a panel of weights is read
//! from memory once. Results are panel-major, so that each task owns one stretch of memory; copying passes between bring
//! them into the order the next one reads.

use moe_core::{Dispatch, Error as CoreError, Experts, Result as CoreResult, Scratch};
use ndarray::ArrayViewMut2;

use crate::grouped::{Group, Product, products};
use crate::pack::{Layout, pack_dispatch, pack_with};
use crate::schedule::{enter, worth_threads};
use crate::simd::Chunk;
use crate::{Activations, Backend, Error, Result, WeightMatrix};

/// The matrices of one expert, as checkpoints name them.
#[derive(Clone, Debug)]
pub struct SwiGluWeights {
    /// To the activation, `[H, D]`.
    pub w1: WeightMatrix,
    /// Back to the model's width, `[D, H]`.
    pub w2: WeightMatrix,
    /// To the factor, `[H, D]`.
    pub w3: WeightMatrix,
}

/// A bank of SwiGLU experts of one shape.
#[derive(Debug)]
pub struct SwiGluExperts {
    experts: Vec<SwiGluWeights>,
    dim: usize,
    hidden: usize,
    backend: Backend,
    activations: Activations,
}

impl SwiGluExperts {
    /// A bank of these experts, computed by this backend. Element types may differ from matrix to matrix.
    ///
    /// # Errors
    ///
    /// [`Error::NoExperts`], or [`Error::Shape`] where a matrix does not fit the first expert's w1.
    pub fn new(experts: Vec<SwiGluWeights>, backend: Backend) -> Result<Self> {
        let Some(first) = experts.first() else { return Err(Error::NoExperts) };
        let (hidden, dim) = (first.w1.rows(), first.w1.columns());
        for (e, x) in experts.iter().enumerate() {
            let expected =
                [("w1", &x.w1, [hidden, dim]), ("w2", &x.w2, [dim, hidden]), ("w3", &x.w3, [hidden, dim])];
            for (name, w, expected) in expected {
                let found = [w.rows(), w.columns()];
                if found != expected {
                    return Err(Error::Shape { what: format!("expert {e} {name}"), expected, found });
                }
            }
        }
        Ok(Self { experts, dim, hidden, backend, activations: Activations::F32 })
    }

    /// The same bank with another kind of products.
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// Width of the hidden rows, H.
    pub fn hidden(&self) -> usize {
        self.hidden
    }
}

impl Experts for SwiGluExperts {
    fn experts(&self) -> usize {
        self.experts.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn forward(
        &self,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> CoreResult<()> {
        dispatch.check(self, &out)?;
        swiglu(self.backend, self.activations, self.hidden, |e| &self.experts[e], dispatch, scratch, out)
            .map_err(CoreError::experts)
    }
}

/// Runs SwiGLU experts whose weights lie wherever `weights(expert)` says: for banks that hold them in another way, such as a
/// cache, and have those at hand that have rows.
///
/// All experts have H = `hidden`; `out` is `[R, D]` and is overwritten. Only experts with rows are asked for.
///
/// # Errors
///
/// Those of [`WeightMatrix::check`], of the experts asked for: none with [`Activations::F32`].
///
/// # Panics
///
/// If a weight's shape does not fit.
#[track_caller]
pub fn swiglu<'w>(
    backend: Backend,
    activations: Activations,
    hidden: usize,
    weights: impl Fn(usize) -> &'w SwiGluWeights + Sync,
    dispatch: Dispatch<'_>,
    scratch: &mut Scratch,
    out: ArrayViewMut2<'_, f32>,
) -> Result<()> {
    let (count, dim) = (dispatch.rows(), dispatch.dim());
    assert_eq!(out.dim(), (count, dim), "shape of the output");
    let SwiGluScratch { groups, packed, panels } = scratch.of();
    groups.clear();
    groups.extend((0..dispatch.experts()).map(|expert| Group { expert, rows: dispatch.rows_of(expert) }));
    groups.retain(|g| !g.rows.is_empty());
    for group in groups.iter() {
        let SwiGluWeights { w1, w2, w3 } = weights(group.expert);
        let shapes = [w1, w2, w3].map(|w| (w.rows(), w.columns()));
        assert_eq!(
            shapes,
            [(hidden, dim), (dim, hidden), (hidden, dim)],
            "shapes of expert {}",
            group.expert
        );
        for (matrix, w) in [("w1", w1), ("w2", w2), ("w3", w3)] {
            let expert = group.expert;
            w.check(activations).map_err(|e| Error::Expert { expert, matrix, source: Box::new(e) })?;
        }
    }
    let layout = Layout::of(activations, backend);
    let activated = |e: usize| Product::Activated(&weights(e).w1, &weights(e).w3);
    let plain = |e: usize| Product::Plain(&weights(e).w2);
    let work = || {
        let x = pack_dispatch(layout, packed, groups, &dispatch);
        let h = products(backend, x, groups, hidden, activated, panels);
        let h = pack_with(layout, packed, groups, hidden, |group, m, j, to| h.copy_chunk(group, m, j, to));
        products(backend, h, groups, dim, plain, panels).copy_to(out);
    };
    // No pass of little work leaves this thread, and waking another would take longer.
    if worth_threads(count.saturating_mul(hidden).saturating_mul(dim)) {
        enter(work)
    } else {
        work()
    }
    Ok(())
}

/// What the bank keeps between calls.
#[derive(Debug, Default)]
struct SwiGluScratch {
    groups: Vec<Group>,
    packed: Vec<Chunk>,
    panels: Vec<Chunk>,
}
