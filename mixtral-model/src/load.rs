//! Assembling a model from the tensors of a checkpoint.

use std::cell::Cell;
use std::path::Path;

use moe_core::{MoeLayer, memory};
use moe_kernels::attention::AttentionShape;
use moe_kernels::{Activations, Linear, SwiGlu, SwiGluExperts, SwiGluWeights, WeightFormat, WeightMatrix};
use moe_router::TopK;

use crate::attention::Attention;
use crate::budget::{Budgeted, CacheOf, MemoryPlan};
use crate::checkpoint::Place;
use crate::manifest::{LayerManifest, Manifest, TensorSpec};
use crate::model::{Compute, Layer, Model};
use crate::products::Products;
use crate::rope::Rope;
use crate::session::ModelId;
use crate::{Access, Checkpoint, Config, Error, ExpertMatrix, Result, Source};

impl Model {
    /// Loads the model of a directory, a GGUF file or the hub's local cache with memory-mapped weights on this processor's best
    /// backend.
    ///
    /// # Errors
    ///
    /// Those of [`Source::find`], [`Source::config`], [`Source::checkpoint`] and [`load`](Self::load).
    pub fn open(source: &Path) -> Result<Self> {
        let source = Source::find(source)?;
        Self::load(source.config()?, &source.checkpoint(Access::Map)?, Compute::default())
    }

    /// Assembles a model from the tensors that its config implies; mapped weights stay where they lie.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the config is not [valid](Config::validate); [`Error::Tensor`] where a tensor is missing or has
    /// another shape or type; [`Error::Io`].
    pub fn load(config: Config, checkpoint: &Checkpoint, compute: impl Into<Compute>) -> Result<Self> {
        Loader::new(config, checkpoint, compute).load()
    }
}

/// Assembles a model otherwise than [`Model::load`] does: with other weights, or with mixture-of-experts layers of one's own.
pub struct Loader<'a> {
    config: Config,
    checkpoint: &'a Checkpoint,
    compute: Compute,
    /// None leaves weights as they are.
    weight: Option<Box<MapWeight<'a>>>,
    moe: Box<MakeMoe<'a>>,
    cache: Option<CacheOf>,
}

type MapWeight<'a> = dyn Fn(&TensorSpec, WeightMatrix) -> Result<WeightMatrix> + 'a;
type MakeMoe<'a> = dyn FnMut(&MoeParts<'_>) -> Result<MoeLayer> + 'a;

impl<'a> Loader<'a> {
    /// What assembles the model as [`Model::load`] does.
    pub fn new(config: Config, checkpoint: &'a Checkpoint, compute: impl Into<Compute>) -> Self {
        Self {
            config,
            checkpoint,
            compute: compute.into(),
            weight: None,
            moe: Box::new(|parts| parts.layer()),
            cache: None,
        }
    }

    /// The same with experts that come from the disk when they are wanted, into the memory that a plan leaves for them; the checkpoint's
    /// [access](Access) should be `Uncached`, or a copy of what is read stays in the page cache. Weights that are
    /// [mapped to others](Self::map_weights) are none of those.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] for a checkpoint that is not of the config; [`Error::Setting`] for one that cannot be read so.
    pub fn within(self, plan: &MemoryPlan) -> Result<Self> {
        // A config that was read is valid, but its fields are public.
        self.config.validate(self.checkpoint.root())?;
        let budgeted = Budgeted::new(self.checkpoint, &self.config, plan)?;
        Ok(self.over(budgeted))
    }

    /// The same with the experts of a model that was loaded [within a budget](Self::within): both have one cache, and take turns. So a
    /// model under other routers or gates, or several of them, takes memory for its other weights alone.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if that model is under no budget, computes otherwise, or is of other files; [`Error::Tensor`] for a
    /// checkpoint that is not of the config.
    pub fn sharing_experts(self, model: &Model) -> Result<Self> {
        self.config.validate(self.checkpoint.root())?;
        let differs =
            |expected: String, found: String| Error::Setting { setting: "shared experts", expected, found };
        let Some(cache) = &model.cache else {
            return Err(differs(
                "a model under a budget of memory".to_owned(),
                "one that is under none".to_owned(),
            ));
        };
        if model.compute != self.compute {
            return Err(differs(format!("{:?}", model.compute), format!("{:?}", self.compute)));
        }
        let budgeted = Budgeted::of(cache, self.checkpoint, &self.config)?;
        Ok(self.over(budgeted))
    }

    fn over(self, budgeted: Budgeted) -> Self {
        let cache = Some(budgeted.cache());
        Self { moe: Box::new(move |parts| budgeted.layer(parts)), cache, ..self }
    }

