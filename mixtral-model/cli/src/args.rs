//! What the command takes.

mod bench;
mod chat;
mod convert;
mod lab;
mod manual;
mod memory;
mod model;
mod perplexity;
mod router;
mod sampling;
mod serve;
mod trace;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};
use moe_router::RouterSpec;

pub(crate) use bench::{Bench, LayerShape};
pub(crate) use chat::{Chat, FormatArgs, FormatName};
pub(crate) use convert::{Convert, Quantize};
pub(crate) use lab::{Ablate, Compare, Lab, LabCommand, Regret, Report};
pub(crate) use manual::{Completions, Man};
pub(crate) use memory::{Budget, Bytes};
pub(crate) use model::{Access, Cache, Machine, Running, Source, Threads};
pub(crate) use perplexity::Perplexity;
pub(crate) use router::RouterArgs;
use sampling::whole;
pub(crate) use sampling::{SamplingArgs, StopArgs};
pub(crate) use serve::Serve;
pub(crate) use trace::{Diff, Record, Replay, Simulate, Stats, Trace, TraceCommand, TraceConvert};

/// Run a Mixtral model on the CPU.
///
/// Without --model, a tiny Mixtral that was trained for demonstration is used. It is part of this program:
///
///     mixtral generate "Alice was"
#[derive(Debug, Parser)]
#[command(name = "mixtral", version, arg_required_else_help = true, verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "g")]
    Generate(Generate),
    Chat(Chat),
    Inspect(Inspect),
    Tokenize(Tokenize),
    Logits(Logits),
    Perplexity(Perplexity),
    Route(Route),
    Lab(Lab),
    Trace(Trace),
    Bench(Bench),
    Serve(Serve),
    Quantize(Quantize),
    Convert(Convert),
    Completions(Completions),
    Man(Man),
}

impl Command {
    /// How a model is run, by a command that runs one.
    fn running(&self) -> Option<&Running> {
        match self {
            Self::Generate(args) => Some(&args.running),
            Self::Chat(args) => Some(&args.running),
            Self::Logits(args) => Some(&args.running),
            Self::Perplexity(args) => Some(&args.running),
            Self::Lab(args) => Some(args.running()),
            Self::Trace(args) => args.running(),
            Self::Bench(args) => Some(&args.running),
            Self::Serve(args) => Some(&args.running),
            Self::Inspect(_)
            | Self::Tokenize(_)
            | Self::Route(_)
            | Self::Quantize(_)
            | Self::Convert(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
        }
    }

    /// Worker threads, where they are asked for.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        match self {
            Self::Convert(args) => args.threads.threads,
            Self::Quantize(args) => args.machine.threads.threads,
            _ => self.running()?.machine.threads.threads,
        }
    }

    /// What --model says.
    pub(crate) fn model(&self) -> Option<&Path> {
        let model = match self {
            Self::Inspect(args) => &args.model,
            Self::Tokenize(args) => &args.model,
            Self::Convert(args) => &args.model,
            Self::Quantize(args) => &args.model,
            _ => &self.running()?.model,
        };
        model.model.as_deref()
    }
}

/// Continue a text.
///
/// Standard output receives the prompt and its continuation as they come, standard error everything else: how fast it went,
/// and why it ended. With --show-routing, the experts of each token are shown too. A token's experts are those that work on it
/// when the model reads it, so that the last one drawn has none.
///
/// Ctrl-C ends the text and still reports; the exit status is then 130.
///
/// With --json, {"prompt_ids": [...], "ids": [...], "text": ..., "ended": ..., "end_token": ..., "stop_text": ..., "seed": ...,
/// "prompt_tokens", "generated_tokens", "passes", "prompt_seconds", "generation_seconds"} comes at the end. "ids" are the tokens
/// drawn, without an end token; "text" is what they add to the prompt, up to the text of --stop, or null where --ids are of a
/// model without a tokenizer; "ended" is "end_token", "stop_text", "max_tokens", "context" or "interrupted", of which the first
/// two have their id and text; "seed" is null where nothing is drawn at random; "prompt_tokens" of the prompt were read, and
/// "passes" of the generated tokens are read in the "generation_seconds".
#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// The text to continue; standard input if it is "-", or absent while standard input is no terminal
    #[arg(conflicts_with_all = ["prompt_file", "ids"])]
    pub(crate) prompt: Option<String>,
    /// Read the text from a file. Of a file or standard input, one newline at the end is left out
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with = "ids")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Token ids in place of a text, taken as they are: no BOS is put in front
    #[arg(long, value_name = "ID,ID,...", allow_hyphen_values = true)]
    pub(crate) ids: Option<Ids>,
    /// Print the ids drawn, with commas between, in place of text. With --ids, no tokenizer is needed
    #[arg(long)]
    pub(crate) print_ids: bool,
    /// Print the continuation only
    #[arg(long)]
    pub(crate) no_echo: bool,
    /// Print one JSON object, described above, in place of text
    #[arg(long, conflicts_with_all = ["print_ids", "no_echo", "show_routing"])]
    pub(crate) json: bool,
    /// Most tokens to generate [default: max_new_tokens or max_length of generation_config.json, else 256]
    #[arg(long, short = 'n', value_name = "N", allow_negative_numbers = true, value_parser = whole::<usize>)]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
    /// Go on after an end token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Show experts: "text" colours each token by its first expert in one layer, "tokens" lists tokens with their experts of
    /// every layer, best first [default: text where there are colours, else tokens]
    #[arg(long, value_name = "AS", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub(crate) show_routing: Option<RoutingView>,
    /// The layer that gives "text" its colours, from 0 [default: the middle one]
    #[arg(long, value_name = "N", requires = "show_routing")]
    pub(crate) routing_layer: Option<usize>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
    #[command(flatten)]
    pub(crate) running: Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoutingView {
    #[value(hide = true)]
    Auto,
    Text,
    Tokens,
}

