//! Writes small checkpoints, whole and broken.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mixtral_model::{Config, Manifest};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

/// One tensor to be written.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

pub(crate) fn config_json() -> Value {
    json!({
        "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2,
        "vocab_size": 10, "max_position_embeddings": 16,
    })
}

pub(crate) fn config() -> Config {
    Config::from_json(config_json().to_string().as_bytes(), Path::new("config.json")).unwrap()
}

/// Everything the config implies, in bf16, every value 1.
pub(crate) fn tensors() -> Tensors {
    let config = config();
    let tensor = |shape: Vec<usize>| {
        let data = [0x80, 0x3f].repeat(shape.iter().product());
        Tensor { dtype: Dtype::BF16, shape, data }
    };
    Manifest::new(&config).tensors().map(|spec| (spec.key.to_string(), tensor(spec.shape))).collect()
}

pub(crate) fn encode(tensors: &Tensors) -> Vec<u8> {
    let view = |t| {
        let Tensor { dtype, shape, data }: &Tensor = t;
        TensorView::new(*dtype, shape.clone(), data).unwrap()
    };
    serialize(tensors.iter().map(|(name, tensor)| (name, view(tensor))), None).unwrap()
}

/// A model directory that goes away with the value.
pub(crate) struct Model(TempDir);

impl Model {
    /// A healthy model in one file.
    pub(crate) fn single() -> Self {
        Self::with_config().file("model.safetensors", &encode(&tensors()))
    }

    /// A healthy model in two shards.
    pub(crate) fn sharded() -> Self {
        let mut second = tensors();
        let first = second.split_off("model.layers.1");
        let shards = [("a.safetensors", first), ("b.safetensors", second)];
        let map: BTreeMap<_, _> = shards
            .iter()
            .flat_map(|(file, part)| part.keys().map(move |name| (name.clone(), *file)))
            .collect();
        let mut model = Self::with_config().index(json!(map));
        for (file, part) in &shards {
            model = model.file(file, &encode(part));
        }
        model
    }

    /// A config and no weights.
    pub(crate) fn with_config() -> Self {
        Self(tempfile::tempdir().unwrap()).file("config.json", config_json().to_string().as_bytes())
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(crate) fn file(self, name: &str, bytes: &[u8]) -> Self {
        fs::write(self.path(name), bytes).unwrap();
        self
    }

    pub(crate) fn without(self, name: &str) -> Self {
        fs::remove_file(self.path(name)).unwrap();
        self
    }

    pub(crate) fn index(self, map: Value) -> Self {
        self.file("model.safetensors.index.json", json!({ "weight_map": map }).to_string().as_bytes())
    }

    /// The index with one tensor mapped to `shard`.
    pub(crate) fn remap(self, tensor: &str, shard: Value) -> Self {
        let text = fs::read(self.path("model.safetensors.index.json")).unwrap();
        let mut map = serde_json::from_slice::<Value>(&text).unwrap()["weight_map"].take();
        map[tensor] = shard;
        self.index(map)
    }

    /// The single file written anew after a change to its tensors.
    pub(crate) fn change(self, change: impl FnOnce(&mut Tensors)) -> Self {
        let mut tensors = tensors();
        change(&mut tensors);
        self.file("model.safetensors", &encode(&tensors))
    }
}
