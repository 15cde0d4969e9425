//! Assembling a model from the tensors of a checkpoint.

use std::path::Path;

use moe_core::{MoeLayer, memory};
use moe_kernels::attention::AttentionShape;
use moe_kernels::{Activations, Backend, Linear, SwiGluExperts, SwiGluWeights, WeightMatrix, widen_row};
use moe_router::TopK;

use crate::manifest::{LayerManifest, Manifest, TensorSpec};
use crate::model::{Compute, Layer, Model};
use crate::products::Products;
use crate::rope::Rope;
use crate::{Access, Checkpoint, Config, Error, ExpertMatrix, Result};

impl Model {
    /// Loads a model directory with memory-mapped weights on this processor's best backend.
    ///
    /// # Errors
    ///
    /// Those of [`Config::from_dir`], [`Checkpoint::open`] and [`load`](Self::load).
    pub fn open(dir: &Path) -> Result<Self> {
        Self::load(Config::from_dir(dir)?, &Checkpoint::open(dir, Access::Map)?, Backend::best())
    }

    /// Assembles a model from the tensors that its config implies; mapped weights stay where they lie.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the config is not [valid](Config::validate); [`Error::Tensor`] where a tensor is missing or has
    /// another shape or type; [`Error::Io`].
    pub fn load(config: Config, checkpoint: &Checkpoint, compute: impl Into<Compute>) -> Result<Self> {
        Self::load_with(config, checkpoint, compute, |_, weight| Ok(weight))
    }

    /// [`load`](Self::load) with every matrix that is multiplied with, but for the gates', replaced by what `weight(spec,
    /// matrix)` makes of it: the same in another type, say.
    ///
    /// # Errors
    ///
    /// As `load`; what `weight` gives back; [`Error::Kernels`] where it gives a matrix of another shape to an expert.
    pub fn load_with(
        config: Config,
        checkpoint: &Checkpoint,
        compute: impl Into<Compute>,
        weight: impl Fn(&TensorSpec, WeightMatrix) -> Result<WeightMatrix>,
    ) -> Result<Self> {
        // A config that was read is valid, but its fields are public.
        config.validate(checkpoint.root())?;
        checkpoint.verify(&config)?;
        let manifest = Manifest::new(&config);
        let compute = compute.into();
        let mut loader =
            Loader { config: &config, checkpoint, compute, weight: &weight, products: Products::default() };
        // A head that is the embedding shares its memory, and is multiplied with.
        let (embedding, head) = match manifest.head() {
            Some(spec) => (loader.matrix(&manifest.embedding())?, loader.factor(&spec)?),
            None => {
                let both = loader.factor(&manifest.embedding())?;
                (both.clone(), both)
            }
        };
        let head = loader.linear_of(head);
        let mut layers = Vec::new();
        for n in 0..config.layers {
            layers.push(loader.layer(n, manifest.layer(n))?);
        }
        let norm = loader.vector(&manifest.final_norm())?;
        let products = loader.products;
        Ok(Self { compute, products, embedding, rope: Rope::new(&config), layers, norm, head, config })
    }
}

struct Loader<'a> {
    config: &'a Config,
    checkpoint: &'a Checkpoint,
    compute: Compute,
    weight: &'a dyn Fn(&TensorSpec, WeightMatrix) -> Result<WeightMatrix>,
    products: Products,
}

impl Loader<'_> {
    fn layer(&mut self, n: usize, tensors: LayerManifest<'_>) -> Result<Layer> {
        let config = self.config;
        let mut experts = Vec::new();
        for e in 0..config.experts {
            let matrix = |m| self.factor(&tensors.expert(e, m));
            let (w1, w2, w3) =
                (matrix(ExpertMatrix::W1)?, matrix(ExpertMatrix::W2)?, matrix(ExpertMatrix::W3)?);
            experts.push(SwiGluWeights { w1, w2, w3 });
        }
        let Compute { backend, activations } = self.compute;
        let bank = SwiGluExperts::new(experts, backend)?.with_input_precision(activations);
        self.products.count(Activations::F32);
        for e in 0..config.experts {
            bank.bank().input_precision(e).into_iter().for_each(|kind| self.products.count(kind));
        }
        let of_layer = |source| Error::Layer { layer: n, source };
        let moe = MoeLayer::new(
            Box::new(Linear::new(self.matrix(&tensors.gate())?, backend)),
            Box::new(TopK::new(config.experts_per_token).map_err(of_layer)?),
            Box::new(bank),
        )
        .map_err(of_layer)?;
        Ok(Layer {
            attention_norm: self.vector(&tensors.input_norm())?,
            q: self.linear(&tensors.q_proj())?,
            k: self.linear(&tensors.k_proj())?,
            v: self.linear(&tensors.v_proj())?,
            o: self.linear(&tensors.o_proj())?,
            shape: AttentionShape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
                window: config.sliding_window,
            },
            moe_norm: self.vector(&tensors.post_attention_norm())?,
            moe: moe.with_index(n),
        })
    }

    fn linear(&mut self, spec: &TensorSpec) -> Result<Linear> {
        let weight = self.factor(spec)?;
        Ok(self.linear_of(weight))
    }

    fn linear_of(&mut self, weight: WeightMatrix) -> Linear {
        let linear = Linear::new(weight, self.compute.backend).with_input_precision(self.compute.activations);
        self.products.count(linear.input_precision());
        linear
    }

    /// A matrix that is multiplied with, as whoever loads wants it.
    fn factor(&self, spec: &TensorSpec) -> Result<WeightMatrix> {
        (self.weight)(spec, self.matrix(spec)?)
    }

    fn matrix(&self, spec: &TensorSpec) -> Result<WeightMatrix> {
        let tensor = self.checkpoint.require(&spec.name, &spec.shape)?;
        Ok(WeightMatrix::new(tensor.bytes, tensor.dtype, spec.shape[0], spec.shape[1])?)
    }

    /// A norm's weight, widened.
    fn vector(&self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let tensor = self.checkpoint.require(&spec.name, &spec.shape)?;
        let mut wide = Vec::new();
        memory::grow(&mut wide, spec.shape[0], 0.0, "norm weight")?;
        widen_row(tensor.dtype, &tensor.bytes, &mut wide);
        Ok(wide)
    }
}
