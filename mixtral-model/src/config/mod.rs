//! The hyperparameters of a Mixtral model, read from `config.json` and checked.
//!
//! Both spellings in use are understood: `rope_theta` and `rope_parameters: {rope_theta, rope_type}`,
//! `num_local_experts` and `num_experts`. Where both stand in a file they must agree. `torch_dtype` and `dtype` may not, as
//! the weight files say what their elements are.
//! Unknown keys are ignored; known keys that would change the computation in a way this crate does not implement
//! (dynamic RoPE, biases, quantised weights, other activations) are refused.
//!
//! Where a field is missing, the default of Transformers' `MixtralConfig` (version 5) applies if published
//! checkpoints rely on it: `num_key_value_heads` 8, `head_dim` hidden_size / heads, `rms_norm_eps` 1e-5,
//! `rope_theta` 1e6, `sliding_window` none, `tie_word_embeddings` false, `hidden_act` silu, begin token 1 and end
//! token 2. The sizes, the number of experts and of choices, and `max_position_embeddings` have no default here:
//! a guess at them would be a silent wrong answer. `null` means missing, except that `num_key_value_heads: null`
//! means as many as heads, and a `null` token means none.

mod experts;
mod fields;
mod generation;
mod params;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

use crate::input::{json_object, read_limited};
use crate::manifest::{Manifest, elements};
use crate::{Error, Result};
use fields::Fields;

pub use experts::LayerExperts;
pub use generation::{GenerationConfig, GenerationFile};
pub use rope::RopeScaling;

/// Longest `config.json` or `generation_config.json` that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Hyperparameters of a Mixtral model. Values that were read are [valid](Config::validate).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Width D of the residual stream: `hidden_size`.
    pub hidden_size: usize,
    /// Hidden width H of one expert: `intermediate_size`.
    pub intermediate_size: usize,
    /// Number of decoder layers: `num_hidden_layers`.
    pub layers: usize,
    /// Number of query heads: `num_attention_heads`.
    pub heads: usize,
    /// Number of key/value heads, a divisor of `heads`: `num_key_value_heads`.
    pub kv_heads: usize,
    /// Width of one head, even. `heads * head_dim` need not equal `hidden_size`.
    pub head_dim: usize,
    /// Experts E of each layer: `num_local_experts`.
    pub experts: LayerExperts,
    /// Experts k chosen for a token: `num_experts_per_tok`. A layer that has fewer uses all it has.
    pub experts_per_token: usize,
    /// Number of token ids: `vocab_size`.
    pub vocab_size: usize,
    /// Longest sequence the model was made for: `max_position_embeddings`.
    pub max_positions: usize,
    /// Added to the mean square in every RMS norm; positive.
    pub rms_norm_eps: f32,
    /// Base of the rotary embedding; positive.
    pub rope_theta: f64,
    /// How its frequencies are changed for longer contexts: `rope_parameters` or `rope_scaling`.
    pub rope_scaling: RopeScaling,
    /// How many of the latest tokens, itself included, a token attends to; `None` is full causal attention.
    pub sliding_window: Option<usize>,
    /// Whether the output head is the embedding matrix: `tie_word_embeddings`.
    pub tie_embeddings: bool,
    /// The token a text begins with.
    pub bos: Option<u32>,
    /// The tokens that end a text.
    pub eos: Vec<u32>,
}

impl Config {
    /// The published hyperparameters of Mixtral 8x7B.
    pub fn mixtral_8x7b() -> Self {
        Self {
            hidden_size: 4096,
            intermediate_size: 14336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            experts: LayerExperts::Same(8),
            experts_per_token: 2,
            vocab_size: 32000,
            max_positions: 32768,
            rms_norm_eps: 1e-5,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            tie_embeddings: false,
            bos: Some(1),
            eos: vec![2],
        }
    }

