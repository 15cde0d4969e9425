//! What can go wrong between a checkpoint directory and its text.

use std::path::{Path, PathBuf};

use moe_core::{BoxError, OutOfMemory};
use moe_router::SpecError;
use moe_router::trace::TraceError;

use crate::budget::MemoryPlan;
use crate::inspect::Bytes;
use crate::lab::exchange::ExchangeError;

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a layer calls an observer that could not do its work.
const OBSERVER: &str = "observer";

/// An error of loading or running a model.
///
/// What concerns a file carries its path, and its tensor or field where there is one, with what was expected and found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading a file failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is not JSON, or not of the expected form.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A field of `config.json`, or of the index of shards, is missing, impossible, or contradicts another.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor is missing, has another shape or element type than the config implies, is not where the index says,
    /// or holds values that are not finite.
    #[error("{}: {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file, or the directory where no file holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What the config implies.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A weight file or its index is damaged or not of a known layout.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Checkpoint {
        /// The file or directory.
        path: PathBuf,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A route trace is damaged, or cannot be written.
    #[error("{}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TraceError,
    },
    /// A route trace cannot be turned into another format, or a foreign one not into a trace.
    #[error("{}: {source}", path.display())]
    Exchange {
        /// The file that is read.
        path: PathBuf,
        /// What is wrong.
        source: ExchangeError,
    },
    /// A budget of memory is too small.
    #[error(
        "memory: expected at least {} (program {}, weights other than experts {}, keys and values {}, buffers {}, what is kept besides {}, two experts {}), \
         found {}", Bytes(plan.least), Bytes(plan.program), Bytes(plan.weights), Bytes(plan.kv_cache), Bytes(plan.workspace),
        Bytes(plan.besides),         Bytes(plan.least - plan.fixed()), Bytes(plan.budget)
    )]
    Budget {
        /// What takes how much.
        plan: Box<MemoryPlan>,
    },
    /// A text is no router.
    #[error(transparent)]
    RouterSpec(#[from] SpecError),
    /// A tokenizer file is damaged or of an unknown kind.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A token id is not below the vocabulary's size.
    #[error("token id {token}: expected less than {vocabulary}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// Number of ids there are.
        vocabulary: usize,
    },
    /// A chat cannot be written in the model's format.
    #[error("chat message {index}: {reason}")]
    Chat {
        /// Position of the message, from 0.
        index: usize,
        /// What would be accepted, and what is there.
        reason: String,
    },
    /// A chat template is damaged, does not end, or refuses the chat.
    #[error("{origin}{}: {reason}", line_suffix(*line))]
    ChatTemplate {
        /// Where the template is from.
        origin: String,
        /// The line of the template, from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// A step or a prompt without tokens.
    #[error("prompt: expected at least one token, found none")]
    EmptyPrompt,
    /// A text in which nothing is to be predicted.
    #[error("text: expected at least {least} tokens, found {tokens}")]
    TextTooShort {
        /// How many there must be.
        least: usize,
        /// Its tokens.
        tokens: usize,
    },
    /// A session would pass its limit of positions.
    #[error("context: expected at most {context} positions, found {}", found_positions(*position, *tokens))]
    ContextOverflow {
        /// Positions in the session.
        position: usize,
        /// Tokens to be added.
        tokens: usize,
        /// The limit.
        context: usize,
    },
    /// Memory for something whose size the caller chose is not to be had.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// NaN or an infinity arose.
    #[error("{}{stage}: token {token}: expected finite values, found {value}", layer_prefix(*layer))]
    NotFinite {
        /// The layer, if it was in one.
        layer: Option<usize>,
        /// What was being computed.
        stage: &'static str,
        /// Place among the tokens of its step.
        token: usize,
        /// The value.
        value: f32,
    },
    /// The rules of sampling leave no token to choose.
    #[error("sampling: position {position}: expected a token that may come, found all suppressed")]
    AllSuppressed {
        /// Position of the token that was to be chosen.
        position: usize,
    },
    /// Other passes have taken what this one needs, and it must not wait on its thread, a worker of a thread pool.
    #[error("{what}: taken by other passes, on a thread that must not wait for them")]
    Busy {
        /// Of what there is only so much.
        what: &'static str,
    },
    /// One of the steps of a pass of several is at fault.
    #[error("step {step}: {source}")]
    Step {
        /// Its place in the pass.
        step: usize,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// An observer could not do its work.
    #[error("{source}")]
    Observer {
        /// What kept it.
        source: BoxError,
    },
    /// An observer ended the pass.
    #[error("stopped")]
    Stopped,
    /// A setting of a session, of sampling or of generation that means nothing.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A layer's weights, or the head's, do not allow the kind of products asked for.
    #[error("{}{matrix}: {source}", layer_prefix(*layer))]
    Weights {
        /// The layer, if it is one's.
        layer: Option<usize>,
        /// Name of the matrix.
        matrix: &'static str,
        /// What is wrong with it.
        source: moe_kernels::Error,
    },
    /// A mixture-of-experts layer failed, or cannot be made.
    #[error("layer {layer}, {source}")]
    Layer {
        /// The layer.
        layer: usize,
        /// What it says.
        source: moe_core::Error,
    },
    /// Weights that do not fit together.
    #[error(transparent)]
    Kernels(moe_kernels::Error),
}

impl Error {
    /// A file or directory that is not what it should be.
    pub(crate) fn checkpoint(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), expected: expected.into(), found: found.into() }
    }

    /// What a matrix's products refuse, with its place.
    pub(crate) fn weights(
        layer: Option<usize>,
        matrix: &'static str,
    ) -> impl FnOnce(moe_kernels::Error) -> Self {
        move |source| match source {
            moe_kernels::Error::OutOfMemory(error) => Self::OutOfMemory(error),
            source => Self::Weights { layer, matrix, source },
        }
    }

    /// An error of step `n` of so many.
    pub(crate) fn of_step(self, n: usize, steps: usize) -> Self {
        match self {
            Self::OutOfMemory(_) | Self::Step { .. } => self,
            _ if steps == 1 => self,
            source => Self::Step { step: n, source: Box::new(source) },
        }
    }

    /// An error of a pass whose steps have so many tokens each: that of one step, where it is about one.
    pub(crate) fn in_steps(self, lengths: impl ExactSizeIterator<Item = usize>) -> Self {
        let steps = lengths.len();
        match self {
            Self::NotFinite { layer, stage, token, value } => {
                let mut token = token;
                for (n, length) in lengths.enumerate() {
                    if token < length {
                        return Self::NotFinite { layer, stage, token, value }.of_step(n, steps);
                    }
                    token -= length;
                }
                Self::NotFinite { layer, stage, token, value }
            }
            Self::Layer { layer, source: moe_core::Error::Sequence { sequence, source } } => {
                match Self::moe(layer, *source, |row| row) {
                    shared @ (Self::OutOfMemory(_) | Self::Busy { .. }) => shared,
                    own => own.of_step(sequence, steps),
                }
            }
            other => other,
        }
    }

    /// What a mixture-of-experts layer says, with its place; `token` is the place of one of its rows in the batch.
    pub(crate) fn moe(layer: usize, source: moe_core::Error, token: impl Fn(usize) -> usize) -> Self {
        match source {
            moe_core::Error::NotFinite { stage, token: row, value, .. } => {
                Self::NotFinite { layer: Some(layer), stage: stage.name(), token: token(row), value }
            }
            moe_core::Error::Busy { what } => Self::Busy { what },
            moe_core::Error::Custom { what: OBSERVER, source } => Self::Observer { source },
            moe_core::Error::OutOfMemory(error) => Self::OutOfMemory(error),
            source => Self::Layer { layer, source },
        }
    }
}

impl From<moe_kernels::Error> for Error {
    fn from(source: moe_kernels::Error) -> Self {
        match source {
            moe_kernels::Error::OutOfMemory(error) => Self::OutOfMemory(error),
            source => Self::Kernels(source),
        }
    }
}

fn layer_prefix(layer: Option<usize>) -> String {
    layer.map_or_else(String::new, |n| format!("layer {n}, "))
}

fn found_positions(position: usize, tokens: usize) -> String {
    if position == 0 { tokens.to_string() } else { format!("{position} and {tokens} more") }
}

fn line_suffix(line: Option<usize>) -> String {
    line.map_or_else(String::new, |n| format!(", line {n}"))
}
