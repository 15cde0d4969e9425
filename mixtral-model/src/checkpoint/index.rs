//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value;

use crate::input::{brief, json_object, read_limited};
use crate::{Error, Result};

/// Longest index that is read: some hundred thousand tensors.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// Tensor name to shard file name.
pub(super) struct Index {
    pub(super) map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index. Shards are files in or below its directory: nothing in it can lead out.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let error = |field: &str, expected: &str, found: String| Error::Config {
            path: path.to_path_buf(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        let mut document = json_object(&read_limited(path, MAX_INDEX_BYTES)?, path)?;
        let entries = match document.remove("weight_map") {
            Some(Value::Object(entries)) if !entries.is_empty() => entries,
            other => {
                let found = other.map_or_else(|| "nothing".to_owned(), |value| brief(&value));
                return Err(error("weight_map", "an object of tensor names and their shards", found));
            }
        };
        let mut map = BTreeMap::new();
        for (tensor, shard) in entries {
            match shard {
                Value::String(shard) if stays_inside(&shard) => map.insert(tensor, shard),
                other => {
                    let field = format!("weight_map: {tensor}");
                    return Err(error(&field, "the name of a file beside or below the index", brief(&other)));
                }
            };
        }
        Ok(Self { map })
    }

    /// Each shard once, in order of name.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.map.values().map(String::as_str).collect()
    }
}

/// Whether `name` is a path of names alone, on every system: none up, none absolute.
fn stays_inside(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && Path::new(name).components().all(|component| matches!(component, Component::Normal(_)))
}
