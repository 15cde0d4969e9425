//! Everything that Hugging Face Transformers computes from eleven tiny checkpoints and from the demo model, computed here.
//!
//! Chosen experts and greedy tokens must be equal; numbers must lie within [`ROUNDINGS`] times the distance of Transformers'
//! own f32 results from the same computation in f64.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod demo;
mod models;
mod support;
