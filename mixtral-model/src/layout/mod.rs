//! Where a checkpoint has each tensor of the model: under which name, as which rows of what is stored, in which order of rows.
//!
//! Three things vary, each by itself: how names are spelt, how the matrices of a layer's experts are put into tensors, and
//! what stands before all names. Most files have one of these (D width, H hidden width of an expert, E experts):
//!
//! | layout | experts of layer N | who writes it |
//! |---|---|---|
//! | `hub-per-expert` | `model.layers.N.block_sparse_moe.experts.e.w1.weight` `[H, D]` | the published checkpoints, Transformers |
//! | `hub-fused` | `model.layers.N.mlp.experts.gate_up_proj` `[E, 2H, D]`: of each expert the rows of w1, then those of w3; `down_proj` `[E, D, H]` | Transformers 5 where `save_original_format` is false, mergekit |
//! | `hub-stacked` | `model.layers.N.block_sparse_moe.switch_mlp.gate_proj.weight` `[E, H, D]` is w1, `up_proj` w3, `down_proj` w2 | MLX |
//! | `hub-concatenated` | `model.layers.N.block_sparse_moe.w1` `[E·H, D]` | conversions of December 2023; w2 `[E·D, H]`, or refused |
//! | `consolidated-per-expert` | `layers.N.feed_forward.experts.e.w1.weight` | Mistral's own files |
//! | `gguf-per-expert` | `blk.N.ffn_gate.e.weight` is w1, `ffn_up` w3, `ffn_down` w2 | llama.cpp until April 2024 |
//! | `gguf-stacked` | `blk.N.ffn_gate_exps.weight` `[E, H, D]` | llama.cpp since |
//! | `gguf-fused` | `blk.N.ffn_gate_up_exps.weight` `[E, 2H, D]`, w1 first | ik_llama.cpp |

mod detect;

use std::fmt;

use serde::{Serialize, Serializer};

use crate::Config;
use crate::manifest::{ExpertMatrix, LayerPart, TensorKey};

/// How a checkpoint names its tensors and puts the model's into them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    spelling: Spelling,
    experts: ExpertStorage,
    /// What stands before the names of layers, embedding and final norm: `model.` mostly.
    body: String,
    /// What stands before the name of the head.
    outer: String,
    /// The module of a layer that holds gate and experts, as in `block_sparse_moe`.
    module: String,
    /// What ends the names of tensors that hold several experts: `.weight`, or nothing.
    suffix: &'static str,
}

/// Whose names a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Spelling {
    /// The hub's: `model.layers.N.self_attn.q_proj.weight`.
    Hub,
    /// Those of Mistral's own files: `layers.N.attention.wq.weight`.
    Consolidated,
    /// GGUF's: `blk.N.attn_q.weight`.
    Gguf,
}

/// How the matrices of a layer's experts are put into tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExpertStorage {
    /// Each matrix is a tensor.
    PerExpert,
    /// w1, w2 and w3 are a tensor each, `[E, outputs, inputs]`.
    Stacked,
    /// w1 and w3 are one tensor, `[E, 2H, D]`, of each expert w1 first; w2 another, `[E, D, H]`.
    Fused,
    /// w1, w2 and w3 are a tensor each, `[E · outputs, inputs]`.
    Concatenated,
}

/// The order of the rows of a query or key projection, within each head of d rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RowOrder {
    /// Rows i and i + d/2 are what the rotary embedding turns together: the model's own order, and that of all other matrices.
    #[default]
    Halves,
    /// Rows 2i and 2i + 1 are, as in Mistral's own files and in GGUF files: row 2i + j here is row i + j·d/2 there.
    Pairs,
}

/// The place of a tensor among what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Of the stored tensor.
    pub(crate) name: String,
    /// What the stored tensor must have.
    pub(crate) shape: Vec<usize>,
    /// Which of its rows is the first, all dimensions but the last counting rows.
    pub(crate) first_row: usize,
    pub(crate) order: RowOrder,
}

