//! Arguments of `mixtral perplexity`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::{Running, one_or_more};

/// Measure how well a model predicts a text.
///
/// One BOS is put in front of the text, which is then cut into windows of --window tokens. A window is read by itself; each of
/// its tokens is predicted from all before it in the window, unless a window before has predicted it already. So the first
/// token of all is never predicted, nor, without overlap, the first of any window. The perplexity is e to the mean of -ln p
/// over the predicted tokens.
///
/// With --json: {"tokens", "window", "stride", "predicted_tokens", "nll_sum", "perplexity"}; nll_sum is in nats.
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
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) running: Running,
}
