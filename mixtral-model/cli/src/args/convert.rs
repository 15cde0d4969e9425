//! Arguments of `mixtral convert` and `mixtral quantize`.

use std::path::PathBuf;

use clap::ValueEnum;
use mixtral_model::convert::Choice;

use super::{Access, Machine, Source, Threads};

/// Write a model as a GGUF file with smaller weights.
///
/// The model of --model is read a few million weights at a time, rounded on all threads, and written in
/// llama.cpp's present layout, whatever layout it has. The file appears when it is complete. Ctrl-C
/// leaves nothing; the exit status is then 130.
///
/// TYPE alone is for every matrix; norms and gates stay f32. By bits a weight:
///
///   q2_k 2.63, q3_k 3.44, iq4_xs 4.25, mxfp4 4.25, q4_k 4.5, q4_0 4.5, iq4_nl 4.5, q4_1 5,
///   q5_k 5.5, q5_0 5.5, q5_1 6, q6_k 6.56, q8_0 8.5, bf16 16, f16 16, f32 32
///
/// or one of llama.cpp's mixes, which choose by part of the model and layer:
///
///   q2_k_mix, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k_mix, q4_0_mix,
///   q4_1_mix, q5_0_mix, q5_1_mix, q8_0_mix, iq4_nl_mix, iq4_xs_mix, mxfp4_moe
///
/// SELECTION=TYPE is for some tensors. Others have what was said before it, or stay as they are:
///
///   SELECTION  PART, PART@LAYERS, PART:EXPERTS or PART@LAYERS:EXPERTS
///   PART       all, embedding, head, attention, attention.q, attention.k, attention.v, attention.o,
///              experts, experts.w1, experts.w2, experts.w3
///   LAYERS     numbers from 0 and ranges, both ends included, with commas between: 0-3,31
///   EXPERTS    the same
///
///   mixtral quantize -m Mixtral-8x7B-v0.1 --dtype q4_k --dtype experts.w2@0-3,28-31=q6_k \
///       --dtype head=q6_k --out mixtral.gguf
///
/// Rows that are no whole blocks of 256 take a type of blocks of 32 (q2_k and q3_k q4_0, q4_k q5_0,
/// q5_k q5_1, q6_k q8_0, iq4_xs iq4_nl), and f16 if they are no whole blocks of those either.
///
/// The summary has, for each part and type, the bits a weight, the bytes, and the root mean square of
/// the errors relative to that of the weights.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Quantize {
    /// The type of the weights; of several, the last that concerns a tensor counts
    #[arg(long, value_name = "[SELECTION=]TYPE", required = true)]
    pub(crate) dtype: Vec<Choice>,
    /// The GGUF file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Importances of columns, a file of llama.cpp's imatrix tool in its GGUF form: errors count by them, each expert's by its own
    #[arg(long, value_name = "FILE")]
    pub(crate) imatrix: Option<PathBuf>,
    /// Measure importances on a text: the model reads it, and each expert's columns count as much as what came to them
    #[arg(long, value_name = "TEXTFILE", conflicts_with = "imatrix")]
    pub(crate) calibrate: Option<PathBuf>,
    /// Write the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: Source,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) machine: Machine,
}

/// Write a model as a GGUF file, or as a directory with the hub's files.
///
/// Weights keep their types and values, unless --dtype says otherwise: only names, the order of rows of queries and keys, and how
/// experts are put together change. In a GGUF file norms and gates are f32, as llama.cpp's converter has them; in a directory
/// they have the type of the model's other tensors again if that holds their values.
///
/// A directory has no types for quantised weights: these are refused without --dtype.
///
/// What is written appears when it is complete. Ctrl-C ends it and leaves nothing; the exit status is then 130.
#[derive(Debug, clap::Args)]
pub(crate) struct Convert {
    /// The GGUF file to write, if it ends in .gguf, or else the directory, which must not be there or be empty
    #[arg(long, short, value_name = "FILE.gguf|DIR")]
    pub(crate) out: PathBuf,
    /// A type for all weights
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<PlainType>,
    /// Write the summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: Source,
    #[command(flatten)]
    pub(crate) access: Access,
    #[command(flatten)]
    pub(crate) threads: Threads,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PlainType {
    F32,
    F16,
    Bf16,
}

impl From<PlainType> for Choice {
    fn from(ty: PlainType) -> Self {
        Self::all(match ty {
            PlainType::F32 => moe_kernels::Dtype::F32.into(),
            PlainType::F16 => moe_kernels::Dtype::F16.into(),
            PlainType::Bf16 => moe_kernels::Dtype::Bf16.into(),
        })
    }
}
