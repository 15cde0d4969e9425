//! What else lies beside a model's weights, for whoever writes it elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Origin, Source, is_there};
use crate::input::read_limited;
use crate::{Result, gguf};

/// Tokenizers are the largest of these files: below 10 MB with merges and all.
const MAX_FILE_BYTES: u64 = 1 << 26;

impl Source {
    /// The file of that name of a directory or of a model that is part of the program, if there is one, and what errors call it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io); [`Error::Checkpoint`](crate::Error::Checkpoint) if it is no regular file or too long.
    pub(crate) fn file(&self, name: &str) -> Result<Option<(PathBuf, Vec<u8>)>> {
        match &self.0 {
            Origin::Directory(dir) if is_there(dir, name) => {
                let path = dir.join(name);
                let bytes = read_limited(&path, MAX_FILE_BYTES)?;
                Ok(Some((path, bytes)))
            }
            Origin::Embedded(files) => {
                let bytes = match name {
                    "config.json" => files.config,
                    "generation_config.json" => files.generation_config,
                    "tokenizer.model" => files.tokenizer,
                    _ => return Ok(None),
                };
                Ok(Some((files.path(name), bytes.to_vec())))
            }
            _ => Ok(None),
        }
    }

    /// The metadata of a GGUF file.
    pub(crate) fn metadata(&self) -> Option<&gguf::Metadata> {
        match &self.0 {
            Origin::Gguf { header, .. } => Some(&header.metadata),
            _ => None,
        }
    }

    /// A name for the model: that of its directory or file, without `.gguf`.
    pub(crate) fn short_name(&self) -> String {
        let of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = match &self.0 {
            Origin::Directory(dir) => fs::canonicalize(dir).ok().and_then(|dir| of(&dir)),
            Origin::Gguf { path, .. } => of(path),
            Origin::Embedded(files) => Some(files.name.to_owned()),
        };
        let name = name.unwrap_or_default();
        name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
    }
}
