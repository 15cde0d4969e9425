//! The hyperparameters that Mistral's own files have: `params.json`.

use std::path::Path;

use super::fields::Fields;
use super::{Config, MAX_CONFIG_BYTES, RopeScaling};
use crate::Result;
use crate::input::{json_object, read_limited};

/// Base of the rotary embedding where the file has none, as in Mistral's own program.
const DEFAULT_ROPE_THETA: f64 = 1e6;

/// Most positions where the file does not limit them: what 8x7B was made for. It limits sessions and changes no result.
const DEFAULT_POSITIONS: usize = 32768;

/// Keys that are read, or that only training and serving look at.
const KNOWN: [&str; 20] = [
    "dim",
    "n_layers",
    "head_dim",
    "hidden_dim",
    "n_heads",
    "n_kv_heads",
    "norm_eps",
    "vocab_size",
    "rope_theta",
    "sliding_window",
    "tied_embeddings",
    "moe",
    "model_type",
    "max_seq_len",
    "max_position_embeddings",
    "max_batch_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "causal",
    "use_biases",
];

impl Config {
    /// Reads Mistral's `params.json`.
    ///
    /// `rope_theta` is 1e6 where it is missing, the begin token 1 and the end token 2 where there are such tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io), [`Error::Checkpoint`](crate::Error::Checkpoint) and
    /// [`Error::Json`](crate::Error::Json) if it cannot be read; [`Error::Config`](crate::Error::Config) where a key is missing,
    /// impossible, or not known: it might change what the model computes.
    pub fn from_params(path: &Path) -> Result<Self> {
        let map = json_object(&read_limited(path, MAX_CONFIG_BYTES)?, path)?;
        let fields = Fields { map: &map, path, prefix: "" };
        if let Some(unknown) =
            map.keys().find(|key| !KNOWN.contains(&key.as_str()) && fields.get(key).is_some())
        {
            return Err(fields.error(unknown, "nothing, as it is not known what it does"));
        }
        for (field, neutral) in [("use_biases", false), ("causal", true)] {
            if fields.flag(field)?.is_some_and(|found| found != neutral) {
                return Err(fields.error(field, neutral.to_string()));
            }
        }
        let Some(moe) = fields.object("moe")? else {
            return Err(fields.error(
                "moe",
                "an object of num_experts and num_experts_per_tok, as a model without is dense",
            ));
        };
        let moe = Fields { map: moe, path, prefix: "moe." };
        let known = ["num_experts", "num_experts_per_tok"];
        if let Some(unknown) =
            moe.map.keys().find(|key| !known.contains(&key.as_str()) && moe.get(key).is_some())
        {
            return Err(moe.error(unknown, "nothing, as it is not known what it does"));
        }
        let (width, heads) = (fields.required_size("dim")?, fields.required_size("n_heads")?);
        let head_dim = match fields.size("head_dim")? {
            Some(head_dim) => head_dim,
            None => width.checked_div(heads).unwrap_or(0),
        };
        let vocab_size = fields.required_size("vocab_size")?;
        let positions = match fields.size("max_position_embeddings")? {
            Some(positions) => Some(positions),
            None => fields.size("max_seq_len")?,
        };
        let exists = |token: &u32| (*token as usize) < vocab_size;
        let eps = fields.number("norm_eps")?.ok_or_else(|| fields.error("norm_eps", "a number"))?;
        let config = Self {
            hidden_size: width,
            intermediate_size: fields.required_size("hidden_dim")?,
            layers: fields.required_size("n_layers")?,
            heads,
            kv_heads: fields.size("n_kv_heads")?.unwrap_or(heads),
            head_dim,
            experts: moe.required_size("num_experts")?.into(),
            experts_per_token: moe.required_size("num_experts_per_tok")?,
            vocab_size,
            max_positions: positions.unwrap_or(DEFAULT_POSITIONS),
            rms_norm_eps: eps as f32,
            rope_theta: fields.number("rope_theta")?.unwrap_or(DEFAULT_ROPE_THETA),
            rope_scaling: RopeScaling::None,
            sliding_window: window(&fields)?,
            tie_embeddings: fields.flag("tied_embeddings")?.unwrap_or(false),
            bos: Some(1).filter(exists),
            eos: Some(2).filter(exists).into_iter().collect(),
        };
        config.validate(path)?;
        Ok(config)
    }
}

/// The window, which some files spell as a string.
fn window(fields: &Fields<'_>) -> Result<Option<usize>> {
    const KEY: &str = "sliding_window";
    match fields.get(KEY).and_then(|value| value.as_str()) {
        Some(text) => text.parse().map(Some).map_err(|_| fields.error(KEY, "a positive integer")),
        None => fields.size(KEY),
    }
}