/// Show what a model is made of and what running it takes.
///
/// Reads the config and the headers of weight files, whatever their size. With --memory, it tells what running within that costs: what
/// stays in memory, how much of the experts, how much a token reads, and how fast that is at most with this disk, of which up to a
/// gigabyte of experts is read to see; and for a budget that is too small, the least that is not.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// The model, as --model takes it [default: that of --model, or the demo]
    #[arg(conflicts_with = "model")]
    pub(crate) source: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Look at every weight for NaN and infinities, which reads all files
    #[arg(long)]
    pub(crate) check_values: bool,
    /// A route trace: how many experts its tokens would find in memory under --memory, and what they would read, exactly
    #[arg(long, value_name = "FILE", requires = "memory")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: Source,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) cache: Cache,
    #[command(flatten)]
    pub(crate) budget: Budget,
}

/// Show the token ids of a text or a chat.
///
/// Of a model directory, only its tokenizer is needed. Standard input is taken byte for byte, its last newline included.
#[derive(Debug, clap::Args)]
pub(crate) struct Tokenize {
    /// The text; standard input if it is absent or "-"
    pub(crate) text: Option<String>,
    /// A chat to write in the model's format: a JSON list of {"role": ..., "content": ...}, or an object with such a list as
    /// "messages", and "tools"; an answer begun with "prefix": true is gone on with
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "no_bos"])]
    pub(crate) chat: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Put no BOS in front of a text
    #[arg(long)]
    pub(crate) no_bos: bool,
    /// Write {"ids": [...], "pieces": [...]}
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: Source,
}