    /// The same, with every matrix that is multiplied with, but for the gates', replaced by what `weight(spec, matrix)` makes of
    /// it: the same in another type, say. Rows come and go in the order that is stored.
    pub fn map_weights(
        self,
        weight: impl Fn(&TensorSpec, WeightMatrix) -> Result<WeightMatrix> + 'a,
    ) -> Self {
        Self { weight: Some(Box::new(weight)), ..self }
    }

    /// The same, with each layer's gate, router and experts put together by `moe`, which is given what the checkpoint has for them
    /// before any of it is read: a bank of one's own may read its experts later, or elsewhere.
    pub fn moe_layers(self, moe: impl FnMut(&MoeParts<'_>) -> Result<MoeLayer> + 'a) -> Self {
        Self { moe: Box::new(moe), cache: None, ..self }
    }

    /// Assembles the model.
    ///
    /// # Errors
    ///
    /// Those of [`Model::load`]; what the closures give back; [`Error::Kernels`] where a closure gives a matrix of another shape
    /// to an expert.
    pub fn load(self) -> Result<Model> {
        let Self { config, checkpoint, compute, weight, mut moe, cache } = self;
        if weight.is_some() && cache.is_some() {
            return Err(Error::Setting {
                setting: "weights",
                expected: "those of the checkpoint, under a budget of memory".to_owned(),
                found: "others".to_owned(),
            });
        }
        // A config that was read is valid, but its fields are public.
        config.validate(checkpoint.root())?;
        checkpoint.verify(&config)?;
        let products = Cell::new(Products::default());
        let weights =
            Weights { config: &config, checkpoint, compute, map: weight.as_deref(), products: &products };
        let manifest = Manifest::new(&config);
        // A head that is the embedding shares its memory, and is multiplied with.
        let (embedding, head) = match manifest.head() {
            Some(spec) => (weights.stored(&manifest.embedding())?, weights.factor(&spec)?),
            None => {
                let both = weights.factor(&manifest.embedding())?;
                (both.clone(), both)
            }
        };
        let head = weights.linear_of(head);
        let mut layers = Vec::new();
        for n in 0..config.layers {
            layers.push(weights.layer(n, manifest.layer(n), &mut *moe)?);
        }
        let norm = weights.vector(&manifest.final_norm())?;
        let (rope, products) =
            (Rope::new(config.head_dim, config.rope_theta, config.rope_scaling), products.get());
        Ok(Model {
            id: ModelId::new(),
            compute,
            products,
            embedding,
            rope,
            layers,
            norm,
            head,
            config,
            cache,
        })
    }
}

/// What a mixture-of-experts layer can be made of. Nothing is read before it is asked for.
pub struct MoeParts<'a> {
    weights: Weights<'a>,
    tensors: LayerManifest<'a>,
    index: usize,
}

