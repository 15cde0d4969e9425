//! Arguments of `mixtral perplexity`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::sampling::whole;
use super::{RouterArgs, Running, one_or_more};

/// Measure how well a model predicts a text.
///
/// One BOS is put in front of the text, which is then cut into windows of --window tokens. A window is read by itself; each of
/// its tokens is predicted from all before it in the window, unless a window before has predicted it already. So the first
/// token of all is never predicted, nor, without overlap, the first of any window. The perplexity is e to the mean of -ln p
/// over the predicted tokens.
///
/// The 95 % confidence interval is from windows, at least two: up to 64 blocks of them, a ratio of sums, and Student's t. It says how far
/// another text of the kind may be from this one; nothing is uncertain about the computation.
///
/// With --json: {"tokens", "window", "stride", "predicted_tokens", "nll_sum", "perplexity", "perplexity_low", "perplexity_high",
/// "against"}; nll_sum is in nats, the bounds of the interval are null for a single window. "against" is null, or of --against:
/// {"perplexity", "ln_ratio", "ln_ratio_error", "correlation", "kl", "kl_error", "kl_percentiles": {"0", "0.1", "1", "5", "10", "50",
/// "90", "95", "99", "99.9", "100"}, "same_top", "same_top_error", "p_difference", "p_difference_error", "p_difference_rms",
/// "p_difference_rms_error", "p_difference_percentiles"}; "perplexity" is the file's, divergences are in nats, probabilities from 0 to 1, and
/// errors are standard errors over tokens, as llama-perplexity gives them. Numbers that there are none of, as a correlation of less than
/// ten tokens, are null.
///
/// Ctrl-C ends it and still reports, to standard error; the exit status is then 130.
#[derive(Debug, clap::Args)]
pub(crate) struct Perplexity {
    /// The text, taken byte for byte; standard input if it is "-", or absent while standard input is no terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Tokens of a window, at least 2 [default: 2048, or the context if that is less]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) window: Option<NonZeroUsize>,
    /// Tokens from the start of a window to the start of the next, at most the window [default: the window]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) stride: Option<NonZeroUsize>,
    /// Read the text as llama-perplexity does: whole windows without overlap, BOS in place of the first token of each, and of each
    /// window the second half predicted
    #[arg(long, conflicts_with = "stride")]
    pub(crate) llama_cpp: bool,
    /// Write what is predicted to a file of llama-perplexity's format (its --kl-divergence-base); implies --llama-cpp
    #[arg(long, value_name = "FILE", conflicts_with = "stride")]
    pub(crate) save_logits: Option<PathBuf>,
    /// Compare what is predicted with such a file, which another engine or another model may have written: the text is that of the file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stride", "text", "window", "save_logits", "llama_cpp"])]
    pub(crate) against: Option<PathBuf>,
    /// Seed of what routers draw
    #[arg(long, short, value_name = "N", requires = "router", default_value_t, hide_default_value = true)]
    #[arg(allow_negative_numbers = true, value_parser = whole::<u64>)]
    pub(crate) seed: u64,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
    #[command(flatten)]
    pub(crate) running: Running,
}