    /// Reads `config.json` of a model directory. If there is a `generation_config.json` that names end tokens, those are the
    /// model's, and not the ones of `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Checkpoint`] if a file cannot be read, is no regular file or longer than 1 MiB;
    /// else those of [`from_json`](Config::from_json).
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let mut config = Self::from_json(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)?;
        let generation = GenerationFile::from_dir(dir)?;
        if let Some(eos) = generation.eos()? {
            config.eos = eos;
            config.validate(generation.path())?;
        }
        Ok(config)
    }

    /// Reads the text of a `config.json`; `path` is what errors name.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if this is no JSON object or a key occurs twice; [`Error::Config`] if a field is missing,
    /// of a wrong type, impossible, contradicts another, or asks for something that is not implemented.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let map = json_object(bytes, path)?;
        let fields = Fields { map: &map, path, prefix: "" };
        refuse_other_models(&fields)?;

        let hidden_size = fields.required_size("hidden_size")?;
        let heads = fields.required_size("num_attention_heads")?;
        let kv_heads = match fields.size("num_key_value_heads")? {
            Some(kv_heads) => kv_heads,
            None if fields.is_null("num_key_value_heads") => heads,
            None => 8,
        };
        let head_dim = match fields.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if heads != 0 && hidden_size % heads != 0 => {
                let sizes = format!("hidden_size {hidden_size} / num_attention_heads {heads}");
                return Err(fields.error("head_dim", format!("a number, as {sizes} is not whole")));
            }
            None => hidden_size.checked_div(heads).unwrap_or(0),
        };
        let vocab_size = fields.required_size("vocab_size")?;
        // The class defaults 1 and 2 stand for tokens only where there are such tokens.
        let exists = |token: &u32| (*token as usize) < vocab_size;
        let bos = if fields.map.contains_key("bos_token_id") {
            fields.token("bos_token_id")?
        } else {
            Some(1).filter(exists)
        };
        let max_positions = fields.required_size("max_position_embeddings")?;
        let (rope_theta, rope_scaling) = rope::read(&fields, max_positions)?;
        let layers = fields.required_size("num_hidden_layers")?;
        let config = Self {
            hidden_size,
            intermediate_size: fields.required_size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            experts: experts(&fields, layers)?,
            experts_per_token: fields.required_size("num_experts_per_tok")?,
            vocab_size,
            max_positions,
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-5) as f32,
            rope_theta,
            rope_scaling,
            sliding_window: fields.size("sliding_window")?,
            tie_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            bos,
            eos: fields
                .tokens("eos_token_id")?
                .unwrap_or_else(|| Some(2).filter(exists).into_iter().collect()),
        };
        config.validate(path)?;
        Ok(config)
    }

    /// The BOS token, if a text begins with it.
    pub fn bos_of(&self, ids: &[u32]) -> Option<u32> {
        self.bos.filter(|bos| ids.first() == Some(bos))
    }

    /// Checks that the values can be those of a model: sizes of at least 1, `kv_heads` a divisor of `heads`,
    /// `head_dim` even, a number of experts for each layer, `experts_per_token` at most the largest, a window of at least 1, positive finite `rms_norm_eps`
    /// and `rope_theta`, tokens below `vocab_size`, and no count of bytes beyond what the machine can address.
    ///
    /// # Errors
    ///
    /// [`Error::Config`], naming `path` and the field as `config.json` spells it.
    pub fn validate(&self, path: &Path) -> Result<()> {
        let check = |holds: bool, field: &str, expected: &str, found: &dyn ToString| {
            if holds {
                return Ok(());
            }
            Err(Error::Config {
                path: path.to_path_buf(),
                field: field.to_owned(),
                expected: expected.to_owned(),
                found: found.to_string(),
            })
        };
        for (field, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("num_experts_per_tok", self.experts_per_token),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_positions),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ] {
            check(size > 0, field, "at least 1", &size)?;
        }
        let divisor = format!("a divisor of num_attention_heads {}", self.heads);
        check(self.heads.is_multiple_of(self.kv_heads), "num_key_value_heads", &divisor, &self.kv_heads)?;
        let even = "an even number, as RoPE turns pairs";
        check(self.head_dim.is_multiple_of(2), "head_dim", even, &self.head_dim)?;
        if let LayerExperts::Each(experts) = &self.experts {
            let expected = format!("a number for each of {} layers", self.layers);
            check(experts.len() == self.layers, "num_local_experts", &expected, &experts.len())?;
        }
        let least = self.experts.least();
        check(least > 0, "num_local_experts", "at least 1", &least)?;
        let most = format!("at most num_local_experts {}", self.experts.most());
        let chosen = self.experts_per_token;
        check(chosen <= self.experts.most(), "num_experts_per_tok", &most, &chosen)?;

        let positive = "a positive finite number in f32";
        let eps = self.rms_norm_eps;
        check(eps > 0.0 && eps.is_finite(), "rms_norm_eps", positive, &eps)?;
        let theta = self.rope_theta as f32;
        check(theta > 0.0 && theta.is_finite(), "rope_theta", positive, &self.rope_theta)?;
        if let Some(fault) = self.rope_scaling.fault() {
            check(false, &format!("rope_scaling.{}", fault.key), fault.expected, &fault.found)?;
        }
        // Yarn divides by its logarithm.
        let logarithmic = matches!(self.rope_scaling, RopeScaling::Yarn { .. });
        check(theta > 1.0 || !logarithmic, "rope_theta", "more than 1, as yarn wants", &self.rope_theta)?;

        let below = format!("a token id below vocab_size {}", self.vocab_size);
        for (field, token) in
            self.bos.iter().map(|t| ("bos_token_id", t)).chain(self.eos.iter().map(|t| ("eos_token_id", t)))
        {
            check((*token as usize) < self.vocab_size, field, &below, token)?;
        }
        self.check_products(&check)
    }

    /// Every matrix and the whole model stay below the bytes that a signed pointer difference can count, in f32.
    fn check_products(&self, check: &impl Fn(bool, &str, &str, &dyn ToString) -> Result<()>) -> Result<()> {
        let width = self.hidden_size;
        for (field, size, elements) in [
            ("vocab_size", self.vocab_size, elements(&[self.vocab_size, width])),
            ("head_dim", self.head_dim, elements(&[self.heads, self.head_dim, width])),
            ("intermediate_size", self.intermediate_size, elements(&[self.intermediate_size, width])),
            (
                "num_local_experts",
                self.experts.most(),
                elements(&[self.experts.most(), self.intermediate_size, width]),
            ),
            ("num_hidden_layers", self.layers, Manifest::new(self).parameters()),
        ] {
            check(elements <= isize::MAX as u64 / 4, field, "a model whose bytes can be counted", &size)?;
        }
        Ok(())
    }
}

