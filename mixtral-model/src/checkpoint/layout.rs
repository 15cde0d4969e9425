//! How a checkpoint's tensors are named and split, and what else a directory may hold.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::{Error, Result};

/// Names and splitting of a checkpoint's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Layout {
    /// The hub's: each expert has tensors of its own,
    /// `model.layers.N.block_sparse_moe.experts.E.{w1,w2,w3}.weight`.
    HubPerExpert,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HubPerExpert => f.write_str("hub, one tensor per expert matrix"),
        }
    }
}

impl Layout {
    /// The layout that the names show. Names of no known layout are taken for an incomplete checkpoint of the hub's,
    /// so that the first tensor missing is what gets reported.
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a str> + Clone, root: &Path) -> Result<Self> {
        if names.clone().any(|name| name.contains(".block_sparse_moe.experts.")) {
            return Ok(Self::HubPerExpert);
        }
        match names.filter_map(foreign).next() {
            None => Ok(Self::HubPerExpert),
            Some(found) => Err(Error::Checkpoint {
                path: root.to_path_buf(),
                expected: format!("the layout {}", Self::HubPerExpert),
                found: found.to_owned(),
            }),
        }
    }
}

/// The other layout that a tensor's name gives away.
fn foreign(name: &str) -> Option<&'static str> {
    [
        (
            ".experts.gate_up_proj",
            "the layout with all experts of a layer in one tensor (mlp.experts.gate_up_proj)",
        ),
        (".mlp.experts.", "experts named mlp.experts, as in a model of another family"),
        (".feed_forward.", "the consolidated layout of the original release (layers.N.feed_forward)"),
        (".mlp.gate_proj.", "a dense model (mlp.gate_proj)"),
        ("blk.", "the names of a GGUF file (blk.N)"),
    ]
    .into_iter()
    .find(|(part, _)| name.contains(part))
    .map(|(_, layout)| layout)
}

/// The error for a directory without `model.safetensors` and index: says what weights there are instead.
pub(super) fn no_weights(dir: &Path) -> Error {
    if dir.is_file() {
        let kind = dir.file_name().and_then(|name| name.to_str()).and_then(describe);
        return Error::Checkpoint {
            path: dir.to_path_buf(),
            expected: "a model directory".to_owned(),
            found: kind.unwrap_or("a file").to_owned(),
        };
    }
    let names = match fs::read_dir(dir) {
        Err(source) => return Error::Io { path: dir.to_path_buf(), source },
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()),
    };
    // The least name, so that the message does not depend on the order of the directory.
    let seen = names.filter_map(|name| Some((describe(&name)?, name))).min();
    Error::Checkpoint {
        path: dir.to_path_buf(),
        expected: "model.safetensors, or model.safetensors.index.json and its shards".to_owned(),
        found: seen.map_or_else(|| "no weights".to_owned(), |(kind, name)| format!("{name} ({kind})")),
    }
}

fn describe(name: &str) -> Option<&'static str> {
    if name.ends_with(".gguf") {
        Some("a GGUF file")
    } else if name.starts_with("consolidated.") {
        Some("the consolidated layout of the original release")
    } else if name.starts_with("pytorch_model") {
        Some("pickled weights")
    } else if name.ends_with(".safetensors") && !name.starts_with('.') {
        Some("safetensors that no index names")
    } else if name.ends_with(".incomplete") || name.ends_with(".part") {
        Some("an unfinished download")
    } else {
        None
    }
}
