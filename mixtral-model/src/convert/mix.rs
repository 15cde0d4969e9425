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
        let eight = config.experts.most() == 8;
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::Manifest;

    /// The type of a tensor in runs of layers, `[["q6_k", 4], ...]`.
    fn of_layer(runs: &Value, layer: usize) -> &str {
        let mut first = 0;
        for run in runs.as_array().unwrap() {
            first += run[1].as_u64().unwrap() as usize;
            if layer < first {
                return run[0].as_str().unwrap();
            }
        }
        panic!("no layer {layer}");
    }

    /// The type of a tensor that is quantised.
    fn golden_of(golden: &Value, key: TensorKey) -> Option<&str> {
        let (layer, part) = match key {
            TensorKey::Embedding => return golden["token_embd"].as_str(),
            TensorKey::Head => return golden["output"].as_str(),
            TensorKey::Layer { layer, part } => (layer, part),
            TensorKey::FinalNorm => return None,
        };
        let name = match part {
            LayerPart::Query => "attn_q",
            LayerPart::Key => "attn_k",
            LayerPart::Value => "attn_v",
            LayerPart::Output => "attn_output",
            LayerPart::Expert { matrix: ExpertMatrix::W1, .. } => "ffn_gate_exps",
            LayerPart::Expert { matrix: ExpertMatrix::W2, .. } => "ffn_down_exps",
            LayerPart::Expert { matrix: ExpertMatrix::W3, .. } => "ffn_up_exps",
            _ => return None,
        };
        Some(of_layer(&golden[name], layer))
    }

    #[test]
    fn mixes_are_those_of_llama_cpp() {
        let goldens: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/convert/mixes.json")).unwrap();
        let (mut compared, mut failures) = (0, Vec::new());
        for (shape, facts) in goldens.as_object().unwrap() {
            let size = |name: &str| facts[name].as_u64().unwrap() as usize;
            let mut config = Config::mixtral_8x7b();
            (config.hidden_size, config.intermediate_size) = (256, size("hidden"));
            (config.layers, config.experts) = (size("layers"), size("experts").into());
            (config.heads, config.kv_heads) = (size("heads"), size("kv_heads"));
            (config.head_dim, config.vocab_size) = (256 / config.heads, 32);
            config.tie_embeddings = facts["tied"].as_bool().unwrap();
            for (mix, importances) in Mix::ALL.into_iter().flat_map(|mix| [(mix, false), (mix, true)]) {
                let with = facts["with_importances"].get(mix.name()).filter(|_| importances);
                let golden = with.unwrap_or(&facts["mixes"][mix.name()]);
                for spec in Manifest::new(&config).tensors() {
                    let Some(name) = golden_of(golden, spec.key) else { continue };
                    let found = that_fits(mix.of(spec.key, &config, importances), spec.shape[1]);
                    if found.map(BlockType::name) != Some(name) {
                        failures.push(format!("{shape} {} {}: {name}, not {found:?}", mix.name(), spec.key));
                    }
                    compared += 1;
                }
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
        assert_eq!(compared, 2 * 40_341);
    }
}
