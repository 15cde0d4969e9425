//! A checkpoint against the manifest of a config.

use std::collections::HashSet;

use super::header::tensor_error;
use super::{Checkpoint, TensorEntry};
use crate::manifest::Manifest;
use crate::{Config, Result};

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
        let mut used = HashSet::new();
        for spec in manifest.tensors() {
            let stored = self.find(&spec.name, Some(&spec.shape))?;
            used.insert(&*stored.name);
        }
        let mut unused = Vec::new();
        for entry in self.entries().filter(|entry| !used.contains(entry.name)) {
            if entry.name == manifest.untied_head().name {
                self.require_tied_head(&manifest)?;
            } else if entry.name.starts_with("model.layers.") || entry.name.starts_with("lm_head.") {
                if !entry.name.ends_with(".rotary_emb.inv_freq") {
                    return Err(unexpected(&entry, config));
                }
            } else {
                unused.push(entry.name);
            }
        }
        Ok(unused)
    }

    fn require_tied_head(&self, manifest: &Manifest<'_>) -> Result<()> {
        let embedding = manifest.embedding();
        let head = manifest.untied_head();
        let embedding = self.require(&embedding.name, &embedding.shape)?;
        let head = self.require(&head.name, &head.shape)?;
        if embedding.dtype == head.dtype && embedding.bytes == head.bytes {
            return Ok(());
        }
        let expected = "the embedding's bytes or no tensor, as tie_word_embeddings is true".to_owned();
        Err(tensor_error(head.path, head.name, expected, "other bytes".to_owned()))
    }
}

/// The error for a tensor of the decoder that the config has no place for.
fn unexpected(entry: &TensorEntry<'_>, config: &Config) -> crate::Error {
    let number = |prefix: &str| {
        let (_, rest) = entry.name.split_once(prefix)?;
        rest.split('.').next()?.parse::<usize>().ok()
    };
    let expected = match (number("model.layers."), number(".block_sparse_moe.experts.")) {
        (Some(layer), _) if layer >= config.layers => format!("num_hidden_layers {} layers", config.layers),
        (_, Some(expert)) if expert >= config.experts => {
            format!("num_local_experts {} experts", config.experts)
        }
        _ => "only tensors of the Mixtral architecture".to_owned(),
    };
    tensor_error(entry.path, entry.name, expected, "one more tensor".to_owned())
}