impl Layout {
    /// That of GGUF files.
    pub(crate) fn gguf(experts: ExpertStorage) -> Self {
        Self { experts, ..Self::of_gguf(std::iter::empty()) }
    }

    /// That of the published checkpoints: the hub's names, a tensor for each matrix of an expert.
    pub(crate) fn hub() -> Self {
        Self::of(std::iter::empty())
    }

    /// Whose names these are.
    pub fn spelling(&self) -> Spelling {
        self.spelling
    }

    /// How experts are stored.
    pub fn experts(&self) -> ExpertStorage {
        self.experts
    }

    /// What stands before all names beyond what the spelling has there; mostly nothing.
    pub fn prefix(&self) -> &str {
        &self.outer
    }

    /// Where the layout has a tensor of a model of these sizes. `shape` is the tensor's own.
    pub(crate) fn slot(&self, key: TensorKey, shape: &[usize], config: &Config) -> Slot {
        let whole =
            |name: String| Slot { name, shape: shape.to_vec(), first_row: 0, order: RowOrder::Halves };
        match key {
            TensorKey::Layer { layer, part: LayerPart::Expert { expert, matrix } } => {
                self.expert(layer, expert, matrix, shape, config)
            }
            TensorKey::Layer { part: LayerPart::Query | LayerPart::Key, .. } => {
                let order = match self.spelling {
                    Spelling::Hub => RowOrder::Halves,
                    Spelling::Consolidated | Spelling::Gguf => RowOrder::Pairs,
                };
                Slot { order, ..whole(self.name(key)) }
            }
            key => whole(self.name(key)),
        }
    }

    /// The name of a tensor that is no expert's.
    pub(crate) fn name(&self, key: TensorKey) -> String {
        let Self { spelling, body, outer, module, .. } = self;
        let pick = |hub: &str, consolidated: &str, gguf: &str| match spelling {
            Spelling::Hub => hub.to_owned(),
            Spelling::Consolidated => consolidated.to_owned(),
            Spelling::Gguf => gguf.to_owned(),
        };
        match key {
            TensorKey::Embedding => {
                body.clone() + &pick("embed_tokens", "tok_embeddings", "token_embd") + ".weight"
            }
            TensorKey::FinalNorm => body.clone() + &pick("norm", "norm", "output_norm") + ".weight",
            TensorKey::Head => outer.clone() + &pick("lm_head", "output", "output") + ".weight",
            TensorKey::Layer { layer, part } => {
                let name = match part {
                    LayerPart::AttentionNorm => pick("input_layernorm", "attention_norm", "attn_norm"),
                    LayerPart::Query => pick("self_attn.q_proj", "attention.wq", "attn_q"),
                    LayerPart::Key => pick("self_attn.k_proj", "attention.wk", "attn_k"),
                    LayerPart::Value => pick("self_attn.v_proj", "attention.wv", "attn_v"),
                    LayerPart::Output => pick("self_attn.o_proj", "attention.wo", "attn_output"),
                    LayerPart::MoeNorm => pick("post_attention_layernorm", "ffn_norm", "ffn_norm"),
                    LayerPart::Gate => match spelling {
                        Spelling::Gguf => "ffn_gate_inp".to_owned(),
                        _ => format!("{module}.gate"),
                    },
                    LayerPart::Expert { expert, matrix } => self.per_expert(expert, matrix),
                };
                format!("{}{name}.weight", self.layer(layer))
            }
        }
    }

    /// What the names of all tensors of a layer begin with.
    pub(crate) fn layer(&self, layer: usize) -> String {
        match self.spelling {
            Spelling::Gguf => format!("{}blk.{layer}.", self.body),
            _ => format!("{}layers.{layer}.", self.body),
        }
    }

    /// What the names of all layers' tensors begin with.
    pub(crate) fn layers(&self) -> String {
        self.body.clone() + if self.spelling == Spelling::Gguf { "blk." } else { "layers." }
    }

    /// Within a layer, without `.weight`.
    fn per_expert(&self, expert: usize, matrix: ExpertMatrix) -> String {
        match self.spelling {
            Spelling::Gguf => format!("ffn_{}.{expert}", in_gguf(matrix)),
            _ => format!("{}.experts.{expert}.{}", self.module, matrix.name()),
        }
    }

