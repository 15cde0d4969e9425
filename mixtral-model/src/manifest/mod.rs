//! Every tensor that a [`Config`] implies: what it is to the model, and its shape. Under which name a checkpoint has it, and as
//! part of what, its [`Layout`](crate::Layout) says.
//!
//! Matrices are `[outputs, inputs]`, row-major. Nothing here is a list: tensors are made one at a time, so that a config may
//! claim any number of layers without costing memory.

mod key;

use crate::Config;
pub use key::{ExpertMatrix, Kind, LayerPart, TensorKey};

/// One tensor of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// What it is.
    pub key: TensorKey,
    /// Its shape: `[outputs, inputs]` of a matrix, `[width]` of a norm.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn new(key: TensorKey, shape: &[usize]) -> Self {
        Self { key, shape: shape.to_vec() }
    }

    /// What it belongs to.
    pub const fn kind(&self) -> Kind {
        self.key.kind()
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

/// The tensors of a model: `layers * (7 + 3 * experts) + 3` of them where all layers have as many experts, one fewer with tied
/// embeddings.
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
        TensorSpec::new(TensorKey::Embedding, &shape)
    }

    /// The tensors of layer `index`, counted from 0.
    pub const fn layer(&self, index: usize) -> LayerManifest<'a> {
        LayerManifest { config: self.config, index }
    }

    /// The norm after the last layer, `[hidden_size]`.
    pub fn final_norm(&self) -> TensorSpec {
        TensorSpec::new(TensorKey::FinalNorm, &[self.config.hidden_size])
    }

    /// The output head, `[vocab_size, hidden_size]`; `None` with tied embeddings.
    pub fn head(&self) -> Option<TensorSpec> {
        let shape = [self.config.vocab_size, self.config.hidden_size];
        (!self.config.tie_embeddings).then(|| TensorSpec::new(TensorKey::Head, &shape))
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
        self.count(usize::MAX)
    }

    /// Number of parameters that act on one token: everything but the experts that were not chosen.
    ///
    /// The embedding and the head count in full, the embedding once if it is both. Of Mixtral 8x7B this gives
    /// 12,879,925,248, the published 12.9 billion.
    pub fn active_parameters(&self) -> u64 {
        self.count(self.config.experts_per_token)
    }

    /// Without the experts of a layer beyond the first `at_most`.
    fn count(&self, at_most: usize) -> u64 {
        let layer = self.layer(0);
        let sum = |specs: &mut dyn Iterator<Item = TensorSpec>| {
            specs.fold(0u64, |sum, spec| sum.saturating_add(spec.elements()))
        };
        let expert = sum(&mut ExpertMatrix::ALL.into_iter().map(|matrix| layer.expert(0, matrix)));
        let Config { layers, experts, hidden_size, .. } = self.config;
        let dense = layer.dense().into_iter().filter(|spec| spec.kind() != Kind::Gate);
        let dense = sum(&mut { dense }).saturating_mul(*layers as u64);
        let gates = experts.total(*layers, usize::MAX).saturating_mul(*hidden_size as u64);
        let experts = experts.total(*layers, at_most).saturating_mul(expert);
        let outside = [Some(self.embedding()), Some(self.final_norm()), self.head()];
        sum(&mut outside.into_iter().flatten())
            .saturating_add(dense)
            .saturating_add(gates)
            .saturating_add(experts)
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
        self.spec(LayerPart::Query, &[self.queries(), self.config.hidden_size])
    }

    /// Key projection, `[kv_heads * head_dim, hidden_size]`.
    pub fn k_proj(&self) -> TensorSpec {
        self.spec(LayerPart::Key, &[self.keys(), self.config.hidden_size])
    }

    /// Value projection, `[kv_heads * head_dim, hidden_size]`.
    pub fn v_proj(&self) -> TensorSpec {
        self.spec(LayerPart::Value, &[self.keys(), self.config.hidden_size])
    }

    /// Output projection, `[hidden_size, heads * head_dim]`.
    pub fn o_proj(&self) -> TensorSpec {
        self.spec(LayerPart::Output, &[self.config.hidden_size, self.queries()])
    }

    /// The router's projection, `[experts, hidden_size]`.
    pub fn gate(&self) -> TensorSpec {
        let shape = [self.experts(), self.config.hidden_size];
        self.spec(LayerPart::Gate, &shape)
    }

    /// One matrix of expert `expert`, counted from 0.
    pub fn expert(&self, expert: usize, matrix: ExpertMatrix) -> TensorSpec {
        let (width, hidden) = (self.config.hidden_size, self.config.intermediate_size);
        let shape = match matrix {
            ExpertMatrix::W1 | ExpertMatrix::W3 => [hidden, width],
            ExpertMatrix::W2 => [width, hidden],
        };
        self.spec(LayerPart::Expert { expert, matrix }, &shape)
    }

    /// The norm before attention, `[hidden_size]`.
    pub fn input_norm(&self) -> TensorSpec {
        self.spec(LayerPart::AttentionNorm, &[self.config.hidden_size])
    }

    /// The norm before the experts, `[hidden_size]`.
    pub fn post_attention_norm(&self) -> TensorSpec {
        self.spec(LayerPart::MoeNorm, &[self.config.hidden_size])
    }

    /// The layer's tensors: those every token passes, then the experts one after the other.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> + use<'a> {
        let this = *self;
        let experts = (0..self.experts())
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

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.config.experts.of(self.index)
    }

    fn queries(&self) -> usize {
        self.config.heads.saturating_mul(self.config.head_dim)
    }

    fn keys(&self) -> usize {
        self.config.kv_heads.saturating_mul(self.config.head_dim)
    }

    fn spec(&self, part: LayerPart, shape: &[usize]) -> TensorSpec {
        TensorSpec::new(TensorKey::Layer { layer: self.index, part }, shape)
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
        let names: HashSet<_> = manifest.tensors().map(|spec| spec.key.to_string()).collect();
        assert_eq!(names.len(), 995);
    }

    #[test]
    fn count_is_the_sum_of_all_tensors() {
        for tied in [false, true] {
            let mut config = Config::mixtral_8x7b();
            (config.layers, config.experts, config.head_dim, config.tie_embeddings) = (3, 5.into(), 24, tied);
            let manifest = Manifest::new(&config);
            let sum: u64 = manifest.tensors().map(|spec| spec.elements()).sum();
            assert_eq!(manifest.parameters(), sum, "tied {tied}");
            assert_eq!(manifest.tensors().count(), 3 * (7 + 15) + if tied { 2 } else { 3 });
        }
    }

    #[test]
    fn absurd_claims_cost_nothing() {
        let mut config = Config::mixtral_8x7b();
        (config.layers, config.experts) = (usize::MAX, usize::MAX.into());
        let manifest = Manifest::new(&config);
        assert_eq!(manifest.parameters(), u64::MAX);
        assert_eq!(manifest.tensors().take(1000).count(), 1000);
        assert_eq!(
            manifest.layer(1_000_000_000).gate().key.to_string(),
            "model.layers.1000000000.block_sparse_moe.gate.weight"
        );
    }
}
