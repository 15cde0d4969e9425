//! The model: what it is made of, and one forward pass from top to bottom.
//!
//! T tokens of one or several sessions, D model width, V vocabulary.

use moe_core::{Experts, MoeLayer, Routed, Router, TokenContext, numerics};
use moe_kernels::attention::{AttentionShape, attend};
use moe_kernels::{Activations, Backend, Linear, WeightMatrix, enter, vector};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};

use crate::reserved::Reserved;
use crate::rope::Rope;
use crate::workspace::{Workspace, matrix, matrix_of};
use crate::{Config, Error, Observer, Result, Session, SessionOptions};

/// A Mixtral model: immutable, shared by any number of sessions and threads.
#[derive(Debug)]
pub struct Model {
    pub(crate) config: Config,
    pub(crate) compute: Compute,
    /// `[V, D]`.
    pub(crate) embedding: WeightMatrix,
    pub(crate) rope: Rope,
    pub(crate) layers: Vec<Layer>,
    /// `[D]`.
    pub(crate) norm: Vec<f32>,
    /// D to V.
    pub(crate) head: Linear,
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
    /// D to heads · head_dim.
    pub(crate) q: Linear,
    /// D to kv_heads · head_dim.
    pub(crate) k: Linear,
    /// D to kv_heads · head_dim.
    pub(crate) v: Linear,
    /// heads · head_dim to D.
    pub(crate) o: Linear,
    pub(crate) shape: AttentionShape,
    /// `[D]`.
    pub(crate) moe_norm: Vec<f32>,
    pub(crate) moe: MoeLayer,
}

/// Which of a step's tokens are to have their logits computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// None: the tokens are read only.
    None,
    /// The last: what the next token is drawn from.
    #[default]
    Last,
    /// Every one.
    All,
}

/// One session's part of a forward pass.
#[derive(Debug)]
#[non_exhaustive]
pub struct Step<'a> {
    /// The session, which takes the tokens up if the pass succeeds.
    pub session: &'a mut Session,
    /// The tokens that follow what it holds, at least one.
    pub tokens: &'a [u32],
    /// Which logits to compute.
    pub wanted: Wanted,
}

impl<'a> Step<'a> {
    /// These tokens after what the session holds; the logits of the last are wanted.
    pub fn new(session: &'a mut Session, tokens: &'a [u32]) -> Self {
        Self { session, tokens, wanted: Wanted::Last }
    }

    /// The same, with other logits wanted.
    pub fn wanted(self, wanted: Wanted) -> Self {
        Self { wanted, ..self }
    }
}