/// Refuses models of another family, and variants whose extra terms would be left out.
fn refuse_other_models(fields: &Fields<'_>) -> Result<()> {
    if fields.get("model_type").and_then(Value::as_str) != Some("mixtral") {
        return Err(fields.error("model_type", "\"mixtral\""));
    }
    if let Some(architectures) = fields.get("architectures") {
        let of_mixtral = |name: &Value| name.as_str().is_some_and(|name| name.starts_with("Mixtral"));
        if !architectures.as_array().is_some_and(|names| names.is_empty() || names.iter().any(of_mixtral)) {
            return Err(fields.error("architectures", "[\"MixtralForCausalLM\"]"));
        }
    }
    if !matches!(fields.text("hidden_act")?, None | Some("silu" | "swish")) {
        return Err(fields.error("hidden_act", "\"silu\""));
    }
    for bias in ["attention_bias", "mlp_bias"] {
        if fields.flag(bias)? == Some(true) {
            return Err(fields.error(bias, "false, as Mixtral has no biases"));
        }
    }
    // Beside these, pruned models may have thresholds below which a token's second expert is left out.
    let dynamic = fields.get("mode").is_none_or(|mode| mode != "static");
    let is_threshold = |deltas: &Value| {
        dynamic && deltas.as_array().is_none_or(|deltas| deltas.iter().any(|delta| !delta.is_null()))
    };
    if fields.get("layer_deltas").is_some_and(is_threshold) {
        return Err(fields.error("layer_deltas", "null, as experts are not left out by a threshold"));
    }
    if fields.get("quantization_config").is_some() {
        return Err(fields.error("quantization_config", "null, as weights are f32, f16 or bf16"));
    }
    Ok(())
}

fn experts(fields: &Fields<'_>, layers: usize) -> Result<LayerExperts> {
    let read = |field| LayerExperts::read(fields, field, layers);
    match (read("num_local_experts")?, read("num_experts")?) {
        (Some(local), Some(new)) if local != new => {
            Err(fields.error("num_experts", format!("{local}, as num_local_experts says")))
        }
        (Some(experts), _) | (None, Some(experts)) => Ok(experts),
        (None, None) => Err(fields.error("num_local_experts", "a positive integer")),
    }
}
