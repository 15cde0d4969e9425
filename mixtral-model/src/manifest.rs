//! Every tensor that a [`Config`] implies: name, shape and kind, in the hub's per-expert layout.
//!
//! Matrices are `[outputs, inputs]`, row-major, as the checkpoint stores them. Nothing here is a list: names are
//! made one at a time, so that a config may claim any number of layers without costing memory.

use serde::Serialize;

use crate::Config;

/// What part of the model a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// The token embedding.
    Embedding,
    /// Query, key, value and output projections.
    Attention,
    /// The routers' projections.
    Gate,
    /// The expert matrices `w1`, `w2`, `w3`.
    Experts,
    /// All RMS norms.
    Norms,
    /// The output head, where it is not the embedding.
    Head,
}

impl Kind {
    /// All kinds, in the order of a forward pass.
    pub const ALL: [Self; 6] =
        [Self::Embedding, Self::Attention, Self::Gate, Self::Experts, Self::Norms, Self::Head];

    /// One lower-case word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Gate => "gate",
            Self::Experts => "experts",
            Self::Norms => "norms",
            Self::Head => "head",
        }
    }
}

/// One tensor of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape: `[outputs, inputs]` of a matrix, `[width]` of a norm.
    pub shape: Vec<usize>,
    /// What it belongs to.
    pub kind: Kind,
}

impl TensorSpec {
    fn new(name: impl Into<String>, shape: &[usize], kind: Kind) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), kind }
    }

    /// Number of elements, saturating.
    pub fn elements(&self) -> u64 {
        elements(&self.shape)
    }
}

/// The product of a shape's dimensions, saturating.
pub(crate) fn elements(shape: &[usize]) -> u64 {
    shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n as u64))
}

/// One of an expert's three matrices; the expert computes `w2 · (silu(w1 · x) ⊙ (w3 · x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExpertMatrix {
    /// `[intermediate_size, hidden_size]`, under the activation.
    W1,
    /// `[hidden_size, intermediate_size]`, back to the model's width.
    W2,
    /// `[intermediate_size, hidden_size]`, the linear factor.
    W3,
}

impl ExpertMatrix {
    /// The three, in the order of their names.
    pub const ALL: [Self; 3] = [Self::W1, Self::W2, Self::W3];

    const fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
        }
    }
}

/// The tensors of a model: `layers * (7 + 3 * experts) + 3` of them, one fewer with tied embeddings.
///
/// ```
/// use mixtral_model::{Config, Manifest};
///
/// let config = Config::mixtral_8x7b();
/// let manifest = Manifest::new(&config);
/// assert_eq!(manifest.tensors().count(), 995);
/// assert_eq!(manifest.parameters(), 46_702_792_704);
/// assert_eq!(manifest.layer(31).expert(7, mixtral_model::ExpertMatrix::W2).shape, [4096, 14336]);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Manifest<'a> {
    config: &'a Config,
}

impl<'a> Manifest<'a> {
    /// The manifest of `config`.
    pub const fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// The token embedding, `[vocab_size, hidden_size]`.
    pub fn embedding(&self) -> TensorSpec {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        TensorSpec::new("model.embed_tokens.weight", &shape, Kind::Embedding)
    }

    /// The tensors of layer `index`, counted from 0.
    pub const fn layer(&self, index: usize) -> LayerManifest<'a> {
        LayerManifest { config: self.config, index }
    }

    /// The norm after the last layer, `[hidden_size]`.
    pub fn final_norm(&self) -> TensorSpec {
        TensorSpec::new("model.norm.weight", &[self.config.hidden_size], Kind::Norms)
    }

    /// The output head, `[vocab_size, hidden_size]`; `None` with tied embeddings.
    pub fn head(&self) -> Option<TensorSpec> {
        (!self.config.tie_embeddings).then(|| self.untied_head())
    }

    /// The output head as it would be called if embeddings were not tied.
    pub(crate) fn untied_head(&self) -> TensorSpec {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        TensorSpec::new("lm_head.weight", &shape, Kind::Head)
    }

    /// Every tensor once: embedding, layers, final norm, head.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + use<'a> {
        let this = *self;
        std::iter::once_with(move || this.embedding())
            .chain((0..this.config.layers).flat_map(move |index| this.layer(index).tensors()))
            .chain(std::iter::once_with(move || this.final_norm()))
            .chain(std::iter::once_with(move || this.head()).flatten())
    }

    /// Number of parameters, saturating.
    pub fn parameters(&self) -> u64 {
        self.count(self.config.experts)
    }

    /// Number of parameters that act on one token: everything but the experts that were not chosen.
    ///
    /// The embedding and the head count in full, the embedding once if it is both. Of Mixtral 8x7B this gives
    /// 12,879,925,248, the published 12.9 billion.
    pub fn active_parameters(&self) -> u64 {
        self.count(self.config.experts_per_token)
    }

    fn count(&self, experts: usize) -> u64 {
        let layer = self.layer(0);
        let sum = |specs: &mut dyn Iterator<Item = TensorSpec>| {
            specs.fold(0u64, |sum, spec| sum.saturating_add(spec.elements()))
        };
        let expert = sum(&mut ExpertMatrix::ALL.into_iter().map(|matrix| layer.expert(0, matrix)));
        let per_layer =
            sum(&mut layer.dense().into_iter()).saturating_add(expert.saturating_mul(experts as u64));
        let outside = [Some(self.embedding()), Some(self.final_norm()), self.head()];
        sum(&mut outside.into_iter().flatten())
            .saturating_add(per_layer.saturating_mul(self.config.layers as u64))
    }
}

