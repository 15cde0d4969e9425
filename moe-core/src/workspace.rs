//! Memory that a layer reuses from call to call.

use std::any::Any;

use ndarray::ArrayView2;

use crate::memory::held;
use crate::{Assignments, Expected, RoutingPlan};

/// The buffers of a forward pass. One serves all layers of a model, in turn; it only grows.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) assignments: Assignments,
    pub(crate) plan: RoutingPlan,
    /// What the bank is told of: at most E.
    pub(crate) expected: Vec<Expected>,
    /// `[T, E]`.
    pub(crate) logits: Vec<f32>,
    /// `[R, D]`.
    pub(crate) outputs: Vec<f32>,
    /// D of the last pass.
    pub(crate) dim: usize,
    pub(crate) scratch: Scratch,
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan of the last forward pass; that of no tokens where it failed.
    pub fn plan(&self) -> &RoutingPlan {
        &self.plan
    }

    /// The router logits of the last forward pass, `[T, E]`, as the gate computed them; `[0, 0]` where the pass failed.
    pub fn logits(&self) -> ArrayView2<'_, f32> {
        rows_of(&self.logits, self.plan.tokens(), self.plan.experts())
    }

    /// What the experts made of the rows of the [`plan`](Self::plan) in the last forward pass, `[R, D]`; no rows where it failed.
    ///
    /// These are the terms of the combination before their weights: `fₑ(x)`, or `fₑ(wₑ · x)` where
    /// [weights are applied to the input](crate::ApplyWeights::Input). So `∂L/∂wₑ` of a loss by outputs is their product with
    /// `∂L/∂y` of their token, in the first case.
    pub fn outputs(&self) -> ArrayView2<'_, f32> {
        rows_of(&self.outputs, self.plan.rows(), self.dim)
    }

    /// Bytes of memory that it holds on to.
    pub fn bytes(&self) -> usize {
        let Self { assignments, plan, expected, logits, outputs, scratch, dim: _ } = self;
        let lists = held(expected) + held(logits) + held(outputs);
        assignments.bytes() + plan.bytes() + lists + scratch.bytes()
    }

    /// What a bank of experts keeps here.
    pub fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
}

/// The rows at the front of a buffer that a pass has filled.
fn rows_of(buffer: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    #[allow(clippy::unwrap_used, reason = "the slice has just the length of the shape")]
    ArrayView2::from_shape((rows, columns), &buffer[..rows * columns]).unwrap()
}

/// What may lie in a [`Scratch`].
pub trait ScratchValue: Any + Send + Sync {
    /// Bytes of memory that it holds on to, its own size left out.
    fn bytes(&self) -> usize;
}

/// A drawer for whatever types of scratch gates, routers and banks of experts keep, one value of each type.
#[derive(Default)]
pub struct Scratch {
    drawer: Vec<Box<dyn ScratchValue>>,
}

impl Scratch {
    /// The value of type `S`, made by `Default` when it is first asked for.
    pub fn of<S: ScratchValue + Default>(&mut self) -> &mut S {
        let at = match self.drawer.iter().position(|value| (&**value as &dyn Any).is::<S>()) {
            Some(at) => at,
            None => {
                self.drawer.push(Box::new(S::default()));
                self.drawer.len() - 1
            }
        };
        #[allow(
            clippy::unwrap_used,
            reason = "the value at this place has just been found to be, or made, an S"
        )]
        (&mut *self.drawer[at] as &mut dyn Any).downcast_mut().unwrap()
    }

    /// Bytes of memory that its values hold on to.
    pub fn bytes(&self) -> usize {
        held(&self.drawer)
            + self.drawer.iter().map(|value| size_of_val(&**value) + value.bytes()).sum::<usize>()
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("values", &self.drawer.len()).field("bytes", &self.bytes()).finish()
    }
}
