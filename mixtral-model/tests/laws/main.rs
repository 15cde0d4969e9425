//! Laws of the model over random shapes that are multiples of nothing: the same bits, whatever the circumstances.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod budget;
mod circumstances;
mod gates;
mod lab;
mod layouts;
mod perplexity;
mod pictures;
mod routers;
mod sampling;
mod sessions;
mod tiny;
mod trouble;
mod wanted;
