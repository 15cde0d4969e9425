//! How a model wishes to be sampled: `generation_config.json`, as Transformers 5 reads it.
//!
//! What is not done is in the list of [`keys`], and becomes a warning where a file asks for it.

mod keys;
mod read;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::MAX_CONFIG_BYTES;
use super::fields::Fields;
use crate::input::{json_object, read_limited};
use crate::{Error, Length, Result, Sampling};

/// What a `generation_config.json` says, checked.
///
/// ```no_run
/// use mixtral_model::{GenerateOptions, GenerationConfig, Model};
///
/// let dir = std::path::Path::new("Mixtral-8x7B-Instruct-v0.1");
/// let model = Model::open(dir)?;
/// let wishes = GenerationConfig::from_dir(dir)?;
/// for warning in &wishes.warnings {
///     eprintln!("{warning}");
/// }
/// let options = GenerateOptions::new(&model, 100).with_sampling(wishes.sampling);
/// # Ok::<(), mixtral_model::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// The most tokens.
    pub max_length: Option<Length>,
    /// What the file asks for and is not done, a sentence each; the file's text is quoted in them.
    pub warnings: Vec<String>,
}

impl GenerationConfig {
    /// That of a model directory; greedy and without a length if it has no `generation_config.json`.
    ///
    /// # Errors
    ///
    /// Those of [`GenerationFile::from_dir`] and [`GenerationFile::read`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        GenerationFile::from_dir(dir)?.read()
    }

    /// The most tokens to draw after so many, if the file says.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if there are as many as the whole sequence may have.
    pub fn max_new_tokens(&self, before: usize) -> Result<Option<usize>> {
        let Some(length) = self.max_length else { return Ok(None) };
        match length.total(before).checked_sub(before) {
            Some(new) if new > 0 => Ok(Some(new)),
            _ => Err(Error::Setting {
                setting: "max_length",
                expected: format!("more than the {before} tokens of the prompt"),
                found: length.total(before).to_string(),
            }),
        }
    }
}

/// A `generation_config.json` whose values nobody has looked at yet, so that what is said elsewhere can replace them unseen.
#[derive(Clone, Debug)]
pub struct GenerationFile {
    path: PathBuf,
    map: Map<String, Value>,
}

impl GenerationFile {
    /// That of a model directory; one that says nothing if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Checkpoint`] if the file cannot be read, is no regular file or longer than 1 MiB; else those of
    /// [`from_json`](Self::from_json).
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        if fs::symlink_metadata(&path).is_err() {
            return Ok(Self { path, map: Map::new() });
        }
        Self::from_json(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)
    }

    /// The text of a file; `path` is what errors and warnings name.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if this is no JSON object or a key occurs twice.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_path_buf(), map: json_object(bytes, path)? })
    }

    /// What it says, if anything.
    pub(crate) fn map(&self) -> Option<&Map<String, Value>> {
        Some(&self.map).filter(|map| !map.is_empty())
    }

    /// The same without what it says of a key.
    pub fn without(mut self, key: &str) -> Self {
        self.map.remove(key);
        self
    }

    /// The end tokens, if it names them; `null` is none.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if these are no token ids.
    pub fn eos(&self) -> Result<Option<Vec<u32>>> {
        self.fields().tokens("eos_token_id")
    }

    /// Looks at all that it says.
    ///
    /// With `do_sample: true`, `temperature` (1 if missing), `top_k`, `top_p`, `min_p`, `typical_p`, `epsilon_cutoff` and
    /// `eta_cutoff` apply; everything else does in any case. A limit that is missing is none: the `top_k` of 50 that Transformers
    /// assumes then is not.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a value is of a wrong type or means nothing.
    pub fn read(&self) -> Result<GenerationConfig> {
        let sampling = read::sampling(&self.fields())?;
        sampling.check().map_err(|error| self.of_file(error))?;
        let (max_length, ignored) = read::max_length(&self.fields())?;
        let mut warnings: Vec<_> = ignored.into_iter().map(|text| self.warning(text)).collect();
        warnings.extend(keys::not_done(&self.map).into_iter().map(|text| self.warning(&text)));
        Ok(GenerationConfig { sampling, max_length, warnings })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn fields(&self) -> Fields<'_> {
        Fields { map: &self.map, path: &self.path, prefix: "" }
    }

    fn warning(&self, text: &str) -> String {
        format!("{}: {text}", self.path.display())
    }

    /// A setting that means nothing, as a value of the file.
    fn of_file(&self, error: Error) -> Error {
        match error {
            Error::Setting { setting, expected, found } => {
                let field = read::KEYS.iter().find(|(of_key, _)| *of_key == setting);
                let field = field.map_or(setting, |(_, key)| key).to_owned();
                Error::Config { path: self.path.clone(), field, expected, found }
            }
            other => other,
        }
    }
}
