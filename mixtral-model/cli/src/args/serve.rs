//! What `mixtral serve` takes.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::{Bytes, FormatArgs, RouterArgs, Running, one_or_more};

/// Answer requests over HTTP, as OpenAI's clients and lm-evaluation-harness make them.
///
/// "listening on http://ADDRESS" comes on standard output once it does. Completions, chats, their streams and the log-probabilities of
/// prompts are under /v1; /metrics has figures for Prometheus. A text depends on its request alone, whatever else runs; docs/server.md
/// says what requests may say. Defaults of sampling are those of the model's generation_config.json if that says do_sample, else
/// temperature 1.
///
/// Ctrl-C and SIGTERM let running requests end for 10 seconds, and then end it; a second signal ends it at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// The address to listen on; another than the loopback's is reached from elsewhere
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = SERVER)]
    pub(crate) host: IpAddr,
    /// The port; 0 is any that is free
    #[arg(long, value_name = "N", default_value_t = 8080, help_heading = SERVER)]
    pub(crate) port: u16,
    /// A file with a key that requests must show, as `Authorization: Bearer KEY`
    #[arg(long, value_name = "FILE", help_heading = SERVER)]
    pub(crate) api_key_file: Option<PathBuf>,
    /// What the model is called [default: the last part of --model, or demo]
    #[arg(long, value_name = "NAME", help_heading = SERVER)]
    pub(crate) model_name: Option<String>,
    /// Requests that are generated for at a time
    #[arg(long, value_name = "N", value_parser = one_or_more, default_value = "8", help_heading = SERVER)]
    pub(crate) sessions: NonZeroUsize,
    /// Requests that may wait for that
    #[arg(long, value_name = "N", value_parser = one_or_more, default_value = "256", help_heading = SERVER)]
    pub(crate) queue: NonZeroUsize,
    /// Most tokens of prompts in a pass: more read prompts faster, fewer let running texts wait less
    #[arg(long, value_name = "N", value_parser = one_or_more, default_value = "256", help_heading = SERVER)]
    pub(crate) prompt_tokens: NonZeroUsize,
    /// Keys and values of ended requests that are kept for others that begin alike; 0B keeps none
    #[arg(long, value_name = "BYTES", value_parser = bytes_or_none, default_value = "256MiB", help_heading = SERVER)]
    pub(crate) prefix_cache: u64,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    #[command(flatten)]
    pub(crate) router: RouterArgs,
    #[command(flatten)]
    pub(crate) running: Running,
}

const SERVER: &str = "Server";

/// A number of bytes, or zero.
fn bytes_or_none(text: &str) -> Result<u64, String> {
    if matches!(text, "0" | "0B") { Ok(0) } else { text.parse().map(|Bytes(bytes)| bytes) }
}
