//! The formats, and what gets lost on the way.

use std::fmt;
use std::str::FromStr;

/// A format of another project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TraceFormat {
    /// Megatron-LM's `RouterTracer`, JSONL.
    Megatron,
    /// `routed_experts` of vLLM as an array file of numpy.
    Npy,
    /// Expert ids and weights of prime-rl as an array file of numpy.
    PrimeRl,
    /// Responses of SGLang, as slime keeps them.
    Sglang,
    /// Responses of vLLM.
    Vllm,
    /// `route_trace v1` of BigMoeOnEdge, CSV.
    BigMoeOnEdge,
    /// Lattice's routing trace, NDJSON.
    Lattice,
    /// The routing trace of moe-balance, JSONL.
    MoeBalance,
    /// `moe-trace` of llama.cpp, CSV.
    LlamaCpp,
}

/// What the files of a format state, so that nobody else can.
#[derive(Clone, Copy, Debug)]
pub(super) struct States {
    /// Experts of a token in a layer.
    pub(super) choices: bool,
    /// Identities of sequences.
    pub(super) sequences: bool,
}

/// What is known of a format.
struct Facts {
    name: &'static str,
    about: &'static str,
    loses: &'static [&'static str],
    lacks: &'static [&'static str],
}

const NO_WEIGHTS: &str = "It has no weights: the trace says weights=none, and is replayed with weights of the logits at hand only.";
const NO_EXPERTS: &str = "It does not say how many experts and layers there are: the caller does.";
const NO_TOKENS: &str = "Token ids are unknown.";
const NO_CAPACITY: &str = "What capacity refused is unknown.";
const NO_PASSES: &str = "Where one pass ended is made up: it is the prompt, if its length is known or given, and then a token each; else the whole sequence.";
const GUESSED_PHASE: &str = "The phase is decode where a pass has one token, else prefill.";
const NUMBERED: &str =
    "Sequences and positions are made up: tokens are numbered as they come, in one sequence.";
const UNKNOWN_ROUTES: &str = "A token whose experts in a layer are all -1 was not routed anew: it is not in the trace there, and counted as unknown.";

const LOSES_IDS: &str = "Token ids.";
const LOSES_WEIGHTS: &str = "Weights.";
const LOSES_ASKED: &str =
    "Which pairs were refused, and where rerouted ones went: it has what routers asked for, before capacity.";
const LOSES_ZERO: &str =
    "Which pairs were refused, for they have the weight 0, and which expert a rerouted pair was to go to.";
const LOSES_REFUSED: &str = "Pairs that were refused, and which expert a rerouted pair was to go to.";
const LOSES_PASSES: &str = "Passes and phases.";
const LOSES_PLACES: &str = "Sequences and positions.";
const LOSES_NAMES: &str = "Names of the model, its checkpoint, router and program.";
const LOSES_EXPERTS: &str = "How many experts and layers there are.";

