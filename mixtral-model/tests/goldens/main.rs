//! Everything that Hugging Face Transformers computes from eleven tiny checkpoints and from the demo model, computed here;
//! and what the `gguf` package makes of the tensors of GGUF files.
//!
//! Its models are large: this suite and its fixtures are no part of the published package.
//!
//! Chosen experts and greedy tokens must be equal; numbers must lie within [`ROUNDINGS`] times the distance of Transformers'
//! own f32 results from the same computation in f64.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod budget;
mod checkpoints;
mod conversation;
mod demo;
mod fingerprint;
mod gguf;
mod models;
mod oracle;
mod support;
