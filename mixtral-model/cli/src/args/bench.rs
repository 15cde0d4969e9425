//! Arguments of `mixtral bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use moe_kernels::WeightFormat;

use super::{Running, one_or_more};

/// Measure this machine, then a model, or a single layer, against its limits.
///
/// The limits are multiplications and additions that never leave the registers, and a plain read of memory. They are
/// measured between the rounds of what is compared with them, since on a shared machine they drift.
///
/// A model is timed reading prompts, and continuing one or more sessions by a token each; the share of attention, router,
/// experts and head in that, and how busy the threads were. With --layer no model is needed: the layer has pseudo-random
/// weights, Mixtral's router, and pseudo-random tokens.
///
/// With --json, a layer gives an array of {"case", "backend", "dtype", "activations", "tokens", "experts_touched",
/// "threads", "seconds", "seconds_min", "seconds_max", "gflops", "gbytes_per_s", "share_of_fma_peak",
/// "share_of_bandwidth", "peak_gflops", "read_gbytes_per_s", "tiles", "interrupted"}; seconds are the median of the rounds, operations those
/// of chosen experts, bytes those of weights of experts with tokens. "tiles" says how exact products of many rows are cut on
/// this processor: rows of x by rows of weights, and where weights are widened. "peak_gflops" and "read_gbytes_per_s" are the
/// limits, medians of the same rounds and of three measurements at least.
///
/// Ctrl-C ends it after the pass at hand: what was measured is printed, the last case of the rounds that it had, a table with a
/// line that says so, JSON with "interrupted": true in every case, and no chart; the exit status is then 130.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// A layer: model width, hidden width, experts, experts a token
    #[arg(long, value_name = "DxHxExK")]
    #[arg(conflicts_with_all = ["model", "read", "prefault", "lock", "kv_type", "context", "memory"])]
    pub(crate) layer: Option<LayerShape>,
    /// Type of the layer's weights: f32, f16, bf16, or a block type of GGUF files, as q8_0 or q4_k
    #[arg(long, value_name = "TYPE", default_value = "bf16", requires = "layer")]
    pub(crate) dtype: WeightFormat,
    /// Tokens of a layer's batch, or of a prompt
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [1, 8, 32, 128, 512].map(positive))]
    pub(crate) tokens: Vec<NonZeroUsize>,
    /// Sessions that a model continues together
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32].map(positive), conflicts_with = "layer")]
    pub(crate) sessions: Vec<NonZeroUsize>,
    /// Rounds, of which the median counts [default: 9 of up to 32 tokens, 5 of more]
    #[arg(long, value_name = "N", value_parser = one_or_more)]
    pub(crate) rounds: Option<NonZeroUsize>,
    /// Time dense layers beside it, of equal active and of equal total parameters
    #[arg(long, requires = "layer")]
    pub(crate) dense: bool,
    /// Draw the times of these as SVG
    #[arg(long, value_name = "FILE", requires = "dense")]
    pub(crate) chart: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) running: Running,
}

const fn positive(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("not zero")
}

/// Shape of a layer, as in 4096x14336x8x2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerShape {
    pub(crate) dim: usize,
    pub(crate) hidden: usize,
    pub(crate) experts: usize,
    pub(crate) chosen: usize,
}

impl FromStr for LayerShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> =
            text.split('x').map(|n| n.parse().ok().filter(|n| (1..=1 << 20).contains(n))).collect();
        match numbers.as_deref() {
            Some(&[dim, hidden, experts, chosen]) if chosen <= experts => {
                Ok(Self { dim, hidden, experts, chosen })
            }
            Some([_, _, experts, _]) => Err(format!("expected at most {experts} experts a token")),
            _ => Err("expected four numbers from 1 to 1048576, as in 4096x14336x8x2".to_owned()),
        }
    }
}

impl std::fmt::Display for LayerShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}x{}", self.dim, self.hidden, self.experts, self.chosen)
    }
}