impl MoeParts<'_> {
    /// The layer's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The model's hyperparameters.
    pub fn config(&self) -> &Config {
        self.weights.config
    }

    /// Number of experts of the layer.
    pub fn experts(&self) -> usize {
        self.tensors.experts()
    }

    /// How the model computes.
    pub fn compute(&self) -> Compute {
        self.weights.compute
    }

    /// The layer as the model has it: its gate, top-k routing, all experts.
    ///
    /// # Errors
    ///
    /// Those of [`gate`](Self::gate) and [`bank`](Self::bank); [`Error::Layer`].
    pub fn layer(&self) -> Result<MoeLayer> {
        let of_layer = |source| Error::Layer { layer: self.index, source };
        MoeLayer::new(Box::new(self.gate()?), Box::new(self.router()?), Box::new(self.bank()?))
            .map_err(of_layer)
    }

    /// The model's routing: the [`experts_per_token`](Config::experts_per_token) best, or all experts of a layer that has fewer.
    ///
    /// # Errors
    ///
    /// [`Error::Layer`] where that is no number of choices.
    pub fn router(&self) -> Result<TopK> {
        let chosen = self.config().experts_per_token.min(self.experts());
        TopK::new(chosen).map_err(|source| Error::Layer { layer: self.index, source })
    }

    /// The gate.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn gate(&self) -> Result<Linear> {
        let gate = Linear::new(self.weights.stored(&self.tensors.gate())?, self.compute().backend);
        self.weights.count(Activations::F32);
        Ok(gate)
    }

    /// All experts, where they lie.
    ///
    /// # Errors
    ///
    /// Those of [`expert`](Self::expert); [`Error::Kernels`] where a closure has given an expert a matrix of another shape.
    pub fn bank(&self) -> Result<SwiGluExperts> {
        let experts = (0..self.experts()).map(|e| self.expert(e)).collect::<Result<Vec<_>>>()?;
        let Compute { backend, activations } = self.compute();
        let bank = SwiGluExperts::new(experts, backend)?.with_input_precision(activations);
        for e in 0..self.experts() {
            bank.bank().input_precision(e).into_iter().for_each(|kind| self.weights.count(kind));
        }
        Ok(bank)
    }

    /// The matrices of an expert.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; what the closure of [`Loader::map_weights`] gives back.
    pub fn expert(&self, expert: usize) -> Result<SwiGluWeights> {
        let matrix = |m| self.weights.factor(&self.tensors.expert(expert, m));
        let (w1, w2, w3) = (matrix(ExpertMatrix::W1)?, matrix(ExpertMatrix::W2)?, matrix(ExpertMatrix::W3)?);
        Ok(SwiGluWeights { w1, w2, w3 })
    }

    /// Counts the matrices of a bank that reads them itself.
    pub(crate) fn count(&self, bank: &SwiGlu, formats: impl Iterator<Item = WeightFormat>) {
        let mut products = self.weights.products.get();
        formats.for_each(|format| products.note(format));
        self.weights.products.set(products);
        for e in 0..bank.experts() {
            bank.input_precision(e).into_iter().for_each(|kind| self.weights.count(kind));
        }
    }

    /// Where a matrix of an expert lies, for a bank that reads it itself.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] for an expert that the model does not have.
    pub fn place(&self, expert: usize, matrix: ExpertMatrix) -> Result<Place<'_>> {
        self.weights.checkpoint.place(&self.tensors.expert(expert, matrix), self.config())
    }
}

/// The checkpoint's tensors as parts of a model.
#[derive(Clone, Copy)]
struct Weights<'a> {
    config: &'a Config,
    checkpoint: &'a Checkpoint,
    compute: Compute,
    map: Option<&'a MapWeight<'a>>,
    products: &'a Cell<Products>,
}

impl<'a> Weights<'a> {
    fn layer(self, n: usize, tensors: LayerManifest<'a>, moe: &mut MakeMoe<'_>) -> Result<Layer> {
        Ok(Layer {
            attention_norm: self.vector(&tensors.input_norm())?,
            attention: self.attention(&tensors)?,
            moe_norm: self.vector(&tensors.post_attention_norm())?,
            moe: moe(&MoeParts { weights: self, tensors, index: n })?.with_index(n),
        })
    }

    fn attention(&self, tensors: &LayerManifest<'_>) -> Result<Attention> {
        let config = self.config;
        Ok(Attention {
            q: self.linear(&tensors.q_proj())?,
            k: self.linear(&tensors.k_proj())?,
            v: self.linear(&tensors.v_proj())?,
            o: self.linear(&tensors.o_proj())?,
            // Keys are stored in the same order as queries.
            order: self.checkpoint.place(&tensors.q_proj(), config)?.order,
            shape: AttentionShape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
                window: config.sliding_window,
            },
            backend: self.compute.backend,
        })
    }

    fn linear(&self, spec: &TensorSpec) -> Result<Linear> {
        Ok(self.linear_of(self.factor(spec)?))
    }

    fn linear_of(&self, weight: WeightMatrix) -> Linear {
        let linear = Linear::new(weight, self.compute.backend).with_input_precision(self.compute.activations);
        self.count(linear.input_precision());
        linear
    }

    /// A matrix that is multiplied with, as whoever loads wants it.
    fn factor(&self, spec: &TensorSpec) -> Result<WeightMatrix> {
        let stored = self.stored(spec)?;
        let weight = self.map.map_or_else(|| Ok(stored.clone()), |map| map(spec, stored.clone()))?;
        let mut products = self.products.get();
        products.note(weight.format());
        self.products.set(products);
        Ok(weight)
    }

    fn stored(&self, spec: &TensorSpec) -> Result<WeightMatrix> {
        self.checkpoint.matrix(&self.checkpoint.place(spec, self.config)?)
    }

    /// A norm's weight, widened.
    fn vector(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let row = self.stored(spec)?;
        let mut wide = Vec::new();
        memory::grow(&mut wide, row.columns(), 0.0, "norm weight")?;
        row.widen_row(0, &mut wide);
        Ok(wide)
    }

    /// Counts one more matrix.
    fn count(&self, activations: Activations) {
        let mut products = self.products.get();
        products.count(activations);
        self.products.set(products);
    }
}
