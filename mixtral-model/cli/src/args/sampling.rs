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
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = whole::<usize>)]
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
    /// Seed: the same text comes of the same seed [default: a random one, which the closing line tells]
    #[arg(long, short, value_name = "N", allow_negative_numbers = true, value_parser = whole::<u64>)]
    pub(crate) seed: Option<u64>,
}

/// Texts that end a generation.
#[derive(Debug, clap::Args)]
pub(crate) struct StopArgs {
    /// End where this text comes, which is not printed; again for another. It may lie across tokens; nothing but what may be its
    /// beginning is held back
    #[arg(long = "stop", value_name = "TEXT", allow_hyphen_values = true, value_parser = some_text)]
    pub(crate) texts: Vec<String>,
}

fn some_text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected some text".to_owned()) } else { Ok(text.to_owned()) }
}

/// A whole number that is not negative.
pub(super) fn whole<N: TryFrom<u64>>(text: &str) -> Result<N, String> {
    let number: Option<u64> = text.parse().ok();
    number.and_then(|n| n.try_into().ok()).ok_or_else(|| "expected a whole number, 0 or more".to_owned())
}

/// A number that an f32 holds: none that would become infinite, or zero.
fn number(text: &str) -> Result<f32, String> {
    let wide: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    let narrow = wide as f32;
    if narrow.is_infinite() && wide.is_finite() {
        return Err(format!("expected a number up to {:e}, the greatest of 32 bits", f32::MAX));
    }
    if narrow == 0.0 && wide != 0.0 {
        return Err(format!("expected 0 or a number from {:e}, the least of 32 bits", f32::from_bits(1)));
    }
    Ok(narrow)
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
        sampling
    }
}
