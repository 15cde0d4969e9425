//! Which model, on what machine, and how it is run: what several commands take, each as much of it as it uses.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;
use moe_kernels::{Activations, Backend, Dtype};

use super::{Budget, one_or_more};

const MODEL: &str = "Model";
const MACHINE: &str = "Machine";

/// A model that is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Running {
    #[command(flatten)]
    pub(crate) model: Source,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) cache: Cache,
    #[command(flatten)]
    pub(crate) budget: Budget,
    /// What products do to their activations, of matrices whose type has such products; others, and the gates, stay exact: f32
    /// is exact, bf16 rounds them for bf16 weights, none below 2^-56, which a matrix is looked through for when it is first
    /// used, int8 rounds them for block-quantised weights
    #[arg(long, value_name = "KIND", default_value_t, help_heading = MACHINE)]
    pub(crate) activations: Activations,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

/// The model.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// The model: a directory as on the Hugging Face hub or of Mistral's own files, a GGUF file (the first part of a split one), or
    /// the name of a repository in the hub's local cache, of GGUF files with the type behind a colon [default: the demo]
    #[arg(long, short, value_name = "SOURCE", help_heading = MODEL)]
    pub(crate) model: Option<PathBuf>,
}

/// How its weights are reached.
#[derive(Debug, clap::Args)]
pub(crate) struct Access {
    /// Read weights into memory instead of mapping their files
    #[arg(long, conflicts_with_all = ["prefault", "lock"], help_heading = MODEL)]
    pub(crate) read: bool,
    /// Bring all pages of mapped weights into memory before anything else
    #[arg(long, help_heading = MODEL)]
    pub(crate) prefault: bool,
    /// Keep all pages of mapped weights in memory
    #[arg(long, help_heading = MODEL)]
    pub(crate) lock: bool,
}

/// Its keys and values.
#[derive(Debug, clap::Args)]
pub(crate) struct Cache {
    /// Element type of cached keys and values; f32 is exact, the others take half the memory
    #[arg(long, value_name = "TYPE", value_enum, default_value_t, help_heading = MODEL)]
    pub(crate) kv_type: KvType,
    /// Most positions of a sequence [default: the model's own limit]
    #[arg(long, value_name = "N", value_parser = one_or_more, help_heading = MODEL)]
    pub(crate) context: Option<NonZeroUsize>,
}

/// How many threads work.
#[derive(Debug, clap::Args)]
pub(crate) struct Threads {
    /// Worker threads [default: one a physical core that the process may use, or as many as its share of processor time
    /// allows]; results do not depend on it
    #[arg(long, short = 'j', value_name = "N", value_parser = threads, help_heading = MACHINE)]
    #[arg(env = "RAYON_NUM_THREADS", hide_env_values = true)]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// What computes.
#[derive(Debug, clap::Args)]
pub(crate) struct Machine {
    #[command(flatten)]
    pub(crate) threads: Threads,
    #[arg(long, value_name = "NAME", env = "MIXTRAL_BACKEND", hide_env_values = true)]
    #[arg(help = backend_help(), help_heading = MACHINE)]
    pub(crate) backend: Option<Backend>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum KvType {
    #[default]
    F32,
    F16,
    Bf16,
}

impl From<KvType> for Dtype {
    fn from(kv_type: KvType) -> Self {
        match kv_type {
            KvType::F32 => Self::F32,
            KvType::F16 => Self::F16,
            KvType::Bf16 => Self::Bf16,
        }
    }
}

fn backend_help() -> String {
    let names = Backend::NAMES.join(", ");
    format!("Instruction set, of {names} [default: the best here]; results do not depend on it")
}

/// More threads than any machine of today has processors would only take its memory.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= 1024);
    threads.ok_or_else(|| "expected a whole number, 1 to 1024".to_owned())
}
