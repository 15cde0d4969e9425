//! Arguments of `mixtral lab`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Subcommand;
use moe_router::RouterSpec;

use super::sampling::whole;
use super::{Running, one_or_more};

/// Route a model otherwise, and see what it does to its predictions.
#[derive(Debug, clap::Args)]
pub(crate) struct Lab {
    #[command(subcommand)]
    pub(crate) command: LabCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    Compare(Compare),
    Ablate(Ablate),
    Regret(Regret),
    Report(Report),
}

impl Lab {
    pub(crate) fn running(&self) -> &Running {
        match &self.command {
            LabCommand::Compare(args) => &args.running,
            LabCommand::Ablate(args) => &args.running,
            LabCommand::Regret(args) => &args.running,
            LabCommand::Report(args) => &args.running,
        }
    }
}

/// Read a text under several routers, and compare what they predict and cost.
///
/// The first row is the model's own routing, the baseline. The text gets one BOS in front and is cut into windows, which are read by
/// themselves, each by every router in turn: of each window all tokens but the first are predicted. Columns:
///
///   perplexity  e to the mean of -ln p over the predicted tokens
///   +-          half the width of its 95 % confidence interval
///   nats        mean of -ln p less the baseline's, and +- half the width of the interval of that difference: both are of the same
///               tokens. A difference within its interval is marked ~, as noise
///   KL          divergence of the predictions from the baseline's, nats a token
///   same top    tokens with the same most likely token as the baseline's
///   dropped     pairs of token and expert that were asked for and refused
///   experts     experts that work on a token in a layer
///   CV, max     spread of the load over a layer's experts: deviation over mean, and largest over mean, on average over layers
///   distinct    experts of a layer that a pass uses
///   MB          bytes of their weights in all layers, a pass, in units of 10^6
///   tokens/s    of reading, without the comparison
///   causal      yes: a token's experts depend on it alone. call: on earlier tokens of the same pass too. no: on later ones too
///
/// Intervals are from windows, at least two: up to 64 blocks of them, a ratio of sums, and Student's t. They say how far another text of
/// the kind may be from this one; nothing is uncertain about the computation.
///
/// With --json: {"tokens", "window", "stride", "chunk", "windows", "windows_read", "predicted_tokens", "interrupted", "routers":
/// [{"router", "locality", "note", "perplexity", "perplexity_low", "perplexity_high", "nll", "nll_difference",
/// "nll_difference_half_width", "kl", "same_top", "drop_rate", "experts_per_token", "load_cv", "load_max_over_mean",
/// "distinct_experts_per_pass", "expert_bytes_per_pass", "tokens_per_second"}]}; "router" is null for the model's own. --csv has the
/// same fields of routers, a line each. Numbers that there are none of, as an interval of one window, are null, or empty.
///
/// Ctrl-C ends it: what all routers have read by then is written and marked; the exit status is then 130.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Compare {
    /// The text, taken byte for byte; standard input if it is "-", or absent while standard input is no terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// A router for a row of the table: as in `route`, for all layers, or for some as 0-3@SPEC;4,6@SPEC, the others keeping
    /// their own; again for another row
    #[arg(long = "router", value_name = "SPEC", required = true)]
    pub(crate) routers: Vec<String>,
    /// Tokens of a window, at least 2 [default: 512, or the context if that is less]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) window: Option<NonZeroUsize>,
    /// Tokens from the start of a window to the start of the next, at most the window [default: the window]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) stride: Option<NonZeroUsize>,
    /// Tokens that are read in one pass; routers that are not causal read a window in one pass [default: the window]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) chunk: Option<NonZeroUsize>,
    /// Seed of what routers draw
    #[arg(long, short, value_name = "N", default_value_t, allow_negative_numbers = true, value_parser = whole::<u64>)]
    pub(crate) seed: u64,
    /// Write JSON
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Write comma-separated values
    #[arg(long)]
    pub(crate) csv: bool,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// Read a text without each expert in turn, and tell what that costs.
///
/// A table of layers and experts: nats a predicted token more than with all experts, marked ~ where that lies within its 95 %
/// confidence interval. Tokens that would have had the expert take the next best.
///
/// With --json: {"router", "nll", "windows_read", "interrupted", "experts": [{"layer", "expert", "nll_difference", "half_width", "kl",
/// "same_top"}]}.
#[derive(Debug, clap::Args)]
pub(crate) struct Ablate {
    /// The text, taken byte for byte; standard input if it is "-", or absent while standard input is no terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// How all layers route, with the expert and without it [default: as Mixtral's, top-k with the model's k]
    #[arg(long, value_name = "SPEC")]
    pub(crate) router: Option<RouterSpec>,
    /// Tokens of a window, at least 2 [default: 512, or the context if that is less]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) window: Option<NonZeroUsize>,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// At some tokens of a text, try every set of experts that one layer could have given them, and tell what the router's choice cost.
///
/// The loss is that of the next token, in nats; the regret of a choice is its loss less that of the best set of as many experts
/// (2605.07260). With --json: {"layer", "router", "tokens", "mean_regret", "best_share", "regrets": [{"position", "token", "next", "experts", "nll",
/// "best_experts", "best_nll", "regret", "rank"}]}; numbers of no token are null; "rank" is how many sets have less loss, "best_share" the share of tokens where none has.
#[derive(Debug, clap::Args)]
pub(crate) struct Regret {
    /// The text, taken byte for byte; standard input if it is "-", or absent while standard input is no terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// The layer, from 0
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub(crate) layer: usize,
    /// How the layer routes [default: as Mixtral's, top-k with the model's k]
    #[arg(long, value_name = "SPEC")]
    pub(crate) router: Option<RouterSpec>,
    /// Every how many tokens one is tried
    #[arg(long, value_name = "N", default_value = "16", value_parser = one_or_more)]
    pub(crate) every: NonZeroUsize,
    /// Tokens of the text that are read [default: 512, or the context if that is less]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) tokens: Option<NonZeroUsize>,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// Read a text under several routers, and write a page with pictures of what came of it.
///
/// DIR gets index.html, which needs no other file, and its pictures as SVG files: the load of every expert, which experts work together,
/// where tokens go from layer to layer, the text in the colours of its experts, perplexity against experts a token, and how far every
/// router agrees with the model's own layer by layer. What is in DIR under these names is replaced. The same model, text and options
/// give the same bytes.
///
/// Routers are the model's own; by top-k 1, 2, 3, 4, 6, 8, 12, 16 experts a token and so on, and all; and those of --router. Ctrl-C ends it: of
/// what all routers have read by then the page is written and marked; the exit status is then 130.
#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// The text, taken byte for byte; standard input if it is "-", or absent while standard input is no terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// The directory to write to; it is made if it is not there
    #[arg(long, short, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Another router, as `compare` takes it; again for more
    #[arg(long = "router", value_name = "SPEC")]
    pub(crate) routers: Vec<String>,
    /// Tokens of a window, at least 2 [default: 512, or the context if that is less]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) window: Option<NonZeroUsize>,
    /// Tokens of the text that are shown in the colours of their experts
    #[arg(long, value_name = "N", default_value_t = 160, value_parser = shown)]
    pub(crate) shown: usize,
    /// Seed of what routers draw
    #[arg(long, short, value_name = "N", default_value_t, allow_negative_numbers = true, value_parser = whole::<u64>)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// A picture of more would be larger than anybody looks at.
fn shown(text: &str) -> Result<usize, String> {
    whole::<usize>(text)
        .ok()
        .filter(|&tokens| tokens <= 100_000)
        .ok_or_else(|| "expected a whole number, 0 to 100000".to_owned())
}
