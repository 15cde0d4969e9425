//! Mixtral on the CPU: from a checkpoint directory to text, exact and reproducible to the bit.

mod cache;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod error;
mod generate;
mod input;
pub mod inspect;
mod load;
pub mod manifest;
mod model;
mod observer;
mod perplexity;
mod rope;
mod sampling;
mod save;
mod session;
pub mod tokenizer;
mod trace;
mod workspace;

pub use chat::{Conversation, Message, Role, encode_chat};
pub use checkpoint::{Access, Checkpoint, Layout, TensorEntry, TensorView};
pub use config::Config;
pub use error::{Error, Result};
pub use generate::{Ended, Event, GenerateOptions, Generated, generate};
pub use inspect::{Report, available_memory};
pub use manifest::{ExpertMatrix, Kind, LayerManifest, Manifest, TensorSpec};
pub use model::{Compute, Model, Step, Wanted};
pub use observer::Observer;
pub use perplexity::{Perplexity, PerplexityOptions, Scored, TextWindow, perplexity};
pub use sampling::{Sampler, Sampling, argmax};
pub use session::{Session, SessionOptions};
pub use tokenizer::{StreamDecoder, Tokenizer};
pub use trace::{Choices, Trace};
pub use workspace::Workspace;
