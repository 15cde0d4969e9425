//! What `mixtral chat` takes, and all commands that write chats.

use std::str::FromStr;

use mixtral_model::MistralVersion;

use super::sampling::whole;
use super::{RouterArgs, Running, SamplingArgs, StopArgs};

/// Talk to an instruct model, one line a turn.
///
/// Lines come from standard input until it ends, each of at most 16 MiB; answers go to standard output.
/// The model reads each turn once, for keys and values are kept from turn to turn, unless the format
/// changes what was said before, or --stop cuts an answer. Ctrl-C ends an answer, and between answers
/// the chat; SIGTERM and SIGHUP end the chat.
///
/// In a terminal, lines are edited and called back, the speed of each answer is told, and there are
/// commands, which elsewhere are lines like others:
///
///   /help        list the commands
///   /clear       forget the conversation
///   /bye, /exit  end the chat, as Ctrl-D does
///   """          begin a turn of several lines, which ends with another """
///
/// The demo model was not taught to answer: it continues the conversation as a novel would.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Chat {
    /// Instructions for the whole chat, where the chat's format puts them
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) system: String,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Most tokens of an answer [default: max_new_tokens or max_length of generation_config.json, else 512]
    #[arg(long, short = 'n', value_name = "N", allow_negative_numbers = true, value_parser = whole::<usize>)]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
    /// Tell the speed of each answer, as in a terminal
    #[arg(long)]
    pub(crate) speed: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
    #[command(flatten)]
    pub(crate) running: Running,
}

/// How chats are written.
#[derive(Debug, clap::Args)]
pub(crate) struct FormatArgs {
    /// The format of chats: v1, v2, v3 or v7 of Mistral's, the name of one of the model's templates, or a file with a template
    /// [default: what the model's files say]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) chat_format: Option<FormatName>,
}

/// A chat format that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FormatName {
    Mistral(MistralVersion),
    /// The name of one of the model's templates, or a file.
    Template(String),
}

impl FromStr for FormatName {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(name.parse().map_or_else(|_| Self::Template(name.to_owned()), Self::Mistral))
    }
}
