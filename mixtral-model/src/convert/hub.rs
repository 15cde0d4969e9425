//! What a directory has beside the weights, and the directory itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use moe_kernels::{Dtype, WeightFormat};
use serde_json::{Value, json};

use super::Conversion;
use crate::gguf::Metadata;
use crate::input::json_object;
use crate::save::{replace, temporary};
use crate::{Config, Error, Result, RopeScaling, Template};

/// Files that are taken over as they are.
const COPIED: [&str; 9] = [
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The folder of chat templates for special purposes.
const TEMPLATES: &str = "additional_chat_templates/";

/// A file beside the weights: its name and contents.
pub(super) type Beside = (String, Vec<u8>);

/// Config and tokenizer.
pub(super) fn files(
    conversion: &Conversion<'_>,
    dtype: WeightFormat,
    warnings: &mut Vec<String>,
) -> Result<Vec<Beside>> {
    let Conversion { source, config, .. } = conversion;
    let name = match dtype {
        WeightFormat::Plain(Dtype::F16) => "float16",
        WeightFormat::Plain(Dtype::Bf16) => "bfloat16",
        _ => "float32",
    };
    let config = match source.file("config.json")? {
        Some((path, bytes)) => retyped(bytes, name, &path)?,
        None => pretty(&of_config(config, name))?,
    };
    let mut files = vec![("config.json".to_owned(), config)];
    for name in COPIED {
        files.extend(source.file(name)?.map(|(_, bytes)| (name.to_owned(), bytes)));
    }
    if source.metadata().is_some()
        && let Some(map) = source.generation()?.map()
    {
        files.push(("generation_config.json".to_owned(), pretty(&Value::Object(map.clone()))?));
    }
    let templates = source.chat_evidence()?.templates;
    for template in templates.iter().filter(|template| template.origin.starts_with(TEMPLATES)) {
        files.push((template.origin.clone(), template.text.clone().into_bytes()));
    }
    match source.metadata() {
        Some(metadata) if metadata.get("tokenizer.ggml.tokens").is_some() => {
            files.extend(tokenizer(metadata, &templates)?)
        }
        _ if files.iter().any(|(name, _)| name.starts_with("tokenizer.") || name == "tekken.json") => {}
        _ => warnings.push("the model has no tokenizer: the directory has none either".to_owned()),
    }
    Ok(files)
}

/// A `config.json` that says of which type the weights are, if it said so before.
fn retyped(bytes: Vec<u8>, name: &str, path: &Path) -> Result<Vec<u8>> {
    let mut map = json_object(&bytes, path)?;
    let mut changed = false;
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) =
            map.get_mut(key).filter(|value| value.as_str().is_some_and(|found| found != name))
        {
            *value = name.into();
            changed = true;
        }
    }
    if changed { pretty(&Value::Object(map)) } else { Ok(bytes) }
}

/// A `config.json` of a config.
fn of_config(config: &Config, dtype: &str) -> Value {
    let mut json = json!({
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "torch_dtype": dtype,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        // As the shortest decimal that is this f32.
        "rms_norm_eps": config.rms_norm_eps.to_string().parse::<f64>().unwrap_or(config.rms_norm_eps.into()),
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos,
        "eos_token_id": match config.eos[..] {
            [] => Value::Null,
            [eos] => eos.into(),
            _ => config.eos.clone().into(),
        },
    });
    if config.rope_scaling != RopeScaling::None {
        json["rope_scaling"] = of_scaling(config.rope_scaling);
    }
    json
}

fn of_scaling(scaling: RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            truncate,
            original_max_positions,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "attention_factor": attention_factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "truncate": truncate,
            "original_max_position_embeddings": original_max_positions,
        }),
    }
}

/// The tokenizer's files from the metadata of a GGUF file.
fn tokenizer(metadata: &Metadata, templates: &[Template]) -> Result<Vec<Beside>> {
    metadata.require_tables()?;
    let pieces = metadata.pieces()?;
    let piece = |id: Option<u32>, usual: u32| pieces.texts.get(id.unwrap_or(usual) as usize).cloned();
    let mut config = json!({
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": piece(pieces.bos, 1),
        "eos_token": piece(pieces.eos, 2),
        "unk_token": piece(pieces.unk, 0),
        "add_bos_token": pieces.add_bos.unwrap_or(true),
        "add_eos_token": pieces.add_eos.unwrap_or(false),
        "add_prefix_space": pieces.space_in_front,
    });
    match templates {
        [] => {}
        [only] if only.name == "default" => config["chat_template"] = only.text.as_str().into(),
        several => {
            let template = |template: &Template| json!({ "name": template.name, "template": template.text });
            config["chat_template"] = several.iter().map(template).collect();
        }
    }
    Ok(vec![
        ("tokenizer.model".to_owned(), pieces.to_sentencepiece()),
        ("tokenizer_config.json".to_owned(), pretty(&config)?),
    ])
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|source| Error::Json { path: PathBuf::from("config.json"), source })?;
    Ok((text + "\n").into_bytes())
}

/// Fills a directory and gives it its name when it is complete; removes it if that fails. There may be an empty one of that name.
pub(super) fn replace_directory<T>(dir: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let failed = |source| Error::Io { path: dir.to_path_buf(), source };
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(false) => {
            let expected = "an empty directory or nothing";
            return Err(Error::checkpoint(dir, expected, "a directory with something in it"));
        }
        Ok(true) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let temporary = temporary(dir, None).map_err(failed)?;
    fs::create_dir(&temporary).map_err(failed)?;
    let filled =
        fill(&temporary).and_then(|value| fs::rename(&temporary, dir).map(|()| value).map_err(failed));
    if filled.is_err() {
        // That removing fails too is not worth a second error.
        let _ = fs::remove_dir_all(&temporary);
    }
    filled
}

/// Writes the files beside the weights.
pub(super) fn write_beside(dir: &Path, files: &[Beside]) -> Result<()> {
    for (name, bytes) in files {
        let path = dir.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_path_buf(), source })?;
        }
        replace(&path, |out| {
            io::Write::write_all(out, bytes).map_err(|source| Error::Io { path: path.clone(), source })
        })?;
    }
    Ok(())
}
