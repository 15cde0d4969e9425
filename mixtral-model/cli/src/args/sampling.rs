//! How tokens are drawn.

use mixtral_model::{GenerationFile, Sampling};

/// Defaults are those of the model's generation_config.json if that says do_sample, as the demo's does (temperature 0.8,
/// top-p 0.95), and greedy otherwise.
#[derive(Debug, clap::Args)]
#[command(
    next_help_heading = "Sampling (defaults: generation_config.json if it says do_sample, else greedy)"
)]
pub(crate) struct SamplingArgs {
    /// What logits are divided by; 0 is greedy
    #[arg(long, short = 't', value_name = "X", allow_negative_numbers = true, value_parser = number)]
    pub(crate) temperature: Option<f32>,
    /// Only the K most probable tokens; 0 is all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Only the most probable tokens whose probabilities add up to P; 1 is all
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = number)]
    pub(crate) top_p: Option<f32>,
    /// Only tokens at least P times as probable as the most probable; 0 is all
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = number)]
    pub(crate) min_p: Option<f32>,
    /// Divides the positive logits of tokens that occurred, and multiplies negative ones; 1 is none
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = number)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed: the same text comes of the same seed
    #[arg(long, short, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// A number that an f32 holds: none that would become infinite, or zero.
fn number(text: &str) -> Result<f32, String> {
    let wide: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    let narrow = wide as f32;
    let holds = wide.is_finite() == narrow.is_finite() && (wide == 0.0) == (narrow == 0.0);
    holds.then_some(narrow).ok_or_else(|| "expected a number that fits into 32 bits".to_owned())
}

impl SamplingArgs {
    /// Whether tokens were to be limited.
    pub(crate) fn limits(&self) -> bool {
        self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some()
    }

    /// The model's wishes without those that the command line replaces.
    pub(crate) fn replace(&self, mut wishes: GenerationFile) -> GenerationFile {
        for (key, given) in [
            // A greedy choice is one without the limits of a draw.
            ("do_sample", self.temperature == Some(0.0)),
            ("temperature", self.temperature.is_some()),
            ("top_k", self.top_k.is_some()),
            ("top_p", self.top_p.is_some()),
            ("min_p", self.min_p.is_some()),
            ("repetition_penalty", self.repetition_penalty.is_some()),
        ] {
            if given {
                wishes = wishes.without(key);
            }
        }
        wishes
    }

    /// The model's wishes, changed by what was given.
    pub(crate) fn apply(&self, mut sampling: Sampling) -> Sampling {
        sampling.temperature = self.temperature.unwrap_or(sampling.temperature);
        sampling.top_k = self.top_k.map_or(sampling.top_k, |k| Some(k).filter(|&k| k > 0));
        sampling.top_p = self.top_p.unwrap_or(sampling.top_p);
        sampling.min_p = self.min_p.unwrap_or(sampling.min_p);
        sampling.repetition_penalty = self.repetition_penalty.unwrap_or(sampling.repetition_penalty);
        sampling.seed = self.seed;
        sampling
    }
}
