//! What each tensor is to the model.

use std::fmt;

use serde::Serialize;

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

/// What a tensor is to the model, whatever a checkpoint calls it. [`Display`](fmt::Display) writes the hub's name of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TensorKey {
    /// The token embedding, `[vocab_size, hidden_size]`.
    Embedding,
    /// A tensor of a decoder layer.
    Layer {
        /// The layer, from 0.
        layer: usize,
        /// Which of its tensors.
        part: LayerPart,
    },
    /// The norm after the last layer, `[hidden_size]`.
    FinalNorm,
    /// The output head, `[vocab_size, hidden_size]`.
    Head,
}

/// The tensors of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerPart {
    /// The norm before attention, `[hidden_size]`.
    AttentionNorm,
    /// Query projection, `[heads * head_dim, hidden_size]`.
    Query,
    /// Key projection, `[kv_heads * head_dim, hidden_size]`.
    Key,
    /// Value projection, `[kv_heads * head_dim, hidden_size]`.
    Value,
    /// Output projection, `[hidden_size, heads * head_dim]`.
    Output,
    /// The norm before the experts, `[hidden_size]`.
    MoeNorm,
    /// The router's projection, `[experts, hidden_size]`.
    Gate,
    /// One matrix of an expert.
    Expert {
        /// The expert, from 0.
        expert: usize,
        /// Which of its matrices.
        matrix: ExpertMatrix,
    },
}

impl TensorKey {
    /// The part of the model it belongs to.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Embedding => Kind::Embedding,
            Self::FinalNorm => Kind::Norms,
            Self::Head => Kind::Head,
            Self::Layer { part, .. } => match part {
                LayerPart::AttentionNorm | LayerPart::MoeNorm => Kind::Norms,
                LayerPart::Query | LayerPart::Key | LayerPart::Value | LayerPart::Output => Kind::Attention,
                LayerPart::Gate => Kind::Gate,
                LayerPart::Expert { .. } => Kind::Experts,
            },
        }
    }
}

impl fmt::Display for TensorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("model.embed_tokens.weight"),
            Self::FinalNorm => f.write_str("model.norm.weight"),
            Self::Head => f.write_str("lm_head.weight"),
            Self::Layer { layer, part } => {
                write!(f, "model.layers.{layer}.")?;
                match part {
                    LayerPart::AttentionNorm => f.write_str("input_layernorm.weight"),
                    LayerPart::Query => f.write_str("self_attn.q_proj.weight"),
                    LayerPart::Key => f.write_str("self_attn.k_proj.weight"),
                    LayerPart::Value => f.write_str("self_attn.v_proj.weight"),
                    LayerPart::Output => f.write_str("self_attn.o_proj.weight"),
                    LayerPart::MoeNorm => f.write_str("post_attention_layernorm.weight"),
                    LayerPart::Gate => f.write_str("block_sparse_moe.gate.weight"),
                    LayerPart::Expert { expert, matrix } => {
                        write!(f, "block_sparse_moe.experts.{expert}.{}.weight", matrix.name())
                    }
                }
            }
        }
    }
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

    /// As the hub has it: `w1`, `w2`, `w3`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
        }
    }
}
