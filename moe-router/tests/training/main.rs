//! Losses, gradients and metrics: laws, hand-computed values, finite differences.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod batch;
mod differences;
mod gate;
mod loads;
mod losses;
mod measured;
mod metrics;
mod noise;
mod weightings;
