//! Mixtral on the CPU.
pub mod chat;
mod error;
pub mod tokenizer;

pub use chat::{Message, Role, encode_chat};
pub use error::{Error, Result};
pub use tokenizer::{StreamDecoder, Tokenizer};
