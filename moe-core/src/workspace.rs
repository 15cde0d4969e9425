//! Memory that a layer reuses from call to call.

use std::any::Any;

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
    pub(crate) scratch: Scratch,
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// The plan of the last forward pass.
    pub fn plan(&self) -> &RoutingPlan {
        &self.plan
    }

    /// Bytes of memory that it holds on to.
    pub fn bytes(&self) -> usize {
        let Self { assignments, plan, expected, logits, outputs, scratch } = self;
        let lists = held(expected) + held(logits) + held(outputs);
        assignments.bytes() + plan.bytes() + lists + scratch.bytes()
    }

    /// What a bank of experts keeps here.
    pub fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
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
