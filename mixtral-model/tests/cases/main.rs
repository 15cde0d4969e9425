//! Small models and files that other engines took wrongly, each with the result that Transformers gives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dtype;
mod generation;
mod layouts;
mod rope;
mod tiny;
mod uneven;
