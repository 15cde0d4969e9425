//! Arguments of `mixtral trace`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use mixtral_model::lab::exchange::TraceFormat;
use moe_core::expert_cache::CachePolicy;
use moe_router::Capacity;
use moe_router::trace::ReplayWeights;

use super::sampling::whole;
use super::{RouterArgs, Running, one_or_more};

/// Record which experts every token goes to, and use such a trace.
///
/// A trace is a file of 32 bytes a pair of token and expert; docs/trace.md has its format, and how to read it elsewhere.
#[derive(Debug, clap::Args)]
pub(crate) struct Trace {
    #[command(subcommand)]
    pub(crate) command: TraceCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    Record(Record),
    Stats(Stats),
    Diff(Diff),
    Replay(Replay),
    Convert(TraceConvert),
    Simulate(Simulate),
}

impl Trace {
    pub(crate) fn running(&self) -> Option<&Running> {
        match &self.command {
            TraceCommand::Record(args) => Some(&args.running),
            TraceCommand::Replay(args) => Some(&args.running),
            TraceCommand::Stats(_)
            | TraceCommand::Diff(_)
            | TraceCommand::Convert(_)
            | TraceCommand::Simulate(_) => None,
        }
    }
}

/// Read a text, and write where its tokens went.
///
/// The text is read as by `perplexity`: one BOS in front, windows of --window tokens, each a sequence of its own whose identity is its
/// number. The last token of a window is predicted and not read. The file appears when it is complete.
#[derive(Debug, clap::Args)]
pub(crate) struct Record {
    /// The text, taken byte for byte; standard input if it is "-", or absent while standard input is no terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// The trace to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Tokens of a window, at least 2 [default: 512, or the context if that is less]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) window: Option<NonZeroUsize>,
    /// Tokens that are read in one pass; 1 records decoding [default: the window]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) chunk: Option<NonZeroUsize>,
    /// Seed of what routers draw
    #[arg(long, short, value_name = "N", requires = "router", default_value_t, hide_default_value = true)]
    #[arg(allow_negative_numbers = true, value_parser = whole::<u64>)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// Show what is in a trace: load, spread and drops of each layer.
///
/// With --json: {"model", "checkpoint", "router", "gates", "program", "passes", "tokens", "prefill_tokens", "layers": [{"experts", "tokens",
/// "pairs", "refused", "rerouted", "drop_rate", "load", "importance", "cv", "max_over_mean", "distinct_experts_per_pass"}]}. What a layer
/// without tokens has no number for is null.
#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    /// The trace
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compare two traces of one text, token by token: two quantisations of a model, say.
///
/// Both must have been recorded in the same passes. With --json: {"first_difference": {"pass", "layer", "sequence", "position"} or null,
/// "layers": [{"tokens", "same_experts", "same_first", "same_pairs", "overlap", "weight_difference", "first_difference"}]}; the
/// first three after "tokens" are counts of tokens, "overlap" is the mean of the experts in both over those in either.
#[derive(Debug, clap::Args)]
pub(crate) struct Diff {
    /// One trace
    #[arg(value_name = "TRACE")]
    pub(crate) one: PathBuf,
    /// The other
    #[arg(value_name = "OTHER")]
    pub(crate) other: PathBuf,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Read the text of a trace again, routed as recorded, perhaps by another model of the same layers.
///
/// Text and window must be those of the recording; a token that was not recorded there is an error. It prints the perplexity.
#[derive(Debug, clap::Args)]
pub(crate) struct Replay {
    /// The trace
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,
    /// The text, taken byte for byte; standard input if it is "-", or absent while standard input is no terminal
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Combination weights: those of the trace, or softmax over the logits at hand of the recorded experts
    #[arg(long, value_enum, default_value_t)]
    pub(crate) weights: WeightsOf,
    /// Tokens of a window, at least 2 [default: 512, or the context if that is less]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) window: Option<NonZeroUsize>,
    /// Tokens that are read in one pass [default: the window]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) chunk: Option<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum WeightsOf {
    #[default]
    Recorded,
    Live,
}

impl From<WeightsOf> for ReplayWeights {
    fn from(weights: WeightsOf) -> Self {
        match weights {
            WeightsOf::Recorded => Self::Recorded,
            WeightsOf::Live => Self::Live,
        }
    }
}

/// Turn a trace into the format of another project, or one of theirs into a trace.
///
/// What gets lost on the way is told. What a foreign file does not say is asked for: --experts mostly. --list shows the formats.
#[derive(Debug, clap::Args)]
pub(crate) struct TraceConvert {
    /// The file to read
    #[arg(value_name = "FILE", required_unless_present = "list")]
    pub(crate) file: Option<PathBuf>,
    /// The file to write
    #[arg(long, short, value_name = "FILE", required_unless_present = "list")]
    pub(crate) out: Option<PathBuf>,
    /// The format of FILE, which becomes a trace
    #[arg(long, value_name = "FORMAT", required_unless_present_any = ["list", "to"])]
    pub(crate) from: Option<TraceFormat>,
    /// The format that FILE, a trace, is turned into
    #[arg(long, value_name = "FORMAT", conflicts_with = "from")]
    pub(crate) to: Option<TraceFormat>,
    /// Experts of each layer, or one number for all layers, where FILE does not say it
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', conflicts_with = "to", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) experts: Vec<u16>,
    /// Layers, where FILE does not say it
    #[arg(long, value_name = "N", conflicts_with = "to", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) layers: Option<u16>,
    /// Experts of a token in a layer, where FILE does not say it
    #[arg(long, value_name = "N", conflicts_with = "to", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) choices: Option<u16>,
    /// Tokens of the prompt, which one pass read, where FILE does not say it
    #[arg(long, value_name = "N", conflicts_with = "to")]
    pub(crate) prompt: Option<u32>,
    /// The only sequence to write; or the identity of the one that is read, where FILE does not say it [default of the latter: 0]
    #[arg(long, value_name = "N")]
    pub(crate) sequence: Option<u32>,
    /// Name of the model that made FILE, for the trace
    #[arg(long, value_name = "NAME", conflicts_with = "to")]
    pub(crate) model: Option<String>,
    /// List the formats, what each does not carry, and what is to be given
    #[arg(long, exclusive = true)]
    pub(crate) list: bool,
}

/// Try what a cache of experts, or a placement over ranks, would have made of a trace.
///
/// Without --ranks and --capacity, or with --cache or --policy, expert caches: of all policies, and for a quarter, a half and three quarters
/// of the experts, unless these say otherwise. Hits are of requests: an
/// expert that a pass uses in a layer is requested once. The bound is Belady's: what no policy can pass, where experts are of one size.
///
/// With --json: {"caches": [{"policy", "resident", "bytes", "requests", "hits", "hit_rate", "bytes_read", "share_of_bound"}],
/// "placements": [{"placement", "ranks", "tokens", "rows_sent", "rows_returned", "imbalance"}], "capacities": [{"factor", "requested",
/// "dropped", "drop_rate", "tokens_without"}]}. A token's home is its sequence modulo the
/// ranks; its hidden row is sent once to each other rank that has one of its experts, and a row comes home for each of them. A capacity
/// is that of "capped": factor times choices over experts, rounded up, for each sequence of a pass in a layer by itself.
#[derive(Debug, clap::Args)]
pub(crate) struct Simulate {
    /// The trace
    #[arg(value_name = "TRACE")]
    pub(crate) trace: PathBuf,
    /// Experts that a cache holds, of all layers together; with --expert-bytes, bytes
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    pub(crate) cache: Vec<u64>,
    /// Bytes of an expert's weights
    #[arg(long, value_name = "N", requires = "cache")]
    pub(crate) expert_bytes: Option<u64>,
    /// Policies, of lru, lru-per-layer, lfu, lfu-per-layer:age=N, least-stale [default: all]
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Vec<CachePolicy>,
    /// Ranks that the experts are placed on, by blocks, round-robin and by the trace's load
    #[arg(long, value_name = "N", value_parser = ranks)]
    pub(crate) ranks: Option<NonZeroUsize>,
    /// Capacity factors; how many of the choices each would turn away
    #[arg(long, value_name = "F,F,...", value_delimiter = ',', value_parser = factor)]
    pub(crate) capacity: Vec<f64>,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn ranks(text: &str) -> Result<NonZeroUsize, String> {
    let ranks = text.parse().ok().filter(|ranks: &NonZeroUsize| ranks.get() <= 65536);
    ranks.ok_or_else(|| "expected a whole number, 1 to 65536".to_owned())
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|&factor| Capacity::factor_of_choices(factor).check().is_ok());
    factor.ok_or_else(|| "expected a number above 0".to_owned())
}
