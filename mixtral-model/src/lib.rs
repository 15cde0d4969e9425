//! Mixtral on the CPU.
pub mod checkpoint;
pub mod config;
mod error;
mod input;
pub mod inspect;
pub mod manifest;

pub use checkpoint::{Access, Checkpoint, Layout, TensorEntry, TensorView};
pub use config::Config;
pub use error::{Error, Result};
pub use inspect::Report;
pub use manifest::{ExpertMatrix, Kind, LayerManifest, Manifest, TensorSpec};
