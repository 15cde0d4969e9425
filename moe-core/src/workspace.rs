//! Memory that a layer reuses from call to call.

use std::any::Any;

use ndarray::ArrayViewMut2;

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

    /// What a bank of experts keeps here.
    pub fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
}

/// A view of the first `rows * columns` floats of a buffer, which grows if it must. Contents are unspecified.
pub(crate) fn shaped(buffer: &mut Vec<f32>, rows: usize, columns: usize) -> ArrayViewMut2<'_, f32> {
    let len = rows * columns;
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    #[allow(clippy::unwrap_used, reason = "the slice has just the length of the shape")]
    ArrayViewMut2::from_shape((rows, columns), &mut buffer[..len]).unwrap()
}

/// A drawer for whatever types of scratch gates, routers and banks of experts keep, one value of each type.
#[derive(Debug, Default)]
pub struct Scratch {
    drawer: Vec<Box<dyn Any + Send + Sync>>,
}

impl Scratch {
    /// The value of type `S`, made by `Default` when it is first asked for.
    pub fn of<S: Any + Default + Send + Sync>(&mut self) -> &mut S {
        let at = match self.drawer.iter().position(|value| value.is::<S>()) {
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
        self.drawer[at].downcast_mut().unwrap()
    }
}
