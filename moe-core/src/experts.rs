//! The bank of experts, working on rows grouped by expert.

use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};

use crate::memory::{held, matrix};
use crate::{Dispatch, Error, Result, Scratch, ScratchValue};

/// An expert that a pass may want, as a bank hears beforehand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The expert.
    pub expert: usize,
    /// How sure that is, in 0..=1; at 1 the rows are on their way.
    pub certainty: f32,
}

/// A pass that is about to begin, as a bank hears of it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Reserve {
    /// Index of the layer in its model.
    pub layer: usize,
    /// Number of tokens in the batch, T.
    pub tokens: usize,
    /// Whether the bank may wait until another pass gives something back: never on a worker of a thread pool.
    pub may_wait: bool,
}

impl Reserve {
    /// A pass of `tokens` through the layer of that index.
    pub fn new(layer: usize, tokens: usize, may_wait: bool) -> Self {
        Self { layer, tokens, may_wait }
    }
}

/// A whole bank of experts. It alone decides how the work over experts, rows and columns is scheduled.
///
/// Fast banks implement this; [`PerExpert`] makes a bank of single experts.
///
/// # Waiting
///
/// Inside [`forward`](Self::forward) a bank may wait for a disk or a network, and never for another pass. Passes share the
/// workers of a thread pool, and a worker that waits for its own tasks meanwhile takes up whatever else there is, another
/// caller's whole pass too. That pass then stands on top of the one below, which cannot go on before it ends: if it waited for
/// what the lower one holds, both would wait for ever.
///
/// A bank that has only so much of something, bytes of a cache say, gives each pass its share in [`reserve`](Self::reserve),
/// which whoever runs a pass calls before entering the pool, and takes it back in [`release`](Self::release). The share lies
/// in the pass's [`Scratch`]: banks of several layers over one store look there for what an earlier layer has reserved, so
/// that no pass waits while it holds a part. A pass through several stores reserves in the order of layers.
pub trait Experts: Send + Sync {
    /// Number of experts, E.
    fn experts(&self) -> usize;

    /// Width of a row, D, which is also the width of its output.
    fn dim(&self) -> usize;

    /// Computes `out[r] = expert(r)(x[r])` for every row r of the dispatch, x being its token's hidden state, times the
    /// row's [input weight](Dispatch::input_weights) where there is one.
    ///
    /// `out` is `[R, D]` and must be overwritten; its contents before are unspecified. A row's result must not depend on the
    /// other rows. Scratch that should outlive the call is taken from `scratch`.
    ///
    /// # Errors
    ///
    /// Whatever the bank's weights may run into: a disk, a network ([`Error::experts`]).
    fn forward(
        &self,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()>;

    /// Hears which experts of a model's `layer` are wanted soon, each at most once in a call: from the layer itself, at
    /// certainty 1, as soon as the routing is sealed, and from whoever guesses earlier, at less. Later calls add to earlier ones.
    ///
    /// A bank whose weights are far away starts to bring them here. It must not wait, and results must not depend on it.
    /// By default a bank does not care.
    fn expect(&self, layer: usize, experts: &[Expected]) {
        let _ = (layer, experts);
    }

    /// Sets aside what a coming pass needs of something that passes share; later in the pass [`forward`](Self::forward) is
    /// given the same `scratch`. By default there is no such thing.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where another pass would have to give back first, and the bank may not wait.
    fn reserve(&self, request: &Reserve, scratch: &mut Scratch) -> Result<()> {
        let _ = (request, scratch);
        Ok(())
    }

    /// Gives back what [`reserve`](Self::reserve) has set aside: at the end of a pass, also of one that failed, and perhaps
    /// where nothing is set aside.
    fn release(&self, scratch: &mut Scratch) {
        let _ = scratch;
    }

    /// Runs `work(first, rows)` on stretches of `rows` that cover all of them, `first` being the place of a stretch's first
    /// row, with the threads that the bank itself uses: by default on this thread, as one stretch.
    ///
    /// The layer combines outputs with it. Rows do not depend on each other, so the cut changes no result.
    ///
    /// # Errors
    ///
    /// That of the earliest stretch that `work` fails on.
    fn over_rows(&self, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> Result<()> {
        work(0, rows)
    }
}

/// What [`Experts::over_rows`] runs: on a stretch of rows, with the place of the first.
pub type RowWork<'a> = dyn Fn(usize, ArrayViewMut2<'_, f32>) -> Result<()> + Sync + 'a;

/// What a pointer to a bank does: as its target.
macro_rules! forward_to_target {
    ($($pointer:ty),*) => {$(
        impl<T: Experts + ?Sized> Experts for $pointer {
            fn experts(&self) -> usize {
                (**self).experts()
            }

            fn dim(&self) -> usize {
                (**self).dim()
            }

            fn forward(
                &self,
                dispatch: Dispatch<'_>,
                scratch: &mut Scratch,
                out: ArrayViewMut2<'_, f32>,
            ) -> Result<()> {
                (**self).forward(dispatch, scratch, out)
            }

            fn expect(&self, layer: usize, experts: &[Expected]) {
                (**self).expect(layer, experts);
            }

            fn reserve(&self, request: &Reserve, scratch: &mut Scratch) -> Result<()> {
                (**self).reserve(request, scratch)
            }

            fn release(&self, scratch: &mut Scratch) {
                (**self).release(scratch);
            }

            fn over_rows(&self, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> Result<()> {
                (**self).over_rows(rows, work)
            }
        }
    )*};
}

forward_to_target!(&T, Box<T>, Arc<T>);

/// One expert: a feed-forward network from rows of width D to rows of width D.
pub trait Expert: Send + Sync {
    /// Width of a row, D.
    fn dim(&self) -> usize;

    /// Computes `out[r] = f(rows[r])`; both are `[N, D]`, `out` is overwritten.
    ///
    /// # Errors
    ///
    /// Whatever the expert may run into ([`Error::experts`]).
    fn forward(&self, rows: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) -> Result<()>;
}

/// A bank of single experts, run one after the other. An expert without rows is not called.
#[derive(Debug)]
pub struct PerExpert<X> {
    experts: Vec<X>,
    dim: usize,
}

impl<X: Expert> PerExpert<X> {
    /// A bank of these experts.
    ///
    /// # Errors
    ///
    /// If there is none, or their widths differ.
    pub fn new(experts: Vec<X>) -> Result<Self> {
        let Some(dim) = experts.first().map(Expert::dim) else {
            return Err(Error::Length { what: "bank of experts", expected: 1, found: 0 });
        };
        for x in &experts {
            Error::check_shape("expert width", &[dim], &[x.dim()])?;
        }
        Ok(Self { experts, dim })
    }
}

impl<X: Expert> Experts for PerExpert<X> {
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
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        dispatch.check(self, &out)?;
        let Gathered(gathered) = scratch.of();
        for (e, expert) in self.experts.iter().enumerate() {
            let range = dispatch.rows_of(e);
            if !range.is_empty() {
                let mut rows = matrix(gathered, range.len(), self.dim, "rows of an expert")?;
                dispatch.gather(range.clone(), rows.view_mut());
                expert.forward(rows.view(), out.slice_axis_mut(Axis(0), Slice::from(range)))?;
            }
        }
        Ok(())
    }
}

/// The rows of one expert, side by side.
#[derive(Debug, Default)]
struct Gathered(Vec<f32>);

impl ScratchValue for Gathered {
    fn bytes(&self) -> usize {
        held(&self.0)
    }
}
