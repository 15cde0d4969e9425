//! The vocabulary of a GGUF file as a tokenizer.

use super::Header;
use crate::{Error, Result, Tokenizer};

impl Header {
    /// The tokenizer that the metadata describe.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        Err(Error::Tokenizer { path: self.metadata.path().to_owned(), reason: "not yet".to_owned() })
    }
}
