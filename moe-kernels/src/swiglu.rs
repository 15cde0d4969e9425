//! Mixtral's bank of experts: `f(x) = (silu(x · W1ᵀ) ⊙ (x · W3ᵀ)) · W2ᵀ`.
//!
//! Two flat parallel passes over (expert, panel of columns): the first makes the hidden rows, both products and the
//! activation in one task, the second the output. Within a task rows are looped inside, so that a panel of weights is read
//! from memory once. Results are panel-major, so that each task owns one stretch of memory; copying passes between bring
//! them into the order the next one reads.

use std::ops::Range;

use moe_core::memory::held;
use moe_core::{Dispatch, Error as CoreError, Experts, Result as CoreResult, RowWork, Scratch, ScratchValue};
use ndarray::ArrayViewMut2;

use crate::chunk::Chunk;
use crate::kind::Kind;
use crate::linear::Fit;
use crate::packed::PackedMemory;
use crate::products::{Job, Product, lay_out, multiply};
use crate::schedule::{enter_if_worth, over_rows};
use crate::{Activations, Backend, Error, Result, WeightFormat, WeightMatrix, WeightView};

/// Names of an expert's matrices, in the order that arrays of three have here.
const MATRICES: [&str; 3] = ["w1", "w2", "w3"];

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

impl SwiGluWeights {
    /// The matrices, borrowed.
    #[inline]
    pub fn view(&self) -> SwiGluView<'_> {
        SwiGluView { w1: self.w1.view(), w2: self.w2.view(), w3: self.w3.view() }
    }
}

/// The matrices of one expert in somebody's bytes.
#[derive(Clone, Copy, Debug)]
pub struct SwiGluView<'a> {
    /// To the activation, `[H, D]`.
    pub w1: WeightView<'a>,
    /// Back to the model's width, `[D, H]`.
    pub w2: WeightView<'a>,
    /// To the factor, `[H, D]`.
    pub w3: WeightView<'a>,
}

impl<'a> SwiGluView<'a> {
    fn matrices(self) -> [WeightView<'a>; 3] {
        [self.w1, self.w2, self.w3]
    }
}

/// How a bank of SwiGLU experts of one shape is computed, without its weights: for banks that hold them in another way, such
/// as a cache, and have those at hand that have rows. [`SwiGluExperts`] is the bank that holds all of them.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    dim: usize,
    hidden: usize,
    /// For w1, w2 and w3 of each expert.
    kinds: Vec<[Kind; 3]>,
    backend: Backend,
}

impl SwiGlu {
    /// Experts from D = `dim` to H = `hidden` and back whose matrices w1, w2 and w3 are stored so; formats may differ from
    /// matrix to matrix. Matrices whose format has no products of the kind asked for are multiplied exactly.
    ///
    /// # Errors
    ///
    /// [`Error::NoExperts`].
    pub fn new(
        dim: usize,
        hidden: usize,
        formats: impl IntoIterator<Item = [WeightFormat; 3]>,
        activations: Activations,
        backend: Backend,
    ) -> Result<Self> {
        let of = |format| Kind::of(format, activations, backend);
        let kinds: Vec<_> = formats.into_iter().map(|formats| formats.map(of)).collect();
        if kinds.is_empty() {
            return Err(Error::NoExperts);
        }
        Ok(Self { dim, hidden, kinds, backend })
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.kinds.len()
    }

    /// Width of a row, D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Width of the hidden rows, H.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// What products with expert `e`'s matrices w1, w2 and w3 do to their input.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn input_precision(&self, e: usize) -> [Activations; 3] {
        self.kinds[e].map(Kind::activations)
    }

    /// Whether the weights are fit to be expert `e`'s: their shapes and formats, and, with bfloat16 activations, every
    /// weight, for which they are read. To be asked once, before they are first multiplied with.
    ///
    /// # Errors
    ///
    /// [`Error::Expert`] with what is wrong.
    pub fn check(&self, e: usize, weights: SwiGluView<'_>) -> Result<()> {
        self.check_shapes(e, weights)?;
        for ((kind, w), matrix) in self.kinds[e].iter().zip(weights.matrices()).zip(MATRICES) {
            kind.check(w).map_err(|error| Error::of_expert(e, matrix, error))?;
        }
        Ok(())
    }

    fn check_shapes(&self, e: usize, weights: SwiGluView<'_>) -> Result<()> {
        let (dim, hidden) = (self.dim, self.hidden);
        let expected = [[hidden, dim], [dim, hidden], [hidden, dim]];
        for (((w, kind), expected), matrix) in
            weights.matrices().into_iter().zip(self.kinds[e]).zip(expected).zip(MATRICES)
        {
            let found = [w.rows(), w.columns()];
            if found != expected {
                return Err(Error::Shape { what: format!("expert {e} {matrix}"), expected, found });
            }
            if w.format() != kind.format() {
                let (expected, found) = (kind.format(), w.format());
                return Err(Error::of_expert(e, matrix, Error::Format { expected, found }));
            }
        }
        Ok(())
    }

    /// Computes `out[r] = f(x[r])` for every row of the dispatch with the weights of its expert, which lie wherever
    /// `weights(expert)` says. Only experts with rows are asked for. `out` is `[R, D]` and is overwritten.
    ///
    /// # Errors
    ///
    /// Where weights have another shape or format than the bank was made for; [`Error::InputNotFinite`] with int8
    /// activations, whose row is one of the dispatch.
    ///
    /// # Panics
    ///
    /// If the dispatch does not fit the bank, or `out` the dispatch.
    #[track_caller]
    pub fn forward<'w>(
        &self,
        weights: impl Fn(usize) -> SwiGluView<'w> + Sync,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let (count, dim) = (dispatch.rows(), self.dim);
        assert_eq!(
            (dispatch.experts(), dispatch.dim()),
            (self.experts(), dim),
            "experts and width of the rows"
        );
        assert_eq!(out.dim(), (count, dim), "shape of the output");
        let SwiGluScratch { groups, packed, jobs, panels } = scratch.of();
        groups.clear();
        groups.extend(with_rows(&dispatch).map(|(_, rows)| rows));
        for (e, _) in with_rows(&dispatch) {
            self.check_shapes(e, weights(e))?;
        }
        let packings = |matrices: &'static [usize]| {
            with_rows(&dispatch)
                .flat_map(move |(e, _)| matrices.iter().map(move |&m| self.kinds[e][m].packing()))
        };
        let activated = |e: usize| {
            let ([kind1, _, kind3], SwiGluView { w1, w3, .. }) = (self.kinds[e], weights(e));
            Product::Activated([(kind1, w1), (kind3, w3)])
        };
        let back = |e: usize| Product::Linear(self.kinds[e][1], weights(e).w2);
        let all = with_rows(&dispatch).count();
        // No pass of little work leaves this thread, and waking another would take longer.
        enter_if_worth(count.saturating_mul(self.hidden).saturating_mul(dim), || {
            let x = packed.pack(packings(&[0, 2]), groups, &dispatch)?;
            lay_out(jobs, with_rows(&dispatch).map(|(e, rows)| (e, rows, self.hidden)));
            let h = multiply(self.backend, x, jobs, dim, activated, panels)?;
            let h = packed.pack(packings(&[1]), groups, &h)?;
            lay_out(jobs, with_rows(&dispatch).map(|(e, rows)| (e, rows, dim)));
            multiply(self.backend, h, jobs, self.hidden, back, panels)?.copy_jobs_to(0..all, out);
            Ok(())
        })
    }
}

