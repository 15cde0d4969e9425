//! The model: what it is made of, and one forward pass from top to bottom.
//!
//! T tokens of one or several sessions, D model width, V vocabulary.

use moe_core::{Experts, Locality, MoeLayer, Routed, Router, numerics};
use moe_kernels::attention::{AttentionShape, attend};
use moe_kernels::{Activations, Backend, Linear, WeightMatrix, enter, vector};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};

use crate::batch::Batch;
use crate::layout::RowOrder;
use crate::products::Products;
use crate::reserved::Reserved;
use crate::rope::Rope;
use crate::workspace::{Workspace, matrix, matrix_of};
use crate::{Config, Error, Observer, Result, Session, SessionOptions, Step};

/// A Mixtral model: immutable, shared by any number of sessions and threads.
#[derive(Debug)]
pub struct Model {
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
    /// Of the rows of `q` and `k`.
    pub(crate) order: RowOrder,
    pub(crate) shape: AttentionShape,
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
        Session::new(&self.config, options)
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
    /// [`Error::EmptyPrompt`] for a step without tokens; [`Error::TokenOutOfRange`]; [`Error::ContextOverflow`];
    /// [`Error::Setting`] for a session of a model of another shape; [`Error::OutOfMemory`]; [`Error::NotFinite`], naming layer and stage, where NaN or an infinity
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
        Ok(matrix_of(&workspace.logits, workspace.batch.wanted(), self.config.vocab_size))
    }

    /// Checks the steps, makes room for them, and lays out the batch.
    fn begin(&self, steps: &mut [Step<'_>], workspace: &mut Workspace) -> Result<()> {
        workspace.batch.clear();
        for step in steps {
            let Step { session, tokens, .. } = &mut *step;
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
            session.reserve(tokens.len())?;
            workspace.batch.push(step)?;
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
        let Workspace { batch, head, linear, attention, moe, .. } = workspace;
        let Config { hidden_size: dim, heads, kv_heads, head_dim, rms_norm_eps: eps, .. } = self.config;
        let (q_width, kv_width, backend) = (heads * head_dim, kv_heads * head_dim, self.compute.backend);
        let all_rows = batch.wanted() == batch.rows() || observer.wants_all_rows();
        let mut hidden = matrix(&mut workspace.hidden, batch.rows(), dim)?;
        let mut normed = matrix(&mut workspace.normed, batch.rows(), dim)?;
        let mut k = matrix(&mut workspace.k, batch.rows(), kv_width)?;
        let mut v = matrix(&mut workspace.v, batch.rows(), kv_width)?;

        // hidden = embedding[token]
        for (&token, mut row) in batch.ids().iter().zip(hidden.rows_mut()) {
            if let Some(row) = row.as_slice_mut() {
                self.embedding.widen_row(token as usize, row);
            }
        }
        batch.fill_angles(&self.rope)?;

        for (n, layer) in self.layers.iter().enumerate() {
            let at = |matrix| Error::weights(Some(n), matrix);
            let is_last = n + 1 == self.layers.len();
            let narrow = is_last && !all_rows && layer.moe.router().locality() == Locality::Token;

            // q, k, v of norm(hidden), k rotated; k and v join the caches
            vector::rms_norm(backend, hidden.view(), &layer.attention_norm, eps, normed.view_mut());
            for (map, name) in [(&layer.q, "q_proj"), (&layer.k, "k_proj"), (&layer.v, "v_proj")] {
                map.check().map_err(at(name))?;
            }
            let mut q = matrix(&mut workspace.q, batch.rows(), q_width)?;
            let (x, qkv) = (normed.view(), [q.view_mut(), k.view_mut(), v.view_mut()]);
            if narrow {
                let [_, k, v] = qkv;
                Linear::forward_each([&layer.k, &layer.v], x, linear, [k, v])
            } else {
                Linear::forward_each([&layer.q, &layer.k, &layer.v], x, linear, qkv)
            }
            .map_err(at("q_proj, k_proj, v_proj"))?;
            self.rope.rotate(batch.angles(), flat(&mut k), kv_width, layer.order, head)?;
            for (step, (rows, position)) in steps.iter_mut().zip(batch.steps()) {
                let rows = rows.start * kv_width..rows.end * kv_width;
                let (k, v) = (&flat(&mut k)[rows.clone()], &flat(&mut v)[rows]);
                step.session.cache_mut().write(n, position, k, v);
            }

            // of what follows in the last layer, nobody looks at other rows than those wanted
            if narrow {
                [hidden, normed] = batch.narrow([hidden, normed]);
                q = matrix(&mut workspace.q, batch.rows(), q_width)?;
                layer.q.forward(normed.view(), linear, q.view_mut()).map_err(at("q_proj"))?;
            }

            // hidden += o(attention(rotated q, cached k, cached v))
            self.rope.rotate(batch.angles(), flat(&mut q), q_width, layer.order, head)?;
            let mut attended = matrix(&mut workspace.attended, batch.rows(), q_width)?;
            for (step, (rows, position)) in steps.iter().zip(batch.steps()) {
                let rows = Slice::from(rows);
                let (q, y) = (q.slice_axis(Axis(0), rows), attended.slice_axis_mut(Axis(0), rows));
                attend(backend, &layer.shape, q, position, step.session.cache().rows(n), attention, y)?;
            }
            let mut delta = matrix(&mut workspace.delta, batch.rows(), dim)?;
            layer.o.forward(attended.view(), linear, delta.view_mut()).map_err(at("o_proj"))?;
            hidden += &delta;
            check_finite(hidden.view(), batch, Some(n), "attention")?;
            observer.attended(n);

            // hidden += moe(norm(hidden))
            vector::rms_norm(backend, hidden.view(), &layer.moe_norm, eps, normed.view_mut());
            let mut routed = |routed: &Routed<'_>| observer.routed(routed);
            layer
                .moe
                .forward(normed.view(), batch.context(), moe, &mut routed, delta.view_mut())
                .map_err(|error| Error::moe(n, error, |row| batch.token(row)))?;
            hidden += &delta;
            check_finite(hidden.view(), batch, Some(n), "residual stream")?;

            if observer.layer_done(n, hidden.view()).is_break() {
                return Err(Error::Stopped);
            }
        }

        // logits = head(norm(hidden)), of the wanted rows only
        let [hidden, mut normed] = batch.narrow([hidden, normed]);
        vector::rms_norm(backend, hidden.view(), &self.norm, eps, normed.view_mut());
        let mut logits = matrix(&mut workspace.logits, batch.rows(), self.config.vocab_size)?;
        self.head
            .forward(normed.view(), linear, logits.view_mut())
            .map_err(Error::weights(None, "lm_head"))?;
        check_finite(logits.view(), batch, None, "logits")
    }
}

/// The floats of a buffer's matrix.
fn flat<'a>(matrix: &'a mut ArrayViewMut2<'_, f32>) -> &'a mut [f32] {
    matrix.as_slice_mut().expect("matrices of the workspace are contiguous")
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