impl TraceFormat {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Megatron,
        Self::Npy,
        Self::PrimeRl,
        Self::Sglang,
        Self::Vllm,
        Self::BigMoeOnEdge,
        Self::Lattice,
        Self::MoeBalance,
        Self::LlamaCpp,
    ];

    /// What its files state.
    pub(super) fn states(self) -> States {
        use TraceFormat::*;
        let choices = !matches!(self, Sglang | LlamaCpp);
        States { choices, sequences: matches!(self, BigMoeOnEdge | MoeBalance) }
    }

    fn facts(self) -> Facts {
        match self {
            Self::Megatron => Facts {
                name: "megatron",
                about: "Megatron-LM RouterTracer, JSONL: the experts that were asked for, a line a pass and layer",
                loses: &[
                    LOSES_WEIGHTS,
                    LOSES_PLACES,
                    LOSES_IDS,
                    LOSES_ASKED,
                    "Phases, but for what the number of tokens of a pass says.",
                    LOSES_EXPERTS,
                    LOSES_NAMES,
                ],
                lacks: &[
                    NO_WEIGHTS,
                    NO_EXPERTS,
                    NUMBERED,
                    GUESSED_PHASE,
                    NO_TOKENS,
                    "Ranks are the order of the list, which a tracer of routing maps writes in ascending ids, not best first.",
                    "What capacity refused counts as kept: it is recorded before the dispatch.",
                    "Lines of other blocks than the decoder (MTP) are passed over, and counted.",
                    "Layers keep their numbers, which count from a pipeline stage's first layer.",
                ],
            },
            Self::Npy => Facts {
                name: "npy",
                about: "routed_experts of vLLM as .npy, [tokens, layers, choices]: the experts of one sequence",
                loses: &[
                    LOSES_WEIGHTS,
                    LOSES_ASKED,
                    LOSES_PASSES,
                    LOSES_IDS,
                    "Which sequence it was, and how many experts there are.",
                    LOSES_NAMES,
                ],
                lacks: &[
                    NO_WEIGHTS,
                    "It does not say how many experts there are: the caller does.",
                    NO_PASSES,
                    GUESSED_PHASE,
                    UNKNOWN_ROUTES,
                    NO_TOKENS,
                    NO_CAPACITY,
                    "Layers are those with experts, numbered from 0.",
                ],
            },
            Self::PrimeRl => Facts {
                name: "prime-rl",
                about: "prime-rl's expert ids and bits of f32 weights as .npy, int32 [tokens, layers, 2 * choices]",
                loses: &[
                    LOSES_ZERO,
                    LOSES_PASSES,
                    LOSES_IDS,
                    "Which sequence it was, and how many experts there are.",
                    LOSES_NAMES,
                ],
                lacks: &[
                    "It does not say how many experts there are: the caller does.",
                    NO_PASSES,
                    GUESSED_PHASE,
                    UNKNOWN_ROUTES,
                    NO_TOKENS,
                    NO_CAPACITY,
                    "Layers are those with experts, numbered from 0.",
                ],
            },
            Self::Sglang => Facts {
                name: "sglang",
                about: "responses of SGLang, as slime reads them: meta_info.routed_experts, base64 of int32 [length - 1, layers, choices]",
                loses: &[
                    LOSES_WEIGHTS,
                    LOSES_ASKED,
                    "Passes, but for the length of the prompt.",
                    LOSES_IDS,
                    "Identities of sequences.",
                    "How many experts, layers and choices there are.",
                    LOSES_NAMES,
                ],
                lacks: &[
                    NO_WEIGHTS,
                    NO_EXPERTS,
                    "It does not say how many choices a token has: the caller does.",
                    NO_PASSES,
                    GUESSED_PHASE,
                    UNKNOWN_ROUTES,
                    "Sequences are numbered as responses come.",
                    NO_TOKENS,
                    NO_CAPACITY,
                ],
            },
            Self::Vllm => Facts {
                name: "vllm",
                about: "responses of vLLM: choices[].routed_experts, base64 of .npy [length - 1, layers, choices]",
                loses: &[
                    LOSES_WEIGHTS,
                    LOSES_ASKED,
                    "Passes, but for the length of the prompt.",
                    LOSES_IDS,
                    "Identities of sequences, and how many experts there are.",
                    LOSES_NAMES,
                ],
                lacks: &[
                    NO_WEIGHTS,
                    "It does not say how many experts there are: the caller does.",
                    NO_PASSES,
                    GUESSED_PHASE,
                    UNKNOWN_ROUTES,
                    "Sequences are numbered as responses come, and their choices.",
                    "Token ids are known where the response has prompt_token_ids and token_ids.",
                    NO_CAPACITY,
                    "Layers are those with experts, numbered from 0.",
                ],
            },
            Self::BigMoeOnEdge => Facts {
                name: "bigmoeonedge",
                about: "BigMoeOnEdge route_trace v1, CSV: a row an expert",
                loses: &[
                    LOSES_IDS,
                    "Which expert a rerouted pair was to go to.",
                    "Tokens without a pair.",
                    "Passes, but for what turns, phases and the order of layers say.",
                    "Names of checkpoint, router and program.",
                    "It is written without residency and expert_bytes, which a trace does not know.",
                ],
                lacks: &[
                    NO_TOKENS,
                    "A pass is made up: it ends where the turn or the phase changes or a layer comes again, and after every decoded token.",
                    "Turns are taken for sequences.",
                    "What was dropped is refused, and its weight is gone.",
                    "Weights are as exact as the file's decimals, six digits where BigMoeOnEdge wrote it; where they are nan, the trace says weights=none.",
                ],
            },
            Self::Lattice => Facts {
                name: "lattice",
                about: "lattice's routing trace, NDJSON: a line a token and layer",
                loses: &[LOSES_REFUSED, LOSES_IDS, "Sequences.", LOSES_PASSES, LOSES_EXPERTS, LOSES_NAMES],
                lacks: &[
                    "Where gate_weights are missing, the trace says weights=none.",
                    NO_EXPERTS,
                    "Sequences are unknown: token_idx is taken for the position in one sequence.",
                    "A pass is made up: it ends where a layer before the last one comes.",
                    GUESSED_PHASE,
                    NO_TOKENS,
                    NO_CAPACITY,
                ],
            },
            Self::MoeBalance => Facts {
                name: "moe-balance",
                about: "moe-balance's routing trace, JSONL: a line a batch and layer",
                loses: &[
                    LOSES_ZERO,
                    LOSES_IDS,
                    LOSES_PASSES,
                    LOSES_EXPERTS,
                    LOSES_NAMES,
                    "origin_rows are 0: a trace does not know devices.",
                ],
                lacks: &[
                    "Where topk_weights are missing, the trace says weights=none.",
                    NO_EXPERTS,
                    "A batch_id is taken for a sequence, and its tokens are numbered from 0.",
                    "A pass is made up: it ends where the batch changes or a layer comes again.",
                    UNKNOWN_ROUTES,
                    GUESSED_PHASE,
                    NO_TOKENS,
                    NO_CAPACITY,
                    "origin_rows are passed over.",
                ],
            },
            Self::LlamaCpp => Facts {
                name: "llama.cpp",
                about: "llama.cpp moe-trace, CSV: a row layer,expert for every expert of a token",
                loses: &[
                    LOSES_WEIGHTS,
                    LOSES_ASKED,
                    LOSES_PLACES,
                    LOSES_IDS,
                    LOSES_PASSES,
                    "Tokens without a pair.",
                    "How many experts, layers and choices there are: a trace whose tokens have not all the same number of experts cannot be read again.",
                    LOSES_NAMES,
                ],
                lacks: &[
                    NO_WEIGHTS,
                    NO_EXPERTS,
                    "It does not say how many choices a token has: the caller does.",
                    "A pass is made up: it ends where a layer before the last one comes.",
                    NUMBERED,
                    "Where llama.cpp routes only the last token of a prompt in its last layer, it gets the number of the first.",
                    GUESSED_PHASE,
                    NO_TOKENS,
                ],
            },
        }
    }

    /// Its name, as [`FromStr`] knows it.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// What it is, in a line.
    pub fn about(self) -> &'static str {
        self.facts().about
    }

    /// What of a trace is not carried on export, in sentences.
    pub fn loses(self) -> &'static [&'static str] {
        self.facts().loses
    }

    /// What an import has to leave unknown, to ask for or to make up, in sentences.
    pub fn lacks(self) -> &'static [&'static str] {
        self.facts().lacks
    }
}

impl fmt::Display for TraceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A text that is no name of a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("format: expected one of {}, found {found:?}", names())]
pub struct UnknownFormat {
    /// The text.
    pub found: String,
}

fn names() -> String {
    TraceFormat::ALL.map(TraceFormat::name).join(", ")
}

impl FromStr for TraceFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let known = Self::ALL.into_iter().find(|format| format.name() == text);
        known.ok_or_else(|| UnknownFormat { found: text.chars().take(200).collect() })
    }
}
