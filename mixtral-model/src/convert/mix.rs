//! llama.cpp's mixes of types.

use moe_kernels::BlockType::{self, *};

use crate::Config;
use crate::manifest::{ExpertMatrix, LayerPart, TensorKey};

/// A mix of types as llama.cpp's quantiser has it for models with experts: one type for most tensors, and others where a
/// mistake costs more. `docs/quantisation.md` has a table.
///
/// Names are llama.cpp's in lower case; where that is a type's too, `_mix` is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    name: &'static str,
    base: BlockType,
    /// llama.cpp's number of it.
    file_type: u32,
    size: Size,
}

/// Of mixes with one base, which one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    Small,
    Medium,
    Large,
    Only,
}

const fn mix(name: &'static str, base: BlockType, size: Size, file_type: u32) -> Mix {
    Mix { name, base, file_type, size }
}

impl Mix {
    /// All of them.
    pub const ALL: [Self; 17] = [
        mix("q2_k_mix", Q2K, Size::Only, 10),
        mix("q3_k_s", Q3K, Size::Small, 11),
        mix("q3_k_m", Q3K, Size::Medium, 12),
        mix("q3_k_l", Q3K, Size::Large, 13),
        mix("q4_k_s", Q4K, Size::Small, 14),
        mix("q4_k_m", Q4K, Size::Medium, 15),
        mix("q5_k_s", Q5K, Size::Small, 16),
        mix("q5_k_m", Q5K, Size::Medium, 17),
        mix("q6_k_mix", Q6K, Size::Only, 18),
        mix("q4_0_mix", Q4_0, Size::Only, 2),
        mix("q4_1_mix", Q4_1, Size::Only, 3),
        mix("q5_0_mix", Q5_0, Size::Only, 8),
        mix("q5_1_mix", Q5_1, Size::Only, 9),
        mix("q8_0_mix", Q8_0, Size::Only, 7),
        mix("iq4_nl_mix", Iq4Nl, Size::Only, 25),
        mix("iq4_xs_mix", Iq4Xs, Size::Only, 30),
        mix("mxfp4_moe", Mxfp4, Size::Only, 38),
    ];

    /// The name.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// llama.cpp's number of it, for `general.file_type`.
    pub(crate) const fn file_type(self) -> u32 {
        self.file_type
    }

    /// The type of a tensor, before it is seen whether its rows are whole blocks.
    pub(crate) fn of(self, key: TensorKey, config: &Config, importances: bool) -> BlockType {
        let eight = config.experts == 8;
        let queries_per_key = config.heads / config.kv_heads.max(1);
        match key {
            TensorKey::Head => self.head(config.hidden_size),
            TensorKey::Embedding if config.tie_embeddings => self.head(config.hidden_size),
            TensorKey::Layer { layer, part } if self.base != Mxfp4 => match part {
                LayerPart::Key | LayerPart::Value if eight => Q8_0,
                LayerPart::Value => self.value(layer, config.layers, queries_per_key),
                LayerPart::Output if eight => self.output_of_eight(),
                LayerPart::Output => match (self.base, self.size) {
                    (Q2K, _) => Q3K,
                    (Q3K, Size::Medium) => Q4K,
                    (Q3K, Size::Large) => Q5K,
                    (base, _) => base,
                },
                LayerPart::Expert { matrix: ExpertMatrix::W2, .. } => {
                    self.down(layer, config.layers, importances)
                }
                _ => self.base,
            },
            TensorKey::Layer { part: LayerPart::Expert { .. }, .. } => Mxfp4,
            _ if self.base == Mxfp4 => Q8_0,
            _ => self.base,
        }
    }

    fn head(self, width: usize) -> BlockType {
        let whole_blocks = width.is_multiple_of(self.base.elements());
        if self.base == Mxfp4 || self.base == Q8_0 || !whole_blocks { Q8_0 } else { Q6K }
    }

    fn value(self, layer: usize, layers: usize, queries_per_key: usize) -> BlockType {
        match (self.base, self.size) {
            (Q2K, _) if queries_per_key >= 4 => Q4K,
            (Q2K, _) => Q3K,
            (Q3K, Size::Medium) if layer >= 2 => Q4K,
            (Q3K, Size::Medium | Size::Large) => Q5K,
            (Q4K | Q5K, Size::Medium) if is_delicate(layer, layers) => Q6K,
            (Q4K, Size::Small) if layer < 4 => Q5K,
            (Iq4Nl | Iq4Xs, _) if queries_per_key >= 4 => Q5K,
            (base, _) => base,
        }
    }

    fn output_of_eight(self) -> BlockType {
        match (self.base, self.size) {
            (Q3K, Size::Large) => Q3K,
            (Q2K | Q3K | Q4K | Iq4Nl | Iq4Xs, _) => Q5K,
            (base, _) => base,
        }
    }

    fn down(self, layer: usize, layers: usize, importances: bool) -> BlockType {
        let first_eighth = layer < layers / 8;
        match (self.base, self.size) {
            (Q2K, _) => Q3K,
            (Q3K, Size::Medium) if layer >= layers / 16 => Q4K,
            (Q3K, Size::Medium | Size::Large) => Q5K,
            (Q4K | Q5K, Size::Medium) if is_delicate(layer, layers) => Q6K,
            (Q4K, Size::Small) if first_eighth => Q5K,
            (Iq4Nl | Iq4Xs, _) if first_eighth && !importances => Q5K,
            (Q4_0, _) if first_eighth && importances => Q4_1,
            (Q5_0, _) if first_eighth && importances => Q5_1,
            (base, _) => base,
        }
    }
}

/// The first eighth of the layers, the last, and every third between.
fn is_delicate(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type that takes the place of one whose blocks rows of `columns` are no multiple of, as in llama.cpp: blocks of 32 in place of 256,
/// with no fewer bits, and f16 where rows are no multiple of those either.
pub(super) fn that_fits(block: BlockType, columns: usize) -> Option<BlockType> {
    let fits = |block: &BlockType| columns.is_multiple_of(block.elements());
    let smaller = match block {
        Q2K | Q3K => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        Iq4Xs => Iq4Nl,
        other => other,
    };
    [block, smaller].into_iter().find(fits)
}
