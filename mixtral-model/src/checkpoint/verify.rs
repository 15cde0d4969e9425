//! A checkpoint against the manifest of a config.

use std::collections::HashSet;

use super::{Checkpoint, TensorEntry, tensor_error};
use crate::input::require;
use crate::layout::{ExpertStorage, Spelling};
use crate::manifest::{Manifest, TensorKey};
use crate::{Config, Result};

/// What the tensors of GGUF files with a scaling of their own for each frequency are called.
const SCALED_ROPE: &str = "rope_f";

/// Parts of the names of tensors that other models have beside the layers, and that change what is computed.
const OTHER_TENSORS: [&str; 5] =
    [SCALED_ROPE, "token_embd_norm.", "position_embd.", "embed_norm.", "embed_positions."];

impl Checkpoint {
    /// Checks that every tensor that `config` implies is there, with its shape and an element type of weights, and
    /// returns the names of stored tensors that the model has no use for.
    ///
    /// Rotary tables (`rotary_emb.inv_freq`), which older exporters stored, are neither used nor returned. Headers are
    /// all that is looked at, except where embeddings are tied and a head is stored besides: then the two must hold
    /// the same bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`](crate::Error::Tensor) for the first tensor in the order of [`Manifest::tensors`] that is
    /// missing or different; for a tensor of a layer or an expert beyond those of the config, or otherwise inside
    /// the decoder but unknown (a bias, a scale): leaving it out would compute another model.
    pub fn verify(&self, config: &Config) -> Result<Vec<&str>> {
        let manifest = Manifest::new(config);
        require(self.entries().len().saturating_mul(64), "a list of tensors")?;
        let mut used = HashSet::new();
        for spec in manifest.tensors() {
            used.insert(self.place(&spec, config)?.name);
        }
        let mut unused = Vec::new();
        let head = self.layout.name(TensorKey::Head);
        // What these begin with is part of the model.
        let stems = [TensorKey::Embedding, TensorKey::FinalNorm, TensorKey::Head].map(|key| {
            let name = self.layout.name(key);
            name.strip_suffix("weight").map(str::to_owned).unwrap_or(name)
        });
        let of_model = |name: &str| {
            name.starts_with(&self.layout.layers())
                || stems.iter().any(|stem| name.starts_with(stem))
                || OTHER_TENSORS.iter().any(|part| name.contains(part))
        };
        for entry in self.entries().filter(|entry| !used.contains(entry.name)) {
            if entry.name == head {
                self.require_tied_head(&manifest, config)?;
            } else if of_model(entry.name) {
                if !entry.name.ends_with(".rotary_emb.inv_freq") {
                    return Err(self.unexpected(&entry, config));
                }
            } else {
                unused.push(entry.name);
            }
        }
        Ok(unused)
    }

    fn require_tied_head(&self, manifest: &Manifest<'_>, config: &Config) -> Result<()> {
        let embedding = self.place(&manifest.embedding(), config)?;
        let head = self.require(&self.layout.name(TensorKey::Head), &manifest.embedding().shape)?;
        if embedding.format == head.format && self.read(&embedding)? == head.bytes {
            return Ok(());
        }
        let expected = "the embedding's bytes or no tensor, as tie_word_embeddings is true".to_owned();
        Err(tensor_error(head.path, head.name, expected, "other bytes".to_owned()))
    }

    /// The error for a tensor of the decoder that the config has no place for.
    fn unexpected(&self, entry: &TensorEntry<'_>, config: &Config) -> crate::Error {
        let number = |prefix: &str| {
            let (_, rest) = entry.name.split_once(prefix)?;
            rest.split('.').next()?.parse::<usize>().ok()
        };
        let gguf = self.layout.spelling() == Spelling::Gguf;
        let expert = match (self.layout.experts(), gguf) {
            (ExpertStorage::PerExpert, false) => number(".experts."),
            (ExpertStorage::PerExpert, true) => {
                ["gate", "up", "down"].iter().find_map(|part| number(&format!(".ffn_{part}.")))
            }
            _ => None,
        };
        let layer = number(&self.layout.layers());
        let experts = layer.map_or(0, |layer| config.experts.of(layer));
        let expected = match (layer, expert) {
            (Some(layer), _) if layer >= config.layers => {
                let key = if gguf { "block_count" } else { "num_hidden_layers" };
                format!("{key} {} layers", config.layers)
            }
            (_, Some(expert)) if expert >= experts => {
                let key = if gguf { "expert_count" } else { "num_local_experts" };
                format!("{key} {experts} experts")
            }
            _ if entry.name.contains(SCALED_ROPE) => {
                "no factors of RoPE's frequencies, as those of a file are not done".to_owned()
            }
            _ => "only tensors of the Mixtral architecture".to_owned(),
        };
        tensor_error(entry.path, entry.name, expected, "one more tensor".to_owned())
    }
}
