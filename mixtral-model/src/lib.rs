//! Mixtral on the CPU: from a checkpoint directory to text, exact and reproducible to the bit.

pub mod chat;
pub mod checkpoint;
pub mod config;
mod error;
mod input;
pub mod inspect;
pub mod manifest;
pub mod tokenizer;

pub use chat::{Message, Role, encode_chat};
pub use checkpoint::{Access, Checkpoint, Layout, TensorEntry, TensorView};
pub use config::Config;
pub use error::{Error, Result};
pub use inspect::Report;
pub use manifest::{ExpertMatrix, Kind, LayerManifest, Manifest, TensorSpec};
pub use tokenizer::{StreamDecoder, Tokenizer};
