//! The model: what it is made of, and one forward pass from top to bottom.
//!
//! T tokens of one or several sessions, D model width, V vocabulary.

use std::ops::ControlFlow;

use moe_core::{Experts, Gate, Locality, MoeLayer, PerSequence, Routed, Router, numerics};
use moe_kernels::{Activations, Backend, Linear, WeightMatrix, enter, vector};
use ndarray::ArrayView2;

use crate::attention::{Attention, AttentionPass};
use crate::batch::Batch;
use crate::budget::{CacheOf, CacheUse};
use crate::guess;
use crate::products::Products;
use crate::reserved::Reserved;
use crate::rope::Rope;
use crate::routers::no_layer;
use crate::session::ModelId;
use crate::workspace::{Workspace, matrix, matrix_of};
use crate::{Config, Error, LayerRouters, Observer, Result, Session, SessionOptions, Step};

/// A Mixtral model: immutable, shared by any number of sessions and threads.
#[derive(Debug)]
pub struct Model {
    pub(crate) id: ModelId,
    pub(crate) config: Config,
    pub(crate) compute: Compute,
    pub(crate) products: Products,
    /// `[V, D]`.
    pub(crate) embedding: WeightMatrix,
    pub(crate) rope: Rope,
    pub(crate) layers: Vec<Layer>,
    /// `[D]`.
    pub(crate) norm: Vec<f32>,
    /// D to V.
    pub(crate) head: Linear,
    /// Of experts under a budget.
    pub(crate) cache: Option<CacheOf>,
}

/// How a model computes. Backends give the same bits; the kinds of activations do not.
///
/// A [`Backend`] converts into it, with exact activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    /// The instruction set.
    pub backend: Backend,
    /// What products do to their activations. The gates' are exact always, so that rounding here does not choose among
    /// experts that differ in the last bits.
    pub activations: Activations,
}

impl From<Backend> for Compute {
    fn from(backend: Backend) -> Self {
        Self { backend, activations: Activations::F32 }
    }
}

/// One decoder layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// `[D]`.
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) attention: Attention,
    /// `[D]`.
    pub(crate) moe_norm: Vec<f32>,
    pub(crate) moe: MoeLayer,
}

impl Model {
    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How it computes.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// How its matrices are multiplied.
    pub fn products(&self) -> Products {
        self.products
    }

    /// What happened so far to experts that are [under a budget](crate::Loader::within); none where all lie in memory or are mapped.
    pub fn expert_cache(&self) -> Option<CacheUse> {
        self.cache.as_ref().map(CacheOf::counts)
    }

    /// The same model under other routing policies: `router(layer)` for each layer.
    pub fn with_routers(mut self, mut router: impl FnMut(usize) -> Box<dyn Router>) -> Self {
        self.layers = self
            .layers
            .into_iter()
            .enumerate()
            .map(|(n, layer)| Layer { moe: layer.moe.with_router(router(n)), ..layer })
            .collect();
        self
    }

    /// Puts another routing policy in the place of that of one layer, which is given back; the other layers stay as they are.
    ///
    /// What comes before the layer has the same bits as before; sessions hold keys and values of what was read, whatever read it.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a layer that the model does not have; [`Error::Layer`] with what the router says of the layer's number of
    /// experts ([`MoeLayer::replace_router`]). The layer then keeps its own.
    pub fn replace_router(&mut self, layer: usize, router: Box<dyn Router>) -> Result<Box<dyn Router>> {
        let count = self.layers.len();
        let found = self.layers.get_mut(layer).ok_or_else(|| no_layer(layer, count))?;
        found.moe.replace_router(router).map_err(|source| Error::Layer { layer, source })
    }

    /// Puts these routers in the place of its own, where they have one.
    ///
    /// # Errors
    ///
    /// As [`replace_router`](Self::replace_router).
    pub fn set_routers(&mut self, routers: &LayerRouters) -> Result<()> {
        for layer in 0..self.layers.len() {
            if let Some(router) = routers.shared(layer) {
                self.replace_router(layer, Box::new(router))?;
            }
        }
        Ok(())
    }

    /// The mixture-of-experts layer of a layer.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a layer that the model does not have.
    pub fn moe_layer(&self, layer: usize) -> Result<&MoeLayer> {
        let found = self.layers.get(layer).ok_or_else(|| no_layer(layer, self.layers.len()))?;
        Ok(&found.moe)
    }

    /// What a token's experts depend on: the weakest promise among the routers of all layers.
    pub fn locality(&self) -> Locality {
        let of_layer = |layer: &Layer| layer.moe.router().locality();
        self.layers.iter().map(of_layer).max().unwrap_or(Locality::Token)
    }

    /// What routes a layer of a step with these routers.
    pub(crate) fn router_at<'a>(&'a self, layer: usize, routers: Option<&'a LayerRouters>) -> &'a dyn Router {
        routers.and_then(|routers| routers.at(layer)).unwrap_or_else(|| self.layers[layer].moe.router())
    }

