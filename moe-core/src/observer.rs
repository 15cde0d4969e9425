//! Watching what a layer does.

use ndarray::ArrayView2;

use crate::{Error, Result, RouteInput, RoutingPlan, TokenContext};

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
    /// The hidden states that gate and experts read, `[T, D]`; `None` where whoever routes has logits alone.
    pub hidden: Option<ArrayView2<'a, f32>>,
}

impl<'a> Routed<'a> {
    /// A routing of logits `[T, E]`, for whoever routes without a layer.
    ///
    /// # Errors
    ///
    /// If the context does not fit T tokens, or the plan has another number of tokens or experts.
    pub fn new(
        logits: ArrayView2<'a, f32>,
        plan: &'a RoutingPlan,
        context: TokenContext<'a>,
    ) -> Result<Self> {
        let input = RouteInput::new(logits, context)?;
        Error::check_shape("routing plan", logits.shape(), &[plan.tokens(), plan.experts()])?;
        Ok(Self::of(&input, plan, None))
    }

    /// What came of an input.
    pub(crate) fn of(
        input: &RouteInput<'a>,
        plan: &'a RoutingPlan,
        hidden: Option<ArrayView2<'a, f32>>,
    ) -> Self {
        let RouteInput { logits, context } = *input;
        Self { layer: context.layer, logits, plan, context, hidden }
    }

    /// What the router was given.
    pub fn input(&self) -> RouteInput<'a> {
        RouteInput { logits: self.logits, context: self.context }
    }
}

/// Is told of every routing. Any `FnMut(&Routed)` is one; `()` looks away.
pub trait Observer {
    /// Called once a layer and batch, after the plan is sealed and before the experts run.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from doing its work: a disk that is full, say. It ends the pass.
    fn routed(&mut self, routed: &Routed<'_>) -> Result<()>;
}

impl Observer for () {
    fn routed(&mut self, _: &Routed<'_>) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&Routed<'_>)> Observer for F {
    fn routed(&mut self, routed: &Routed<'_>) -> Result<()> {
        self(routed);
        Ok(())
    }
}
