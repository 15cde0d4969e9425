//! Where a model comes from: a directory, a GGUF file, or the program itself.
//!
//! A source gives the four things that a run needs, and each is read when it is asked for: [`config`](Source::config),
//! [`checkpoint`](Source::checkpoint), [`tokenizer`](Source::tokenizer) and [`generation`](Source::generation).

mod files;
mod find;
mod hub;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::config::MAX_CONFIG_BYTES;
use crate::input::{json_object, read_limited};
use crate::{Access, ChatEvidence, Checkpoint, Config, Error, GenerationFile, Result, Tokenizer, gguf};

/// A model that nobody has read yet.
///
/// ```no_run
/// # fn main() -> mixtral_model::Result<()> {
/// use mixtral_model::{Access, Model, Source};
/// use moe_kernels::Backend;
///
/// let source = Source::find("mixtral-8x7b-v0.1.Q4_K_M.gguf".as_ref())?;
/// let model = Model::load(source.config()?, &source.checkpoint(Access::Map)?, Backend::best())?;
/// let ids = source.tokenizer()?.encode_prompt("A mixture of experts is")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Source(Origin);

#[derive(Debug)]
enum Origin {
    Directory(PathBuf),
    Gguf { path: PathBuf, header: Box<gguf::Header>, has_head: bool },
    Embedded(Embedded),
}

/// The files of a model that is part of a program, by their contents.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// What errors call the model; its files are named as if they lay below.
    pub name: &'static str,
    /// A `config.json`.
    pub config: &'static [u8],
    /// A `generation_config.json`.
    pub generation_config: &'static [u8],
    /// A `model.safetensors`.
    pub weights: &'static [u8],
    /// A `tokenizer.model`.
    pub tokenizer: &'static [u8],
}

impl Source {
    /// The model that a user means by a path or a name: a model directory; a GGUF file, the first part if it is in several; a
    /// directory with one such file and nothing else of a model; a folder of the hub's cache, or the name of a repository in it,
    /// such as `mistralai/Mixtral-8x7B-v0.1`. Nothing is downloaded.
    ///
    /// The hub's cache is looked for where its own tools do: `HF_HUB_CACHE`, `HF_HOME`, or below the user's cache directory.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] where there is nothing of that name, or not just one model, with what was found; those of
    /// [`gguf`](Self::gguf).
    pub fn find(name: &Path) -> Result<Self> {
        find::find(name)
    }

    /// A model directory, of the hub's files or Mistral's own. What it holds is looked at later.
    pub fn directory(dir: &Path) -> Self {
        Self(Origin::Directory(dir.to_path_buf()))
    }

    /// A GGUF file, the first part if it is in several; reads headers.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::open_gguf`].
    pub fn gguf(path: &Path) -> Result<Self> {
        let gguf::Parts { first, others } = gguf::parts(path)?;
        let has_head = first.has_head() || others.iter().any(|(_, header)| header.has_head());
        Ok(Self(Origin::Gguf { path: path.to_path_buf(), header: Box::new(first), has_head }))
    }

    /// A model that is part of the program.
    pub fn embedded(files: Embedded) -> Self {
        Self(Origin::Embedded(files))
    }

    /// The hyperparameters: of `config.json`, of Mistral's `params.json` where there is none, or of a GGUF file's metadata.
    ///
    /// # Errors
    ///
    /// Those of [`Config::from_dir`]; [`Error::Config`] naming the key of the metadata.
    pub fn config(&self) -> Result<Config> {
        match &self.0 {
            Origin::Directory(dir) if is_there(dir, "config.json") => Config::from_dir(dir),
            Origin::Directory(dir) if is_there(dir, "params.json") => {
                Config::from_params(&dir.join("params.json"))
            }
            Origin::Directory(dir) => Err(no_model(dir)),
            Origin::Gguf { header, has_head, .. } => header.config(*has_head).map(|(config, _)| config),
            Origin::Embedded(files) => Config::from_json(files.config, &files.path("config.json")),
        }
    }