/// Run token ids through the model and show or save all it computes.
///
/// With --out, a safetensors file receives, for T tokens, logits [T, vocabulary] and, for each layer N, hidden.N [T, width]
/// (after the layer), router_logits.N [T, experts], experts.N [T, k] (i32, best first) and weights.N [T, k]. It appears when it
/// is complete.
#[derive(Debug, clap::Args)]
pub(crate) struct Logits {
    /// Token ids, taken as they are
    #[arg(long, value_name = "ID,ID,...", required = true, allow_hyphen_values = true)]
    pub(crate) ids: Ids,
    /// Tokens read in one pass, at least 1; those after them are read one at a time through the cache [default: all]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) prefill: Option<NonZeroUsize>,
    /// The file to write, in place of a summary
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Seed of what routers draw
    #[arg(long, short, value_name = "N", requires = "router", default_value_t, hide_default_value = true)]
    #[arg(allow_negative_numbers = true, value_parser = whole::<u64>)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// Route logits with any router and show how the experts are loaded. No model is needed.
///
/// FILE is JSON, an object with these keys, or a safetensors file with these tensors. Only "logits"
/// must be there. T are the tokens, E the experts, S the sequences:
///
///   logits        [T, E] numbers, "-inf" for an expert that the token may not have; in safetensors,
///                 --tensor may name others
///   token_ids     T whole numbers: the vocabulary id of each token, for hash
///   mask          T bits: 1 if the token is real, 0 if it is padding
///   positions     T whole numbers: places in the sequence, for draws [default: 0, 1, ...]
///   sequences     S whole numbers: lengths of the sequences [default: all tokens are one]
///   sequence_ids  S whole numbers: a name for each sequence, for draws [default: 0, 1, ...]
///   bias          E numbers, for the router that takes a selection bias
///   noise         numbers in place of draws: [T, E] normal for gaussian-noise and learned-noise,
///                 [T, E] uniform in 0..1 for jitter and random-second, [T, 2 E + 2] for
///                 sparse-mixer:choice=sampled, of which 2 E exponential and 2 uniform
///   noise_logits  [T, E] numbers, for learned-noise
///
/// In JSON, [T, E] is a list of T lists, a number may be "nan", "inf" or "-inf", a bit true or false,
/// and there are no other keys. In safetensors, numbers are F64, F32, F16 or BF16, whole numbers any
/// integers, bits integers or BOOL; other tensors are not looked at, so that FILE may be what
/// `mixtral logits --out` wrote. Numbers are taken as f32: one too great for that is an error.
///
/// Several --tensor are several layers of the same tokens: each is routed and reported, and the
/// load_balance loss is given over the rows of all of them, as Mixtral is trained with it.
///
/// With --json, "assignments" are each token's kept choices, best first, in token order, and
/// "refused" the choices that a capacity turned away. Every weight reads back to the same f32. A loss
/// that is not defined is null. Of several layers, "layers" has the same of each beside its "tensor".
/// The losses, f being choices and P mean probabilities of an expert, and what even routing gives:
///
///   load_balance                k; E sum(f P) over all tokens (Mixtral)
///   load_balance_per_sequence   k; the same for each sequence, averaged (Switch)
///   load_balance_first_choices  1; the same, f of first choices (GShard, V-MoE)
///   sequence_balance            1; E/k sum(f P) for each sequence, averaged (DeepSeek-V2)
///   sequence_balance_sigmoid    1; the same of sigmoids over their sum (DeepSeek-V3)
///   z                           mean of (ln sum exp(l))^2 (ST-MoE)
///   importance_cv2              0; squared coefficient of variation of P (V-MoE)
///   entropy                     ln E; mean entropy of a token's probabilities, in nats
///
/// Padding is not routed and counts nowhere. Where a router draws noise, f is of the noisy logits; of
/// which P and the rest are, --loss-logits says.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Route {
    /// The logits; standard input if it is "-"
    #[arg(long, value_name = "FILE", required_unless_present = "list")]
    pub(crate) logits: Option<PathBuf>,
    /// The router, as in "top-k:k=2" or "capped(top-k:k=2):factor=1.25"; --list has all of them
    #[arg(long, value_name = "SPEC", required_unless_present = "list")]
    pub(crate) router: Option<RouterSpec>,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Name of the logits in a safetensors file, as router_logits.0; again for another layer [default: logits]
    #[arg(long, value_name = "NAME")]
    pub(crate) tensor: Vec<String>,
    /// What the numbers given as logits are; with probabilities, losses of the size of logits are not defined
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    pub(crate) given: GivenAs,
    /// Which logits losses are of where the router draws noise: as the router's paper has it, the noisy ones, or those without
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub(crate) loss_logits: LossLogits,
    /// What counts alike in losses that are averaged over sequences
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub(crate) loss_mean: LossMean,
    /// Seed of routers that draw
    #[arg(long, short, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// The layer whose logits these are, or the first of several, for routers that draw: each layer draws its own numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) layer: usize,
    /// List the routers, what they do, their settings and where they are from
    #[arg(long, conflicts_with_all = ["logits", "router"])]
    pub(crate) list: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum GivenAs {
    #[default]
    Logits,
    /// Softmax over the experts
    Probabilities,
    /// 1 / (1 + exp(-l))
    Sigmoids,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LossLogits {
    /// Noisy, but for importance under gaussian-noise (V-MoE)
    #[default]
    Paper,
    /// Those the router decided on
    Noisy,
    /// Those of the file (P of DeepSpeed's RSample)
    Clean,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LossMean {
    #[default]
    Sequences,
    /// The mean is weighted by the tokens of each sequence
    Tokens,
}

fn one_or_more(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "expected a whole number, 1 or more".to_owned())
}

/// Token ids with commas between them.
#[derive(Clone, Debug)]
pub(crate) struct Ids(pub(crate) Vec<u32>);

impl FromStr for Ids {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        let id = |text: &str| {
            text.trim()
                .parse()
                .map_err(|_| format!("expected ids with commas between, found {:?}", text.trim()))
        };
        list.split(',').map(id).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn ids() {
        assert_eq!("1, 2,30".parse::<Ids>().unwrap().0, [1, 2, 30]);
        for bad in ["", "1,,2", "1,", "-1", "4294967296", "1 2"] {
            assert!(bad.parse::<Ids>().unwrap_err().starts_with("expected ids"), "{bad:?}");
        }
    }
}