    fn expert(
        &self,
        layer: usize,
        expert: usize,
        matrix: ExpertMatrix,
        shape: &[usize],
        config: &Config,
    ) -> Slot {
        let (rows, columns) = (shape[0], shape[1]);
        let (module, gguf) = (&self.module, self.spelling == Spelling::Gguf);
        let slot = |name: String, shape: Vec<usize>, first_row: usize| Slot {
            name: self.layer(layer) + &name + self.suffix,
            shape,
            first_row,
            order: RowOrder::Halves,
        };
        let experts = config.experts.of(layer);
        match self.experts {
            ExpertStorage::PerExpert => {
                let key = TensorKey::Layer { layer, part: LayerPart::Expert { expert, matrix } };
                Slot { name: self.name(key), shape: shape.to_vec(), first_row: 0, order: RowOrder::Halves }
            }
            ExpertStorage::Stacked => {
                let name = match gguf {
                    true => format!("ffn_{}_exps", in_gguf(matrix)),
                    false => format!("{module}.switch_mlp.{}_proj", in_gguf(matrix)),
                };
                slot(name, vec![experts, rows, columns], expert.saturating_mul(rows))
            }
            ExpertStorage::Fused => {
                let w3_behind = usize::from(matrix == ExpertMatrix::W3);
                let (name, of_expert, first) = match (matrix, gguf) {
                    (ExpertMatrix::W2, true) => ("ffn_down_exps".to_owned(), rows, 0),
                    (ExpertMatrix::W2, false) => (format!("{module}.experts.down_proj"), rows, 0),
                    (_, true) => ("ffn_gate_up_exps".to_owned(), rows.saturating_mul(2), w3_behind * rows),
                    (_, false) => {
                        (format!("{module}.experts.gate_up_proj"), rows.saturating_mul(2), w3_behind * rows)
                    }
                };
                slot(
                    name,
                    vec![experts, of_expert, columns],
                    expert.saturating_mul(of_expert).saturating_add(first),
                )
            }
            ExpertStorage::Concatenated => {
                let shape = vec![experts.saturating_mul(rows), columns];
                slot(format!("{module}.{}", matrix.name()), shape, expert.saturating_mul(rows))
            }
        }
    }
}

/// What GGUF and MLX call an expert's matrix.
fn in_gguf(matrix: ExpertMatrix) -> &'static str {
    match matrix {
        ExpertMatrix::W1 => "gate",
        ExpertMatrix::W2 => "down",
        ExpertMatrix::W3 => "up",
    }
}

impl Layout {
    /// The name in the table above.
    fn short_name(&self) -> String {
        let spelling = match self.spelling {
            Spelling::Hub => "hub",
            Spelling::Consolidated => "consolidated",
            Spelling::Gguf => "gguf",
        };
        let experts = match self.experts {
            ExpertStorage::PerExpert => "per-expert",
            ExpertStorage::Stacked => "stacked",
            ExpertStorage::Fused => "fused",
            ExpertStorage::Concatenated => "concatenated",
        };
        format!("{spelling}-{experts}")
    }
}

impl Serialize for Layout {
    /// As a word, such as `hub-per-expert`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.short_name())
    }
}

impl fmt::Display for Layout {
    /// In words: `hub, one tensor per expert matrix`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.spelling {
            Spelling::Hub => "hub",
            Spelling::Consolidated => "consolidated",
            Spelling::Gguf => "GGUF",
        })?;
        f.write_str(match self.experts {
            ExpertStorage::PerExpert => ", one tensor per expert matrix",
            ExpertStorage::Stacked => ", all experts of a layer in three tensors",
            ExpertStorage::Fused => ", all experts of a layer in two tensors, w1 and w3 in one",
            ExpertStorage::Concatenated => ", all experts of a layer in three tensors, one below the other",
        })?;
        if self.outer.is_empty() { Ok(()) } else { write!(f, ", {:?} before all names", self.outer) }
    }
}