/// The experts that have rows, with their rows.
fn with_rows<'a>(dispatch: &'a Dispatch<'_>) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
    (0..dispatch.experts()).map(|e| (e, dispatch.rows_of(e))).filter(|(_, rows)| !rows.is_empty())
}

/// What a bank keeps between calls.
#[derive(Debug, Default)]
struct SwiGluScratch {
    groups: Vec<Range<usize>>,
    packed: PackedMemory,
    jobs: Vec<Job>,
    panels: Vec<Chunk>,
}

impl ScratchValue for SwiGluScratch {
    fn bytes(&self) -> usize {
        self.packed.bytes() + held(&self.groups) + held(&self.jobs) + held(&self.panels)
    }
}

/// A bank of SwiGLU experts of one shape, with all of their weights.
#[derive(Debug)]
pub struct SwiGluExperts {
    weights: Vec<SwiGluWeights>,
    bank: SwiGlu,
    fit: Vec<[Fit; 3]>,
}

impl SwiGluExperts {
    /// A bank of these experts, computed by this backend. Formats may differ from matrix to matrix.
    ///
    /// # Errors
    ///
    /// [`Error::NoExperts`], or [`Error::Shape`] where a matrix does not fit the first expert's w1.
    pub fn new(experts: Vec<SwiGluWeights>, backend: Backend) -> Result<Self> {
        let Some(first) = experts.first() else { return Err(Error::NoExperts) };
        let (hidden, dim) = (first.w1.rows(), first.w1.columns());
        let bank = SwiGlu::new(dim, hidden, formats(&experts), Activations::F32, backend)?;
        for (e, x) in experts.iter().enumerate() {
            bank.check_shapes(e, x.view())?;
        }
        let fit = experts.iter().map(|_| Default::default()).collect();
        Ok(Self { weights: experts, bank, fit })
    }

    /// The same bank with the input of its products treated so, where a matrix's format has such products; otherwise exact.
    pub fn with_input_precision(self, activations: Activations) -> Self {
        let SwiGlu { dim, hidden, backend, .. } = self.bank;
        let of = |format| Kind::of(format, activations, backend);
        let kinds = formats(&self.weights).map(|formats| formats.map(of)).collect();
        Self { bank: SwiGlu { dim, hidden, kinds, backend }, ..self }
    }

    /// How the bank is computed.
    pub fn bank(&self) -> &SwiGlu {
        &self.bank
    }

    /// Width of the hidden rows, H.
    pub fn hidden(&self) -> usize {
        self.bank.hidden
    }
}

fn formats(experts: &[SwiGluWeights]) -> impl Iterator<Item = [WeightFormat; 3]> + '_ {
    experts.iter().map(|x| x.view().matrices().map(WeightView::format))
}

impl Experts for SwiGluExperts {
    fn experts(&self) -> usize {
        self.bank.experts()
    }

    fn dim(&self) -> usize {
        self.bank.dim
    }

    fn forward(
        &self,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> CoreResult<()> {
        dispatch.check(self, &out)?;
        for (e, _) in with_rows(&dispatch) {
            let SwiGluWeights { w1, w2, w3 } = &self.weights[e];
            for (((fit, kind), w), matrix) in
                self.fit[e].iter().zip(self.bank.kinds[e]).zip([w1, w2, w3]).zip(MATRICES)
            {
                fit.check(kind, w).map_err(|error| CoreError::experts(Error::of_expert(e, matrix, error)))?;
            }
        }
        self.bank
            .forward(|e| self.weights[e].view(), dispatch, scratch, out)
            .map_err(|error| error.in_layer(CoreError::experts))
    }

    fn over_rows(&self, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> CoreResult<()> {
        over_rows(rows, work)
    }
}
