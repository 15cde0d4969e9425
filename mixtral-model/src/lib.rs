//! Mixtral on the CPU.
mod error;
pub use error::{Error, Result};
