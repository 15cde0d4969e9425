//! The keys of a GGUF file that a model becomes, as llama.cpp's converter chooses them.

use std::path::Path;

use moe_kernels::{BlockType, Dtype, WeightFormat};

use super::plan::Output;
use super::{Conversion, vocabulary};
use crate::gguf::Field;
use crate::{Config, Error, GenerationFile, LayerExperts, Result, RopeScaling, Sampling, Source};

/// Version of ggml's block types.
const QUANTIZATION_VERSION: u32 = 2;

const QUANTIZATION_VERSION_KEY: &str = "general.quantization_version";
const FILE_TYPE_KEY: &str = "general.file_type";

/// What the keys begin with that tell which importances weights were quantised with.
const IMPORTANCES: &str = "quantize.imatrix.";

/// Whether a key of a GGUF file tells how its tensors lie in it.
fn is_of_the_file(key: &str) -> bool {
    key == "general.alignment" || key.starts_with("split.")
}

/// Whether a key tells of the types of its tensors.
fn is_of_types(key: &str) -> bool {
    key == QUANTIZATION_VERSION_KEY || key == FILE_TYPE_KEY || key.starts_with(IMPORTANCES)
}

/// All keys. What a GGUF file says of its model is copied as it stands.
pub(super) fn fields(
    conversion: &Conversion<'_>,
    outputs: &[Output<'_>],
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, Field)>> {
    let Conversion { source, config, recipe, importance, .. } = conversion;
    let mut fields = match source.metadata() {
        Some(metadata) => {
            let kept = *recipe == super::Recipe::default();
            metadata.verbatim(|key| !is_of_the_file(key) && (kept || !is_of_types(key)))?
        }
        None => {
            let mut fields = of_config(config, &source.short_name(), warnings)?;
            fields.extend(of_sampling(source, warnings)?);
            fields.extend(vocabulary::fields(source, config, warnings)?);
            fields
        }
    };
    if config.sliding_window.is_some() {
        warnings.push(
            "the model has a sliding window, which is written as llama.attention.sliding_window: llama.cpp has none for this \
             architecture, and differs beyond the window"
                .to_owned(),
        );
    }
    let file_type = recipe.mix().map_or_else(|| most(outputs), super::Mix::file_type);
    if let Some(importance) = importance {
        let (file, tensors) = importance.origin();
        fields.push((format!("{IMPORTANCES}file"), Field::Text(file)));
        fields.push((format!("{IMPORTANCES}entries_count"), Field::U32(tensors)));
    }
    for (key, number) in [(QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION), (FILE_TYPE_KEY, file_type)] {
        if !fields.iter().any(|(there, _)| there == key) {
            fields.push((key.to_owned(), Field::U32(number)));
        }
    }
    Ok(fields)
}

fn of_config(config: &Config, name: &str, warnings: &mut Vec<String>) -> Result<Vec<(String, Field)>> {
    let mut fields = Vec::new();
    for (key, text) in [("architecture", "llama"), ("type", "model"), ("name", name)] {
        fields.push((format!("general.{key}"), Field::Text(text.to_owned())));
    }
    let experts = match &config.experts {
        LayerExperts::Same(experts) => vec![*experts],
        LayerExperts::Each(experts) => {
            warnings.push(
                "layers have different numbers of experts: llama.cpp does not load such a file".to_owned(),
            );
            experts.clone()
        }
    };
    // In the order of llama.cpp's converter; several numbers are an array.
    let one = |size: usize| vec![size];
    let mut sizes = vec![
        ("block_count", one(config.layers)),
        ("context_length", one(config.max_positions)),
        ("embedding_length", one(config.hidden_size)),
        ("feed_forward_length", one(config.intermediate_size)),
        ("attention.head_count", one(config.heads)),
        ("attention.head_count_kv", one(config.kv_heads)),
        ("expert_count", experts),
        ("expert_used_count", one(config.experts_per_token)),
        ("vocab_size", one(config.vocab_size)),
        ("rope.dimension_count", one(config.head_dim)),
    ];
    if config.heads.checked_mul(config.head_dim) != Some(config.hidden_size) {
        sizes.push(("attention.key_length", one(config.head_dim)));
        sizes.push(("attention.value_length", one(config.head_dim)));
    }
    sizes.extend(config.sliding_window.map(|window| ("attention.sliding_window", one(window))));
    for (key, sizes) in sizes {
        let fitting = |size: usize| {
            u32::try_from(size).map_err(|_| Error::Setting {
                setting: "size",
                expected: format!("at most {}, which llama.{key} of a GGUF file can be", u32::MAX),
                found: size.to_string(),
            })
        };
        let sizes = sizes.into_iter().map(fitting).collect::<Result<Vec<_>>>()?;
        let field = if let [size] = sizes[..] { Field::U32(size) } else { Field::U32s(sizes) };
        fields.push((format!("llama.{key}"), field));
    }
    let base = config.rope_theta as f32;
    if f64::from(base) != config.rope_theta {
        warnings.push(format!(
            "rope_theta {} becomes {base}, as llama.rope.freq_base is an f32",
            config.rope_theta
        ));
    }
    fields.push(("llama.rope.freq_base".to_owned(), Field::F32(base)));
    fields.extend(of_scaling(config.rope_scaling, warnings)?);
    let epsilon = Field::F32(config.rms_norm_eps);
    fields.push(("llama.attention.layer_norm_rms_epsilon".to_owned(), epsilon));
    Ok(fields)
}

/// How tokens should be chosen, as far as there are keys for it.
fn of_sampling(source: &Source, warnings: &mut Vec<String>) -> Result<Vec<(String, Field)>> {
    let wishes = source.generation()?.read()?.sampling;
    // What a file says that says nothing.
    let neutral = GenerationFile::from_json(b"{}", Path::new(""))?.read()?.sampling;
    let Sampling { temperature, top_k, top_p, min_p, repetition_penalty, .. } = wishes;
    let said = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, ..neutral.clone() };
    if wishes != said {
        warnings.push(
            "of generation_config.json, temperature, top_k, top_p, min_p and repetition_penalty are written: a GGUF file has no keys for the rest"
                .to_owned(),
        );
    }
    let mut fields = Vec::new();
    let numbers = [
        ("temp", temperature, neutral.temperature),
        ("top_p", top_p, neutral.top_p),
        ("min_p", min_p, neutral.min_p),
        ("penalty_repeat", repetition_penalty, neutral.repetition_penalty),
    ];
    for (key, value, _) in numbers.into_iter().filter(|(_, value, neutral)| value != neutral) {
        fields.push((format!("general.sampling.{key}"), Field::F32(value)));
    }
    if let Some(k) = top_k.and_then(|k| u32::try_from(k).ok()) {
        fields.push(("general.sampling.top_k".to_owned(), Field::U32(k)));
    }
    Ok(fields)
}