    /// The gate of one layer, for whoever trains it; `None` for a layer that the model does not have, or a gate that is no `G` or does
    /// not [let itself be changed](Gate::as_any_mut). That of a model as it is loaded does not: it reads its weight where the file
    /// lies. [`Loader::moe_layers`](crate::Loader::moe_layers) takes one that does, a [`LinearGate`](moe_core::LinearGate) say.
    pub fn gate_mut<G: Gate + 'static>(&mut self, layer: usize) -> Option<&mut G> {
        self.layers.get_mut(layer)?.moe.gate_mut()
    }

    /// The same model over other banks of experts: `bank(layer, own)` for each layer, made from its own.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] if a bank has another number of experts or another width.
    pub fn map_banks(
        mut self,
        mut bank: impl FnMut(usize, Box<dyn Experts>) -> Box<dyn Experts>,
    ) -> Result<Self> {
        let map = |(n, layer): (usize, Layer)| {
            let moe =
                layer.moe.map_bank(|own| bank(n, own)).map_err(|error| Error::moe(n, error, |row| row))?;
            Ok(Layer { moe, ..layer })
        };
        self.layers = self.layers.into_iter().enumerate().map(map).collect::<Result<_>>()?;
        Ok(self)
    }

    /// An empty session.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the context asked for is zero or beyond the model's.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        let shapes = self.layers.iter().map(|layer| layer.attention.shape);
        Session::new(self.id, shapes, self.config.max_positions, options)
    }

    /// Checks that it made a session.
    pub(crate) fn check_session(&self, session: &Session) -> Result<()> {
        if session.model() == self.id {
            return Ok(());
        }
        let (expected, found) = ("one that this model made".to_owned(), "one of another model".to_owned());
        Err(Error::Setting { setting: "session", expected, found })
    }

    /// Processes the tokens of one or several sessions in one pass, and gives the logits that were wanted, `[W, V]`, in the
    /// order of steps and tokens.
    ///
    /// A session's results do not depend on the other steps, nor on how its tokens are cut into passes, to the bit (with
    /// routers of token locality). If anything fails, no session takes up anything.
    ///
    /// Of tokens whose logits nobody wants, the last layer computes keys and values and nothing else, unless the observer
    /// [wants all rows](Observer::wants_all_rows) or the layer's router looks at other tokens than the one that it routes.
    ///
    /// # Errors
    ///
    /// [`Error::Step`] naming the step where several are in the pass and one of them is at fault: the pass may succeed without it.
    /// [`Error::EmptyPrompt`] for a step without tokens; [`Error::TokenOutOfRange`]; [`Error::ContextOverflow`];
    /// [`Error::Setting`] for a session of another model; [`Error::OutOfMemory`]; [`Error::NotFinite`], naming layer and stage, where NaN or an infinity
    /// arises; [`Error::Layer`] where a layer fails otherwise; [`Error::Weights`] where bf16 activations meet a weight that is too
    /// small; [`Error::Busy`] where other passes have taken what this one needs and it is called on a worker of a thread pool,
    /// which must not wait; [`Error::Observer`] where the observer fails, and [`Error::Stopped`] at its wish.
    pub fn forward<'w>(
        &self,
        steps: &mut [Step<'_>],
        workspace: &'w mut Workspace,
        observer: &mut dyn Observer,
    ) -> Result<ArrayView2<'w, f32>> {
        if steps.is_empty() {
            return Ok(matrix_of(&[], 0, self.config.vocab_size));
        }
        self.begin(steps, workspace)?;
        let tokens = steps.iter().map(|step| step.tokens.len()).sum();
        let reserved = Reserved::new(&self.layers, tokens, &mut *workspace)?;
        enter(|| self.pass(steps, &mut *reserved.workspace, observer))
            .map_err(|error| error.in_steps(steps.iter().map(|step| step.tokens.len())))?;
        drop(reserved);
        for step in steps.iter_mut() {
            step.session.advance(step.tokens);
        }
        Ok(matrix_of(&workspace.logits, workspace.batch.wanted(), self.config.vocab_size))
    }

    /// Checks the steps, makes room for them, and lays out the batch.
    fn begin(&self, steps: &mut [Step<'_>], workspace: &mut Workspace) -> Result<()> {
        workspace.batch.clear();
        let count = steps.len();
        for (n, step) in steps.iter_mut().enumerate() {
            self.begin_step(step, &mut workspace.batch).map_err(|error| error.of_step(n, count))?;
        }
        Ok(())
    }

    fn begin_step(&self, step: &mut Step<'_>, batch: &mut Batch) -> Result<()> {
        let Step { session, tokens, .. } = &mut *step;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let vocabulary = self.config.vocab_size;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(Error::TokenOutOfRange { token, vocabulary });
        }
        self.check_session(session)?;
        session.reserve(tokens.len())?;
        batch.push(step)
    }

    /// The pass itself.
    fn pass(
        &self,
        steps: &mut [Step<'_>],
        workspace: &mut Workspace,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let Workspace { batch, linear, attention, moe, .. } = workspace;
        let Config { hidden_size: dim, vocab_size, rms_norm_eps: eps, .. } = self.config;
        let backend = self.compute.backend;
        let all_rows = batch.wanted() == batch.rows() || observer.wants_all_rows();

        let reads_ahead = self.cache.as_ref().is_some_and(CacheOf::reads_ahead);

        // hidden = embedding[token]
        let mut hidden = matrix(&mut workspace.hidden, batch.rows(), dim)?;
        for (&token, mut row) in batch.ids().iter().zip(hidden.rows_mut()) {
            if let Some(row) = row.as_slice_mut() {
                self.embedding.widen_row(token as usize, row);
            }
        }
        batch.fill_angles(&self.rope)?;

        for (n, layer) in self.layers.iter().enumerate() {
            // of what follows the last layer's keys and values, nobody looks at other rows than those wanted
            let is_last = n + 1 == self.layers.len();
            let by_token = |step: &Step<'_>| self.router_at(n, step.routers).locality() == Locality::Token;
            let only_wanted = is_last && !all_rows && steps.iter().all(by_token);

            // hidden += attention(norm(hidden))
            let mut normed = matrix(&mut workspace.normed, batch.rows(), dim)?;
            vector::rms_norm(backend, hidden.view(), &layer.attention_norm, eps, normed.view_mut());
            let pass = AttentionPass {
                layer: n,
                rope: &self.rope,
                only_wanted,
                batch: &mut *batch,
                steps: &mut *steps,
            };
            let mut delta = layer.attention.forward(normed, pass, attention, linear, &mut workspace.delta)?;
            if only_wanted {
                hidden = batch.wanted_of(hidden);
            }
            hidden += &delta;
            check_finite(hidden.view(), batch, Some(n), "attention")?;
            let mixed = layer.attention.mixed(attention, batch.rows());
            observer.attended(n, mixed).map_err(|source| Error::Observer { source })?;

            // a bank that reads its experts from a disk hears early what the next layer is likely to want
            if let Some(next) = self.layers.get(n + 1).filter(|_| reads_ahead) {
                let (compute, chosen) = ((self.compute, eps), self.config.experts_per_token);
                guess::expect(next, chosen, compute, hidden.view(), &mut workspace.normed, moe.scratch())?;
            }

            // hidden += moe(norm(hidden))
            let mut normed = matrix(&mut workspace.normed, batch.rows(), dim)?;
            vector::rms_norm(backend, hidden.view(), &layer.moe_norm, eps, normed.view_mut());
            let mut told = OfLayer(&mut *observer);
            let steps = &*steps;
            let each = PerSequence::new(steps.len(), |s| self.router_at(n, steps[s].routers));
            let given = steps.iter().any(|step| step.routers.is_some());
            let router: &dyn Router = if given { &each } else { layer.moe.router() };
            layer
                .moe
                .forward_with(router, normed.view(), batch.context(), moe, &mut told, delta.view_mut())
                .map_err(|error| Error::moe(n, error, |row| batch.token(row)))?;
            hidden += &delta;
            check_finite(hidden.view(), batch, Some(n), "residual stream")?;

            match observer.layer_done(n, hidden.view()) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Err(Error::Stopped),
                Err(source) => return Err(Error::Observer { source }),
            }
        }

        // logits = head(norm(hidden)), of the wanted rows only
        let hidden = batch.wanted_of(hidden);
        batch.narrow();
        let mut normed = matrix(&mut workspace.normed, batch.rows(), dim)?;
        vector::rms_norm(backend, hidden.view(), &self.norm, eps, normed.view_mut());
        let mut logits = matrix(&mut workspace.logits, batch.rows(), vocab_size)?;
        self.head
            .forward(normed.view(), linear, logits.view_mut())
            .map_err(Error::weights(None, "lm_head"))?;
        check_finite(logits.view(), batch, None, "logits")
    }
}

/// An observer of the model, as a layer tells it of its routing.
struct OfLayer<'a>(&'a mut dyn Observer);

impl moe_core::Observer for OfLayer<'_> {
    fn routed(&mut self, routed: &Routed<'_>) -> moe_core::Result<()> {
        self.0.routed(routed).map_err(moe_core::Error::observer)
    }
}

fn check_finite(
    values: ArrayView2<'_, f32>,
    batch: &Batch,
    layer: Option<usize>,
    stage: &'static str,
) -> Result<()> {
    match numerics::row_not_finite(values) {
        None => Ok(()),
        Some((row, value)) => Err(Error::NotFinite { layer, stage, token: batch.token(row), value }),
    }
}
