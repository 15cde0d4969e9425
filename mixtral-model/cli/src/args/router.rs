//! Routers and gates in the place of a model's own.

use std::path::PathBuf;

/// How tokens are routed.
#[derive(Debug, clap::Args)]
pub(crate) struct RouterArgs {
    /// Route by this in place of the model's own routers: a router as `route` takes it, or several for the layers before each, counted
    /// from 0, as in "0-15@top-k:k=1;16-31@expert-choice:capacity=1.0"; layers that are not named keep their own
    #[arg(long, value_name = "SPEC", help_heading = "Model")]
    pub(crate) router: Option<String>,
    /// Take the gates of all layers, or of some, from this safetensors or GGUF file or directory, in place of the model's own; they
    /// are called as in a model: model.layers.0.block_sparse_moe.gate.weight, [experts, width]
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub(crate) gates: Option<PathBuf>,
}
