//! The mixture-of-experts layer: gate, router, experts, and the one way a batch goes through them.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};

use crate::memory::{matrix, reserve};
use crate::numerics;
use crate::{
    Assignments, Dispatch, Error, Expected, Experts, Gate, Observer, Reserve, Result, RouteInput, Routed,
    Router, RoutingPlan, Stage, TokenContext, Workspace, combine_from,
};

/// Where the combination weights enter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApplyWeights {
    /// `y = Σ wₑ · fₑ(x)`, as in Mixtral and nearly everywhere.
    #[default]
    Output,
    /// `y = Σ fₑ(wₑ · x)`, as in Llama 4.
    Input,
}

/// A sparse mixture-of-experts layer: `y = Σₑ wₑ(x) · fₑ(x)` over the experts that the router chose for x.
///
/// It is immutable and shared freely; whatever changes is an argument.
pub struct MoeLayer {
    index: usize,
    gate: Box<dyn Gate>,
    router: Box<dyn Router>,
    bank: Box<dyn Experts>,
    apply_weights: ApplyWeights,
}

impl MoeLayer {
    /// A layer from its three parts.
    ///
    /// # Errors
    ///
    /// If gate and bank disagree on the number of experts or the width of a hidden state.
    pub fn new(gate: Box<dyn Gate>, router: Box<dyn Router>, bank: Box<dyn Experts>) -> Result<Self> {
        check_gate(&*gate, &*bank)?;
        Ok(Self { index: 0, gate, router, bank, apply_weights: ApplyWeights::default() })
    }

    /// The same layer, known as the `index`-th of its model in errors and to observers.
    pub fn with_index(self, index: usize) -> Self {
        Self { index, ..self }
    }

    /// The same layer under another routing policy.
    pub fn with_router(self, router: Box<dyn Router>) -> Self {
        Self { router, ..self }
    }

    /// Puts another routing policy in the place of the layer's own, which is given back.
    ///
    /// The router is first asked to route a batch of no tokens, so that one that cannot work with E experts is refused here. What
    /// it can only say of tokens, it says in [`forward`](Self::forward).
    ///
    /// # Errors
    ///
    /// What the router reports of that batch, or assigns in it; the layer then keeps its own.
    pub fn replace_router(&mut self, router: Box<dyn Router>) -> Result<Box<dyn Router>> {
        self.check_router(&*router)?;
        Ok(std::mem::replace(&mut self.router, router))
    }

    /// Puts another gate in the place of the layer's own, which is given back.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if it is of another number of experts or another width; the layer then keeps its own.
    pub fn replace_gate(&mut self, gate: Box<dyn Gate>) -> Result<Box<dyn Gate>> {
        check_gate(&*gate, &*self.bank)?;
        Ok(std::mem::replace(&mut self.gate, gate))
    }

    /// Has a router route a batch of no tokens, which shows whether it can do with the layer's number of experts.
    ///
    /// # Errors
    ///
    /// What it reports of that batch, or assigns in it.
    pub fn check_router(&self, router: &dyn Router) -> Result<()> {
        let (mut assignments, mut plan, shape) =
            (Assignments::new(), RoutingPlan::new(), [0, self.experts()]);
        assignments.reset(shape[0], shape[1])?;
        let context = TokenContext::new().with_token_ids(&[]).at_layer(self.index);
        router.route(&RouteInput { logits: Array2::zeros(shape).view(), context }, &mut assignments)?;
        plan.seal(&assignments)?;
        Error::check_shape("routing plan", &shape, &[plan.tokens(), plan.experts()])
    }

    /// The same layer over another bank, made from its own: one that wraps it, say.
    ///
    /// # Errors
    ///
    /// If the new bank has another number of experts or another width.
    pub fn map_bank(self, bank: impl FnOnce(Box<dyn Experts>) -> Box<dyn Experts>) -> Result<Self> {
        let Self { index, apply_weights, .. } = self;
        let layer = Self::new(self.gate, self.router, bank(self.bank))?;
        Ok(layer.with_index(index).applying_weights(apply_weights))
    }

    /// The same layer, with the combination weights applied there.
    pub fn applying_weights(self, apply_weights: ApplyWeights) -> Self {
        Self { apply_weights, ..self }
    }

