//! Watching what a layer does.

use ndarray::ArrayView2;

use crate::{RoutingPlan, TokenContext};

/// One layer's routing of one batch.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Routed<'a> {
    /// Index of the layer.
    pub layer: usize,
    /// What the router was given, `[T, E]`.
    pub logits: ArrayView2<'a, f32>,
    /// What came of it.
    pub plan: &'a RoutingPlan,
    /// Sequences, positions, ids.
    pub context: TokenContext<'a>,
}

impl<'a> Routed<'a> {
    pub(crate) fn new(logits: ArrayView2<'a, f32>, plan: &'a RoutingPlan, context: TokenContext<'a>) -> Self {
        Self { layer: context.layer, logits, plan, context }
    }
}

/// Is told of every routing. Any `FnMut(&Routed)` is one; `()` looks away.
pub trait Observer {
    /// Called once a layer and batch, after the plan is sealed and before the experts run.
    fn routed(&mut self, routed: &Routed<'_>);
}

impl Observer for () {
    fn routed(&mut self, _: &Routed<'_>) {}
}

impl<F: FnMut(&Routed<'_>)> Observer for F {
    fn routed(&mut self, routed: &Routed<'_>) {
        self(routed);
    }
}
