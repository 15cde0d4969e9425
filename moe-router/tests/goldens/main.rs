//! Routers against the answers of published code; `tests/fixtures/README.md` says whose and by which rule.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod buffers;
mod capped;
mod deepspeed;
mod expert_choice;
mod fixture;
mod flaxformer_losses;
mod given;
mod gradients;
mod gradients_jax;
mod losses;
mod megatron;
mod megatron_groups;
mod papers;
mod routed;
mod scored;
mod soft_moe;
mod sparse_mixer;
mod tied;
mod top_k;
mod transformers_5_24;