    /// Its index in its model; 0 for a layer alone.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.bank.experts()
    }

    /// Width of a hidden state, D.
    pub fn dim(&self) -> usize {
        self.bank.dim()
    }

    /// The layer's gate.
    pub fn gate(&self) -> &dyn Gate {
        &*self.gate
    }

    /// The layer's gate, for whoever trains it; `None` if it is no `G`, or one that does not
    /// [let itself be changed](Gate::as_any_mut).
    ///
    /// A gate that is given another shape is an error of the next pass.
    pub fn gate_mut<G: Gate + 'static>(&mut self) -> Option<&mut G> {
        self.gate.as_any_mut()?.downcast_mut()
    }

    /// The layer's own router.
    pub fn router(&self) -> &dyn Router {
        &*self.router
    }

    /// The layer's bank of experts.
    pub fn bank(&self) -> &dyn Experts {
        &*self.bank
    }

    /// Tells the bank of experts that a coming pass may want, for whoever can guess before the layer routes.
    ///
    /// [`forward`](Self::forward) tells it of those that were chosen.
    pub fn expect(&self, experts: &[Expected]) {
        self.bank.expect(self.index, experts);
    }

    /// Sets aside what a pass of `tokens` needs of something that the bank's passes share, before the pass enters a thread
    /// pool; `may_wait` is false on a thread of one. A bank that shares nothing has nothing to reserve.
    ///
    /// [`forward`](Self::forward) does not call this: a model reserves for all of its layers at once. Whoever calls it calls
    /// [`release`](Self::release) after the pass, whether or not either succeeded.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] where that would mean to wait.
    pub fn reserve(&self, tokens: usize, may_wait: bool, workspace: &mut Workspace) -> Result<()> {
        self.bank.reserve(&Reserve::new(self.index, tokens, may_wait), &mut workspace.scratch)
    }

    /// Gives back what [`reserve`](Self::reserve) has set aside.
    pub fn release(&self, workspace: &mut Workspace) {
        self.bank.release(&mut workspace.scratch);
    }

    /// Computes the layer's output for T tokens; `hidden` and `y` are `[T, D]`, `y` is overwritten.
    ///
    /// A token that no expert received gets a zero row. What came about on the way is there to be read, for a
    /// backward pass say: the plan, the logits and the experts' outputs in the [workspace](Workspace) until its next pass, and the
    /// logits and hidden states of every layer by an [observer](Routed).
    ///
    /// # Errors
    ///
    /// Shapes that do not fit; what gate, router or experts report; a plan that cannot be sealed; logits or outputs that are
    /// not finite ([`Error::NotFinite`]); no memory for the workspace ([`Error::OutOfMemory`]).
    pub fn forward(
        &self,
        hidden: ArrayView2<'_, f32>,
        context: TokenContext<'_>,
        workspace: &mut Workspace,
        observer: &mut dyn Observer,
        y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.forward_with(&*self.router, hidden, context, workspace, observer, y)
    }

    /// [`forward`](Self::forward) under another routing policy.
    ///
    /// # Errors
    ///
    /// As `forward`.
    pub fn forward_with(
        &self,
        router: &dyn Router,
        hidden: ArrayView2<'_, f32>,
        context: TokenContext<'_>,
        workspace: &mut Workspace,
        observer: &mut dyn Observer,
        y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let passed = self.pass(router, hidden, context, workspace, observer, y);
        if passed.is_err() {
            // Logits or outputs may be those of one pass, and the plan of another.
            workspace.plan.clear();
        }
        passed
    }

    fn pass(
        &self,
        router: &dyn Router,
        hidden: ArrayView2<'_, f32>,
        context: TokenContext<'_>,
        workspace: &mut Workspace,
        observer: &mut dyn Observer,
        y: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        let (tokens, dim, experts) = (hidden.nrows(), self.dim(), self.experts());
        Error::check_shape("layer input", &[tokens, dim], hidden.shape())?;
        Error::check_shape("layer output", &[tokens, dim], y.shape())?;
        let context = context.at_layer(self.index);
        context.check_for(tokens, experts)?;
        let Workspace { assignments, plan, expected, logits, outputs, dim: of_outputs, scratch } = workspace;
        *of_outputs = dim;
        assignments.reset(tokens, experts)?;

        // Gate: one logit for each token and expert.
        let mut logits = matrix(logits, tokens, experts, "router logits")?;
        self.gate.logits(hidden, &context, scratch, logits.view_mut())?;
        let input = RouteInput { logits: logits.view(), context };
        self.check_logits(&input)?;

        // Router: who works on what; sealing makes it trustworthy, and the bank hears of it at once.
        router.route(&input, assignments)?;
        plan.seal(assignments)?;
        Error::check_shape("routing plan", &[tokens, experts], &[plan.tokens(), plan.experts()])?;
        expected.clear();
        reserve(expected, experts, "expected experts")?;
        expected.extend(plan.active_experts().map(|expert| Expected { expert, certainty: 1.0 }));
        self.expect(expected);
        observer.routed(&Routed::of(&input, plan, Some(hidden)))?;

        // Experts: the whole bank at once, reading each row's token where it lies.
        let mut outputs = matrix(outputs, plan.rows(), dim, "outputs of the experts")?;
        let dispatch = Dispatch::of(plan, hidden, self.apply_weights, self.index);
        self.bank.forward(dispatch, scratch, outputs.view_mut())?;

        // Combine: back to token order, and a look at each stretch of tokens while it is in the cache.
        let (outputs, weighted) = (outputs.view(), self.apply_weights == ApplyWeights::Output);
        self.bank.over_rows(y, &|first, mut y| {
            combine_from(first, plan, outputs, weighted, y.view_mut());
            self.check_finite(first, y.view(), Stage::LayerOutput)
        })
    }

    /// Padding is not routed, whatever it holds.
    fn check_logits(&self, input: &RouteInput<'_>) -> Result<()> {
        let of_all = self.check_finite(0, input.logits, Stage::RouterLogits);
        if of_all.is_ok() || input.context.padding.is_none() {
            return of_all;
        }
        let row = |t| input.logits.slice_axis(Axis(0), Slice::from(t..t + 1));
        input.present().try_for_each(|t| self.check_finite(t, row(t), Stage::RouterLogits))
    }

    fn check_finite(&self, first: usize, values: ArrayView2<'_, f32>, stage: Stage) -> Result<()> {
        match numerics::row_not_finite(values) {
            None => Ok(()),
            Some((row, value)) => {
                Err(Error::NotFinite { layer: self.index, stage, token: first + row, value })
            }
        }
    }
}

/// Whether a gate is of as many experts as a bank, and of the same width.
fn check_gate(gate: &dyn Gate, bank: &dyn Experts) -> Result<()> {
    Error::check_shape("gate weight", &[bank.experts(), bank.dim()], &[gate.experts(), gate.dim()])
}

impl std::fmt::Debug for MoeLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MoeLayer")
            .field("index", &self.index)
            .field("experts", &self.experts())
            .field("dim", &self.dim())
            .field("apply_weights", &self.apply_weights)
            .finish_non_exhaustive()
    }
}
