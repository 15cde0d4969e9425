//! Where the model comes from: a directory, or the demo that is part of the program.

use std::path::Path;

use bytes::Bytes;
use mixtral_model::{
    Access, Checkpoint, Compute, Config, Model, Sampling, Session, SessionOptions, Tokenizer,
};

use crate::args::Common;
use crate::failure::{Result, warn};

const CONFIG: &[u8] = include_bytes!("../demo/config.json");
const GENERATION_CONFIG: &[u8] = include_bytes!("../demo/generation_config.json");
const WEIGHTS: &[u8] = include_bytes!("../demo/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.model");

/// A model that nobody has read yet.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Demo,
    Directory(&'a Path),
}

impl<'a> Source<'a> {
    pub(crate) fn new(dir: Option<&'a Path>) -> Self {
        dir.map_or(Self::Demo, Self::Directory)
    }

    pub(crate) fn config(self) -> Result<Config> {
        Ok(match self {
            Self::Demo => Config::from_json(CONFIG, Path::new("demo/config.json"))?,
            Self::Directory(dir) => Config::from_dir(dir)?,
        })
    }

    pub(crate) fn checkpoint(self, access: Access) -> Result<Checkpoint> {
        Ok(match self {
            Self::Demo => Checkpoint::from_bytes(Path::new("built-in demo"), Bytes::from_static(WEIGHTS))?,
            Self::Directory(dir) => Checkpoint::open(dir, access)?,
        })
    }

    pub(crate) fn tokenizer(self) -> Result<Tokenizer> {
        Ok(match self {
            Self::Demo => Tokenizer::from_sentencepiece(TOKENIZER, Path::new("demo/tokenizer.model"))?,
            Self::Directory(dir) => Tokenizer::from_dir(dir)?,
        })
    }

    /// How the model wishes to be sampled.
    pub(crate) fn sampling(self) -> Result<Sampling> {
        Ok(match self {
            Self::Demo => Sampling::from_json(GENERATION_CONFIG, Path::new("demo/generation_config.json"))?,
            Self::Directory(dir) => Sampling::from_dir(dir)?,
        })
    }
}

impl Common {
    pub(crate) fn source(&self) -> Source<'_> {
        Source::new(self.model.as_deref())
    }

    pub(crate) fn access(&self) -> Access {
        match (self.read, self.prefault, self.lock) {
            (true, ..) => Access::Read,
            (_, _, true) => Access::Lock,
            (_, true, _) => Access::Prefault,
            _ => Access::Map,
        }
    }

    /// Loads the model, with a warning of what in its files it has no use for.
    pub(crate) fn load(&self) -> Result<Model> {
        let config = self.source().config()?;
        let checkpoint = self.source().checkpoint(self.access())?;
        let unused = checkpoint.verify(&config)?;
        if let Some(first) = unused.first() {
            let first = first.escape_debug();
            match unused.len() {
                1 => warn(&format!("tensor {first} is not used")),
                n => warn(&format!("{n} tensors are not used, {first} the first of them")),
            }
        }
        let compute = Compute { backend: self.backend.unwrap_or_default(), activations: self.activations };
        Ok(Model::load(config, &checkpoint, compute)?)
    }

    /// Loads the tokenizer of a model.
    pub(crate) fn load_tokenizer(&self, model: &Model) -> Result<Tokenizer> {
        let tokenizer = self.source().tokenizer()?;
        tokenizer.require_at_most(model.config().vocab_size)?;
        Ok(tokenizer)
    }

    pub(crate) fn session(&self, model: &Model) -> Result<Session> {
        let mut options = SessionOptions::default().with_kv_dtype(self.kv_type.into());
        if let Some(context) = self.context {
            options = options.with_context(context.get());
        }
        Ok(model.session(options)?)
    }
}

#[cfg(test)]
mod tests {
    use moe_kernels::Backend;

    use super::*;

    #[test]
    fn the_demo_is_whole() {
        let config = Source::Demo.config().unwrap();
        let tokenizer = Source::Demo.tokenizer().unwrap();
        tokenizer.require_at_most(config.vocab_size).unwrap();
        assert!(Source::Demo.sampling().unwrap().temperature > 0.0);
        let checkpoint = Source::Demo.checkpoint(Access::Map).unwrap();
        assert_eq!(checkpoint.verify(&config).unwrap(), Vec::<&str>::new());
        Model::load(config, &checkpoint, Backend::best()).unwrap();
    }
}