/// The tensors of one decoder layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerManifest<'a> {
    config: &'a Config,
    index: usize,
}

impl<'a> LayerManifest<'a> {
    /// Query projection, `[heads * head_dim, hidden_size]`.
    pub fn q_proj(&self) -> TensorSpec {
        self.attention("q_proj", [self.queries(), self.config.hidden_size])
    }

    /// Key projection, `[kv_heads * head_dim, hidden_size]`.
    pub fn k_proj(&self) -> TensorSpec {
        self.attention("k_proj", [self.keys(), self.config.hidden_size])
    }

    /// Value projection, `[kv_heads * head_dim, hidden_size]`.
    pub fn v_proj(&self) -> TensorSpec {
        self.attention("v_proj", [self.keys(), self.config.hidden_size])
    }

    /// Output projection, `[hidden_size, heads * head_dim]`.
    pub fn o_proj(&self) -> TensorSpec {
        self.attention("o_proj", [self.config.hidden_size, self.queries()])
    }

    /// The router's projection, `[experts, hidden_size]`.
    pub fn gate(&self) -> TensorSpec {
        let shape = [self.config.experts, self.config.hidden_size];
        self.spec("block_sparse_moe.gate.weight", &shape, Kind::Gate)
    }

    /// One matrix of expert `expert`, counted from 0.
    pub fn expert(&self, expert: usize, matrix: ExpertMatrix) -> TensorSpec {
        let (width, hidden) = (self.config.hidden_size, self.config.intermediate_size);
        let shape = match matrix {
            ExpertMatrix::W1 | ExpertMatrix::W3 => [hidden, width],
            ExpertMatrix::W2 => [width, hidden],
        };
        let name = format!("block_sparse_moe.experts.{expert}.{}.weight", matrix.name());
        self.spec(&name, &shape, Kind::Experts)
    }

    /// The norm before attention, `[hidden_size]`.
    pub fn input_norm(&self) -> TensorSpec {
        self.spec("input_layernorm.weight", &[self.config.hidden_size], Kind::Norms)
    }

    /// The norm before the experts, `[hidden_size]`.
    pub fn post_attention_norm(&self) -> TensorSpec {
        self.spec("post_attention_layernorm.weight", &[self.config.hidden_size], Kind::Norms)
    }

    /// The layer's tensors: those every token passes, then the experts one after the other.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + use<'a> {
        let this = *self;
        let experts = (0..self.config.experts)
            .flat_map(move |expert| ExpertMatrix::ALL.map(|matrix| this.expert(expert, matrix)));
        std::iter::once_with(move || this.dense()).flatten().chain(experts)
    }

    /// What every token passes.
    fn dense(&self) -> [TensorSpec; 7] {
        [
            self.input_norm(),
            self.q_proj(),
            self.k_proj(),
            self.v_proj(),
            self.o_proj(),
            self.post_attention_norm(),
            self.gate(),
        ]
    }

    fn queries(&self) -> usize {
        self.config.heads.saturating_mul(self.config.head_dim)
    }

    fn keys(&self) -> usize {
        self.config.kv_heads.saturating_mul(self.config.head_dim)
    }

    fn attention(&self, name: &str, shape: [usize; 2]) -> TensorSpec {
        self.spec(&format!("self_attn.{name}.weight"), &shape, Kind::Attention)
    }

    fn spec(&self, name: &str, shape: &[usize], kind: Kind) -> TensorSpec {
        TensorSpec::new(format!("model.layers.{}.{name}", self.index), shape, kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn published_geometry() {
        let config = Config::mixtral_8x7b();
        let manifest = Manifest::new(&config);
        assert_eq!(manifest.tensors().count(), 32 * 31 + 3);
        assert_eq!(manifest.parameters(), 46_702_792_704);
        assert_eq!(manifest.active_parameters(), 12_879_925_248);
        let names: HashSet<_> = manifest.tensors().map(|spec| spec.name).collect();
        assert_eq!(names.len(), 995);
    }

    #[test]
    fn count_is_the_sum_of_all_tensors() {
        for tied in [false, true] {
            let mut config = Config::mixtral_8x7b();
            (config.layers, config.experts, config.head_dim, config.tie_embeddings) = (3, 5, 24, tied);
            let manifest = Manifest::new(&config);
            let sum: u64 = manifest.tensors().map(|spec| spec.elements()).sum();
            assert_eq!(manifest.parameters(), sum, "tied {tied}");
            assert_eq!(manifest.tensors().count(), 3 * (7 + 15) + if tied { 2 } else { 3 });
        }
    }

    #[test]
    fn absurd_claims_cost_nothing() {
        let mut config = Config::mixtral_8x7b();
        (config.layers, config.experts) = (usize::MAX, usize::MAX);
        let manifest = Manifest::new(&config);
        assert_eq!(manifest.parameters(), u64::MAX);
        assert_eq!(manifest.tensors().take(1000).count(), 1000);
        assert_eq!(
            manifest.layer(1_000_000_000).gate().name,
            "model.layers.1000000000.block_sparse_moe.gate.weight"
        );
    }
}