impl Wanted {
    /// The places among `tokens` tokens.
    fn range(self, tokens: usize) -> std::ops::Range<usize> {
        match self {
            Self::None => tokens..tokens,
            Self::Last => tokens - 1..tokens,
            Self::All => 0..tokens,
        }
    }
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
            let moe = layer.moe.map_bank(|own| bank(n, own)).map_err(|error| Error::moe(n, error))?;
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
        Session::new(&self.config, options)
    }

    /// Processes the tokens of one or several sessions in one pass, and gives the logits that were wanted, `[W, V]`, in the
    /// order of steps and tokens.
    ///
    /// A session's results do not depend on the other steps, nor on how its tokens are cut into passes, to the bit (with
    /// routers of token locality). If anything fails, no session takes up anything.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`] for a step without tokens; [`Error::TokenOutOfRange`]; [`Error::ContextOverflow`];
    /// [`Error::Setting`] for a session of a model of another shape; [`Error::OutOfMemory`]; [`Error::NotFinite`] or [`Error::Moe`], naming layer and stage, where NaN or an infinity
    /// arises; [`Error::Layer`] where a layer fails otherwise; [`Error::Weights`] where bf16 activations meet a weight that is too
    /// small; [`Error::Busy`] where other passes have taken what this one needs and it is called on a worker of a thread pool,
    /// which must not wait; [`Error::Stopped`] at the observer's wish.
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
        enter(|| self.pass(steps, &mut *reserved.workspace, observer))?;
        drop(reserved);
        for step in steps.iter_mut() {
            step.session.advance(step.tokens);
        }
        let wanted = steps.iter().map(|step| step.wanted.range(step.tokens.len()).len()).sum();
        Ok(matrix_of(&workspace.logits, wanted, self.config.vocab_size))
    }

    /// Checks the steps, makes room for them, and lays out the batch.
    fn begin(&self, steps: &mut [Step<'_>], workspace: &mut Workspace) -> Result<()> {
        let Workspace { ids, positions, offsets, .. } = workspace;
        ids.clear();
        positions.clear();
        offsets.clear();
        offsets.push(0);
        for Step { session, tokens, .. } in steps {
            if tokens.is_empty() {
                return Err(Error::EmptyPrompt);
            }
            let vocabulary = self.config.vocab_size;
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
                return Err(Error::TokenOutOfRange { token, vocabulary });
            }
            if !session.cache().fits(&self.config) {
                return Err(Error::Setting {
                    setting: "session",
                    expected: "one that this model made".to_owned(),
                    found: "one of a model of another shape".to_owned(),
                });
            }
            let position = session.position();
            session.reserve(tokens.len())?;
            ids.extend_from_slice(tokens);
            positions.extend(position..position + tokens.len());
            offsets.push(ids.len());
        }
        Ok(())
    }

    /// The pass itself.
    fn pass(
        &self,
        steps: &mut [Step<'_>],
        workspace: &mut Workspace,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let Workspace { ids, positions, offsets, angles, linear, attention, moe, .. } = workspace;
        let Config { hidden_size: dim, heads, kv_heads, head_dim, rms_norm_eps: eps, .. } = self.config;
        let (tokens, backend) = (ids.len(), self.compute.backend);
        let context =
            TokenContext::new().with_sequences(offsets).with_positions(positions).with_token_ids(ids);
        let mut hidden = matrix(&mut workspace.hidden, tokens, dim)?;
        let mut normed = matrix(&mut workspace.normed, tokens, dim)?;
        let mut delta = matrix(&mut workspace.delta, tokens, dim)?;
        let mut q = matrix(&mut workspace.q, tokens, heads * head_dim)?;
        let mut k = matrix(&mut workspace.k, tokens, kv_heads * head_dim)?;
        let mut v = matrix(&mut workspace.v, tokens, kv_heads * head_dim)?;
        let mut attended = matrix(&mut workspace.attended, tokens, heads * head_dim)?;

        // hidden = embedding[token]
        for (&token, mut row) in ids.iter().zip(hidden.rows_mut()) {
            if let Some(row) = row.as_slice_mut() {
                self.embedding.widen_row(token as usize, row);
            }
        }
        self.rope.fill(positions, angles);

        for (n, layer) in self.layers.iter().enumerate() {
            let at = |matrix| Error::weights(Some(n), matrix);
            // hidden += o(attention(rotated q, rotated k, v of norm(hidden)))
            vector::rms_norm(backend, hidden.view(), &layer.attention_norm, eps, normed.view_mut());
            for (map, name) in [(&layer.q, "q_proj"), (&layer.k, "k_proj"), (&layer.v, "v_proj")] {
                map.check().map_err(at(name))?;
            }
            let (maps, qkv) = ([&layer.q, &layer.k, &layer.v], [q.view_mut(), k.view_mut(), v.view_mut()]);
            Linear::forward_each(maps, normed.view(), linear, qkv).map_err(at("q_proj, k_proj, v_proj"))?;
            self.rope.rotate(angles, flat(&mut q), heads * head_dim);
            self.rope.rotate(angles, flat(&mut k), kv_heads * head_dim);
            for (step, range) in steps.iter_mut().zip(offsets.windows(2)) {
                let rows = Slice::from(range[0]..range[1]);
                let kv = range[0] * kv_heads * head_dim..range[1] * kv_heads * head_dim;
                let position = step.session.position();
                step.session.cache_mut().write(n, position, &flat(&mut k)[kv.clone()], &flat(&mut v)[kv]);
                let q = q.slice_axis(Axis(0), rows);
                let y = attended.slice_axis_mut(Axis(0), rows);
                attend(backend, &layer.shape, q, position, step.session.cache().rows(n), attention, y);
            }
            layer.o.forward(attended.view(), linear, delta.view_mut()).map_err(at("o_proj"))?;
            hidden += &delta;
            check_finite(hidden.view(), Some(n), "attention")?;
            observer.attended(n);

            // hidden += moe(norm(hidden))
            vector::rms_norm(backend, hidden.view(), &layer.moe_norm, eps, normed.view_mut());
            let mut routed = |routed: &Routed<'_>| observer.routed(routed);
            layer
                .moe
                .forward(normed.view(), context, moe, &mut routed, delta.view_mut())
                .map_err(|error| Error::moe(n, error))?;
            hidden += &delta;
            check_finite(hidden.view(), Some(n), "residual stream")?;

            if observer.layer_done(n, hidden.view()).is_break() {
                return Err(Error::Stopped);
            }
        }

        // logits = head(norm(hidden)), of the wanted rows only
        let rows = steps
            .iter()
            .zip(offsets.iter())
            .flat_map(|(step, offset)| step.wanted.range(step.tokens.len()).map(move |t| offset + t));
        let count = rows.clone().count();
        let mut wanted = matrix(&mut workspace.wanted, count, dim)?;
        rows.zip(wanted.rows_mut()).for_each(|(t, mut row)| row.assign(&hidden.row(t)));
        let mut normed = matrix(&mut workspace.normed, count, dim)?;
        vector::rms_norm(backend, wanted.view(), &self.norm, eps, normed.view_mut());
        let mut logits = matrix(&mut workspace.logits, count, self.config.vocab_size)?;
        self.head
            .forward(normed.view(), linear, logits.view_mut())
            .map_err(Error::weights(None, "lm_head"))?;
        check_finite(logits.view(), None, "logits")
    }
}

/// The floats of a buffer's matrix.
fn flat<'a>(matrix: &'a mut ArrayViewMut2<'_, f32>) -> &'a mut [f32] {
    matrix.as_slice_mut().expect("matrices of the workspace are contiguous")
}

fn check_finite(values: ArrayView2<'_, f32>, layer: Option<usize>, stage: &'static str) -> Result<()> {
    match numerics::row_not_finite(values) {
        None => Ok(()),
        Some((token, value)) => Err(Error::NotFinite { layer, stage, token, value }),
    }
}