/// How the rotary embedding is scaled.
fn of_scaling(scaling: RopeScaling, warnings: &mut Vec<String>) -> Result<Vec<(String, Field)>> {
    let refused = |expected: &str| Error::Setting {
        setting: "RoPE scaling",
        expected: format!("{expected}, which the keys of a GGUF file can say"),
        found: scaling.to_string(),
    };
    let (kind, numbers, original) = match scaling {
        RopeScaling::None => return Ok(Vec::new()),
        RopeScaling::Linear { factor } => ("linear", vec![("factor", factor)], None),
        RopeScaling::Yarn { truncate: false, .. } => return Err(refused("yarn with truncate")),
        RopeScaling::Yarn {
            factor, attention_factor, beta_fast, beta_slow, original_max_positions, ..
        } => {
            if (beta_fast, beta_slow) != (32.0, 1.0) {
                warnings.push(format!(
                    "yarn's betas {beta_fast} and {beta_slow} are written, and llama.cpp takes 32 and 1 for this architecture all the same"
                ));
            }
            // The key is what the usual factor is multiplied by.
            let of_key = attention_factor / (1.0 + 0.1 * libm::log(factor));
            let betas = [("yarn_beta_fast", beta_fast), ("yarn_beta_slow", beta_slow)];
            let numbers = [("factor", factor), ("attn_factor", of_key)].into_iter().chain(betas).collect();
            ("yarn", numbers, Some(original_max_positions))
        }
        _ => return Err(refused("none, linear or yarn")),
    };
    let key = |name: &str| format!("llama.rope.scaling.{name}");
    let mut fields = vec![(key("type"), Field::Text(kind.to_owned()))];
    for (name, number) in numbers {
        let written = number as f32;
        if (f64::from(written) - number).abs() > 1e-12 * number.abs() && name != "attn_factor" {
            warnings.push(format!("{} {number} becomes {written}, an f32", key(name)));
        }
        fields.push((key(name), Field::F32(written)));
    }
    if let Some(original) = original {
        let original = u32::try_from(original).map_err(|_| refused("an original context of 32 bits"))?;
        fields.push((key("original_context_length"), Field::U32(original)));
    }
    Ok(fields)
}

/// llama.cpp's number for a file in which most weights have this type: what it takes a file without a number for.
fn most(outputs: &[Output<'_>]) -> u32 {
    let mut counts: Vec<(WeightFormat, u64)> = Vec::new();
    for output in outputs {
        match counts.iter_mut().find(|(format, _)| *format == output.format) {
            Some((_, weights)) => *weights += output.weights(),
            None => counts.push((output.format, output.weights())),
        }
    }
    let most = counts.into_iter().max_by_key(|(_, weights)| *weights);
    match most.map_or(Dtype::F32.into(), |(format, _)| format) {
        WeightFormat::Plain(Dtype::F16) => 1,
        WeightFormat::Plain(Dtype::Bf16) => 32,
        WeightFormat::Blocks(block) => match block {
            BlockType::Q4_0 => 2,
            BlockType::Q4_1 => 3,
            BlockType::Q8_0 => 7,
            BlockType::Q5_0 => 8,
            BlockType::Q5_1 => 9,
            BlockType::Q2K => 10,
            BlockType::Q3K => 12,
            BlockType::Q4K => 15,
            BlockType::Q5K => 17,
            BlockType::Q6K => 18,
            BlockType::Iq2Xxs => 19,
            BlockType::Iq2Xs => 20,
            BlockType::Iq3Xxs => 23,
            BlockType::Iq1S => 24,
            BlockType::Iq4Nl => 25,
            BlockType::Iq3S => 26,
            BlockType::Iq2S => 28,
            BlockType::Iq4Xs => 30,
            BlockType::Iq1M => 31,
            BlockType::Mxfp4 => 38,
            _ => 0,
        },
        _ => 0,
    }
}