    /// The weights.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::open`] and [`Checkpoint::open_gguf`].
    pub fn checkpoint(&self, access: Access) -> Result<Checkpoint> {
        match &self.0 {
            Origin::Directory(dir) => Checkpoint::open(dir, access),
            Origin::Gguf { path, .. } => Checkpoint::open_gguf(path, access),
            Origin::Embedded(files) => {
                Checkpoint::from_bytes(Path::new(files.name), Bytes::from_static(files.weights))
            }
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::from_dir`]; [`Error::Tokenizer`] or [`Error::Config`] where a GGUF file has none that is understood.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.0 {
            Origin::Directory(dir) => Tokenizer::from_dir(dir),
            Origin::Gguf { header, .. } => header.tokenizer(),
            Origin::Embedded(files) => {
                Tokenizer::from_sentencepiece(files.tokenizer, &files.path("tokenizer.model"))
            }
        }
    }

    /// What the model's files say of the format of its chats; of a GGUF file, its templates.
    ///
    /// # Errors
    ///
    /// Those of [`ChatEvidence::from_dir`]; [`Error::Config`] where a GGUF file's template is no string.
    pub fn chat_evidence(&self) -> Result<ChatEvidence> {
        match &self.0 {
            Origin::Directory(dir) => ChatEvidence::from_dir(dir),
            Origin::Gguf { header, .. } => header.chat_evidence(),
            Origin::Embedded(_) => Ok(ChatEvidence::default()),
        }
    }

    /// Whether the model is part of the program.
    pub fn is_embedded(&self) -> bool {
        matches!(self.0, Origin::Embedded(_))
    }

    /// How the model wishes its tokens to be chosen: what `generation_config.json` says or, in a GGUF file, `general.sampling`.
    ///
    /// # Errors
    ///
    /// Those of [`GenerationFile::from_dir`]; [`Error::Config`] where a key of a GGUF file is no number.
    pub fn generation(&self) -> Result<GenerationFile> {
        match &self.0 {
            Origin::Directory(dir) => GenerationFile::from_dir(dir),
            Origin::Gguf { header, .. } => header.generation(),
            Origin::Embedded(files) => {
                GenerationFile::from_json(files.generation_config, &files.path("generation_config.json"))
            }
        }
    }

    /// What a user should know of files and keys that have no effect though they might be expected to.
    ///
    /// # Errors
    ///
    /// Those of [`config`](Self::config).
    pub fn warnings(&self) -> Result<Vec<String>> {
        match &self.0 {
            Origin::Directory(dir) => {
                let adapter = ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"]
                    .into_iter()
                    .find(|name| is_there(dir, name));
                let warning = |name: &str| {
                    let path = dir.join(name);
                    format!("{}: an adapter (LoRA) beside the weights, which is not applied", path.display())
                };
                let mut warnings: Vec<_> = adapter.map(warning).into_iter().collect();
                warnings.extend(self.contradiction(dir)?);
                Ok(warnings)
            }
            Origin::Gguf { header, has_head, .. } => header.config(*has_head).map(|(_, warnings)| warnings),
            Origin::Embedded(_) => Ok(Vec::new()),
        }
    }
}

impl Source {
    /// Where `params.json` speaks of another model than `config.json`, which counts.
    fn contradiction(&self, dir: &Path) -> Result<Option<String>> {
        let path = dir.join("params.json");
        if !is_there(dir, "config.json") || !is_there(dir, "params.json") {
            return Ok(None);
        }
        // One that is not understood is of no model that would run here.
        let (config, Ok(params)) = (self.config()?, Config::from_params(&path)) else { return Ok(None) };
        let facts = |c: &Config| {
            [
                ("dim", c.hidden_size.to_string()),
                ("hidden_dim", c.intermediate_size.to_string()),
                ("n_layers", c.layers.to_string()),
                ("n_heads", c.heads.to_string()),
                ("n_kv_heads", c.kv_heads.to_string()),
                ("head_dim", c.head_dim.to_string()),
                ("num_experts", c.experts.most().to_string()),
                ("num_experts_per_tok", c.experts_per_token.to_string()),
                ("vocab_size", c.vocab_size.to_string()),
                ("norm_eps", c.rms_norm_eps.to_string()),
                ("rope_theta", c.rope_theta.to_string()),
                ("sliding_window", c.sliding_window.map_or("none".to_owned(), |window| window.to_string())),
            ]
        };
        // Of these, what such a file does not say is no contradiction.
        let said = json_object(&read_limited(&path, MAX_CONFIG_BYTES)?, &path)?;
        let is_said = |key: &str| !["rope_theta", "sliding_window"].contains(&key) || said.contains_key(key);
        let mut both = facts(&params).into_iter().zip(facts(&config));
        let found = both.find(|((key, theirs), (_, ours))| theirs != ours && is_said(key));
        Ok(found.map(|((key, theirs), (_, ours))| {
            format!("{}: {key} is {theirs}, and {ours} by config.json, which counts", path.display())
        }))
    }
}

impl fmt::Display for Source {
    /// `directory PATH`, `GGUF file PATH, version 3`, or the name of what is built in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Origin::Directory(dir) => write!(f, "directory {}", dir.display()),
            Origin::Gguf { path, header, .. } => {
                write!(f, "GGUF file {}, version {}", path.display(), header.version)
            }
            Origin::Embedded(files) => f.write_str(files.name),
        }
    }
}

impl Embedded {
    fn path(&self, file: &str) -> PathBuf {
        Path::new(self.name).join(file)
    }
}

/// Whether a directory has an entry of that name, of whatever kind: what is wrong with it is told when it is read.
fn is_there(dir: &Path, name: &str) -> bool {
    fs::symlink_metadata(dir.join(name)).is_ok()
}

/// The error for a directory without a config.
fn no_model(dir: &Path) -> Error {
    let found = match () {
        () if is_there(dir, "adapter_config.json") => {
            "a LoRA adapter (adapter_config.json), which changes a model and is none"
        }
        () if dir.is_dir() => "none of them",
        () => "no such directory",
    };
    Error::checkpoint(dir, "a model: config.json, params.json or a GGUF file", found)
}
