//! The metadata of a GGUF file as a config.

use super::{Header, Metadata, Value};
use crate::manifest::TensorKey;
use crate::{Config, Error, GenerationFile, LayerExperts, Result, RopeScaling};

/// What may stand in `general.architecture`; the keys of the sizes begin with it.
const ARCHITECTURES: [&str; 2] = ["llama", "mixtral"];

/// Keys of the architecture that are read, or say nothing that changes a result. Others are warned about or, if they are in
/// [`NEUTRAL`], refused.
const KNOWN: [&str; 26] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "tensor_data_layout",
    "vocab_size",
];

/// How `config.json` spells what [`Config::validate`] reports, and how the metadata do.
const SPELLINGS: [(&str, &str); 16] = [
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("vocab_size", "vocab_size"),
    ("rope_scaling.factor", "rope.scaling.factor"),
    ("rope_scaling.attention_factor", "rope.scaling.attn_factor"),
    ("rope_scaling.original_max_position_embeddings", "rope.scaling.original_context_length"),
];

/// Keys of other models of this architecture, each of which changes what a layer computes, with the value, beside 0, that does
/// not.
const NEUTRAL: [(&str, f64); 13] = [
    ("expert_shared_count", 0.0),
    ("expert_group_count", 0.0),
    ("expert_gating_func", 1.0),
    ("expert_weights_scale", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.scale", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
    ("final_logit_softcapping", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("interleave_moe_layer_step", 1.0),
    ("leading_dense_block_count", 0.0),
];

/// Keys of `general.sampling`, and what `generation_config.json` calls them.
const SAMPLING: [(&str, &str); 5] = [
    ("temp", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("penalty_repeat", "repetition_penalty"),
];

/// Base of the rotary embedding where a file has none, as in llama.cpp.
const DEFAULT_ROPE_BASE: f64 = 10_000.0;

impl Header {
    /// The hyperparameters that the metadata give, and warnings about those that are not understood.
    ///
    /// The vocabulary has as many ids as `vocab_size` says or, in older files, as there are tokens. Embeddings are tied where no
    /// head is stored, which `has_head` tells of all parts.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for another architecture, and where a key is missing, impossible, or asks for something that is not
    /// implemented.
    pub(crate) fn config(&self, has_head: bool) -> Result<(Config, Vec<String>)> {
        let metadata = &self.metadata;
        let architecture = architecture(metadata)?;
        let key = |name: &str| format!("{architecture}.{name}");
        refuse(metadata, architecture)?;

        let heads = metadata.required_size(&key("attention.head_count"))?;
        let hidden_size = metadata.required_size(&key("embedding_length"))?;
        let head_dim = match metadata.size(&key("attention.key_length"))? {
            Some(head_dim) => head_dim,
            None if heads != 0 && hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(metadata.error(
                    &key("attention.key_length"),
                    "a number, as embedding_length / head_count is none",
                ));
            }
        };
        for same in ["attention.value_length", "rope.dimension_count"] {
            if metadata.size(&key(same))?.is_some_and(|found| found != head_dim) {
                return Err(metadata.error(&key(same), format!("{head_dim}, the width of a head")));
            }
        }
        let vocab_size = match metadata.size(&key("vocab_size"))? {
            Some(size) => size,
            None => match metadata.list("tokenizer.ggml.tokens", "strings", Value::text)? {
                Some(tokens) => tokens.len(),
                None => return Err(metadata.error(&key("vocab_size"), "a positive integer")),
            },
        };
        // The largest number is how some say that there is none.
        let token = |name: &str| {
            metadata.token(&format!("tokenizer.ggml.{name}")).map(|token| token.filter(|&id| id != u32::MAX))
        };
        // Sentencepiece's own, where there are such tokens and a file does not say.
        let is_sentencepiece = metadata.text("tokenizer.ggml.model")? == Some("llama");
        let usual = |id: u32| Some(id).filter(|&id| is_sentencepiece && (id as usize) < vocab_size);
        let mut eos: Vec<u32> = token("eos_token_id")?.or(usual(2)).into_iter().collect();
        for also in [token("eot_token_id")?, token("eom_token_id")?].into_iter().flatten() {
            if !eos.contains(&also) {
                eos.push(also);
            }
        }
        let hidden = match metadata.size(&key("expert_feed_forward_length"))?.filter(|&length| length > 0) {
            Some(length) => length,
            None => metadata.required_size(&key("feed_forward_length"))?,
        };
        let layers = metadata.required_size(&key("block_count"))?;
        let config = Config {
            hidden_size,
            intermediate_size: hidden,
            layers,
            heads,
            kv_heads: metadata.size(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            experts: experts(metadata, &key("expert_count"), layers)?,
            experts_per_token: metadata.required_size(&key("expert_used_count"))?,
            vocab_size,
            max_positions: metadata.required_size(&key("context_length"))?,
            rms_norm_eps: metadata
                .number(&key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| metadata.error(&key("attention.layer_norm_rms_epsilon"), "a number"))?
                as f32,
            rope_theta: metadata.number(&key("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_BASE),
            rope_scaling: rope_scaling(metadata, architecture)?,
            sliding_window: metadata.size(&key("attention.sliding_window"))?.filter(|&window| window > 0),
            tie_embeddings: !has_head,
            bos: token("bos_token_id")?.or(usual(1)),
            eos,
        };
        config.validate(metadata.path()).map_err(|error| respelt(error, architecture))?;
        Ok((config, warnings(metadata, architecture)))
    }

    /// How tokens should be chosen, as a `generation_config.json` would say it.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where a key is no number.
    pub(crate) fn generation(&self) -> Result<GenerationFile> {
        let mut wishes = serde_json::Map::new();
        for (key, name) in SAMPLING {
            match self.metadata.get(&format!("general.sampling.{key}")) {
                None => {}
                // No limit, in this key.
                Some(&Value::Signed(..=0) | &Value::Unsigned(0)) if key == "top_k" => {}
                Some(&Value::Unsigned(n)) => drop(wishes.insert(name.to_owned(), n.into())),
                Some(&Value::Signed(n)) => drop(wishes.insert(name.to_owned(), n.into())),
                Some(Value::Float(value)) => drop(wishes.insert(name.to_owned(), (*value).into())),
                Some(_) => return Err(self.metadata.error(&format!("general.sampling.{key}"), "a number")),
            }
        }
        // A temperature of 0 or less is greedy choice; so is a file that speaks of no draw.
        let temperature = wishes.get("temperature").and_then(serde_json::Value::as_f64);
        let of_draws = ["temperature", "top_k", "top_p", "min_p"];
        if temperature.is_none_or(|t| t > 0.0) && of_draws.iter().any(|name| wishes.contains_key(*name)) {
            wishes.insert("do_sample".to_owned(), true.into());
        }
        if let Some(ids) = self.metadata.list("tokenizer.ggml.suppress_tokens", "token ids", Value::size)? {
            wishes.insert("suppress_tokens".to_owned(), ids.into());
        }
        GenerationFile::from_json(
            serde_json::Value::from(wishes).to_string().as_bytes(),
            self.metadata.path(),
        )
    }

    /// Whether the file has an output head.
    pub(crate) fn has_head(&self) -> bool {
        let head = crate::Layout::gguf(crate::ExpertStorage::Stacked).name(TensorKey::Head);
        self.entries.iter().any(|entry| entry.name == head)
    }
}

/// A number, or one for each layer.
fn experts(metadata: &Metadata, key: &str, layers: usize) -> Result<LayerExperts> {
    match metadata.get(key) {
        Some(Value::List(_)) => {
            let numbers = metadata.list(key, "positive integers", Value::size)?.unwrap_or_default();
            let expected = || metadata.error(key, format!("one number for each of {layers} layers"));
            LayerExperts::each(numbers, layers).ok_or_else(expected)
        }
        _ => Ok(metadata.required_size(key)?.into()),
    }
}

/// The scaling of the rotary embedding. What YaRN multiplies cosines and sines by is the file's `attn_factor`, or 1, times what
/// Transformers takes where nothing is said, as in llama.cpp.
fn rope_scaling(metadata: &Metadata, architecture: &str) -> Result<RopeScaling> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let number = |name: &str| metadata.number(&key(name));
    let factor = match number("scaling.factor")? {
        Some(factor) => Some(factor),
        // As older files have it.
        None => number("scale_linear")?.filter(|&factor| factor != 1.0),
    };
    // 0, too, is how a file says that there is none.
    let factor = factor.filter(|&factor| factor != 0.0);
    let kind = metadata.text(&key("scaling.type"))?.or(factor.map(|_| "linear"));
    let of_yarn = key("scaling.attn_factor");
    if kind != Some("yarn") && metadata.number(&of_yarn)?.is_some_and(|found| found != 1.0) {
        return Err(metadata.error(&of_yarn, "1, as it is done with rope.scaling.type yarn alone"));
    }
    match kind {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(factor.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor })),
        Some("yarn") => {
            let factor = factor.ok_or_else(|| metadata.error(&key("scaling.factor"), "a number"))?;
            let original = match metadata.size(&key("scaling.original_context_length"))? {
                Some(original) => original,
                None => metadata.required_size(&format!("{architecture}.context_length"))?,
            };
            Ok(RopeScaling::Yarn {
                factor,
                attention_factor: number("scaling.attn_factor")?.unwrap_or(1.0)
                    * (1.0 + 0.1 * libm::log(factor)),
                beta_fast: number("scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: number("scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
                original_max_positions: original,
            })
        }
        Some(_) => Err(metadata.error(&key("scaling.type"), "none, linear or yarn")),
    }
}

fn architecture(metadata: &Metadata) -> Result<&'static str> {
    const TYPE: &str = "general.type";
    if !matches!(metadata.text(TYPE)?, None | Some("model")) {
        // An adapter, or importances for a quantiser.
        return Err(metadata.error(TYPE, "\"model\""));
    }
    const KEY: &str = "general.architecture";
    let expected = "\"llama\" with experts";
    let found = metadata.text(KEY)?.ok_or_else(|| metadata.error(KEY, expected))?;
    let known = ARCHITECTURES.into_iter().find(|&known| known == found);
    known.ok_or_else(|| metadata.error(KEY, expected))
}

/// Refuses what would change a result and is not implemented.
fn refuse(metadata: &Metadata, architecture: &str) -> Result<()> {
    let key = |name: &str| format!("{architecture}.{name}");
    let experts = key("expert_count");
    if metadata.get(&experts).is_none() {
        return Err(metadata.error(&experts, "a number of experts, as a model without is dense"));
    }
    let causal = key("attention.causal");
    if metadata.flag(&causal)? == Some(false) {
        return Err(metadata.error(&causal, "true"));
    }
    for (name, neutral) in NEUTRAL {
        let key = key(name);
        let found = metadata.number(&key)?;
        if found.is_some_and(|found| found != neutral && found != 0.0) {
            return Err(metadata.error(&key, format!("{neutral} or nothing, as Mixtral has no such thing")));
        }
    }
    let parallel = key("use_parallel_residual");
    match metadata.flag(&parallel)? {
        Some(true) => Err(metadata.error(&parallel, "false")),
        _ => Ok(()),
    }
}

/// The same error, of the key that it is about.
fn respelt(error: Error, architecture: &str) -> Error {
    match error {
        Error::Config { path, field, expected, found } => {
            let spelt = SPELLINGS.into_iter().find(|(in_json, _)| *in_json == field);
            let field = match (spelt, field.as_str()) {
                (Some((_, key)), _) => format!("{architecture}.{key}"),
                (None, "bos_token_id" | "eos_token_id") => format!("tokenizer.ggml.{field}"),
                (None, _) => field,
            };
            Error::Config { path, field, expected, found }
        }
        other => other,
    }
}

fn warnings(metadata: &Metadata, architecture: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    for key in metadata.keys() {
        let own = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.'));
        let known = |own: &str| {
            own == "use_parallel_residual"
                || KNOWN.contains(&own)
                || NEUTRAL.iter().any(|(name, _)| *name == own)
        };
        let sampling = key.strip_prefix("general.sampling.");
        let is_other_sampling = sampling.is_some_and(|own| SAMPLING.iter().all(|(name, _)| *name != own));
        if own.is_some_and(|own| !known(own)) || is_other_sampling {
            warnings.push(format!(
                "{}: {} is not understood and has no effect",
                metadata.path().display(),
                key.escape_debug()
            ));
        }
    }
    warnings
}
