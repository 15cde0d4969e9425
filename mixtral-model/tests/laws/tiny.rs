//! Tiny models of pseudo-random weights, made in memory.

use std::path::Path;

use mixtral_model::{
    Checkpoint, Config, Manifest, Model, Observer, SessionOptions, Step, TensorSpec, Wanted, Workspace,
};
use moe_core::numerics::uniform;
use moe_kernels::{Backend, Dtype, narrow_row};
use ndarray::Array2;
use safetensors::tensor::{Dtype as StoredDtype, TensorView};

/// What a random model is made of.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) seed: u64,
    pub(crate) dtype: Dtype,
    pub(crate) hidden: usize,
    pub(crate) ffn: usize,
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) half_head: usize,
    pub(crate) experts: usize,
    pub(crate) chosen: usize,
    pub(crate) vocabulary: usize,
    pub(crate) window: Option<usize>,
    pub(crate) tied: bool,
}

/// A tensor as a file holds it.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Shape {
    pub(crate) fn plain() -> Self {
        Self {
            seed: 1,
            dtype: Dtype::Bf16,
            hidden: 37,
            ffn: 29,
            layers: 2,
            kv_heads: 2,
            group: 2,
            half_head: 5,
            experts: 5,
            chosen: 2,
            vocabulary: 61,
            window: None,
            tied: false,
        }
    }

    pub(crate) fn config(&self) -> Config {
        let json = serde_json::json!({
            "model_type": "mixtral", "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.kv_heads * self.group,
            "num_key_value_heads": self.kv_heads, "head_dim": 2 * self.half_head, "num_local_experts": self.experts,
            "num_experts_per_tok": self.chosen.min(self.experts), "vocab_size": self.vocabulary,
            "max_position_embeddings": 400, "sliding_window": self.window, "tie_word_embeddings": self.tied,
            "eos_token_id": null, "bos_token_id": null,
        });
        Config::from_json(json.to_string().as_bytes(), Path::new("config.json")).unwrap()
    }

    /// The checkpoint; `change` may alter a tensor's values before they are stored.
    pub(crate) fn checkpoint(&self, change: impl Fn(&str, &mut [f32])) -> Checkpoint {
        Checkpoint::from_bytes(Path::new("tiny.safetensors"), self.safetensors(&self.tensors(change)).into())
            .unwrap()
    }

    /// Its tensors in the hub's layout.
    pub(crate) fn tensors(&self, change: impl Fn(&str, &mut [f32])) -> Vec<Stored> {
        let tensor = |(n, spec): (u64, TensorSpec)| {
            let (name, shape) = (spec.key.to_string(), spec.shape);
            let count: usize = shape.iter().product();
            let scale = 2.0 / (*shape.last().unwrap() as f32).sqrt();
            let (scale, mean) = if shape.len() == 1 { (0.2, 1.0) } else { (scale, 0.0) };
            let mut values: Vec<f32> =
                (0..count as u64).map(|i| (uniform(self.seed, &[n, i]) * 2.0 - 1.0) * scale + mean).collect();
            change(&name, &mut values);
            let mut bytes = vec![0; count * self.dtype.bytes()];
            narrow_row(self.dtype, &values, &mut bytes);
            Stored { name, shape, bytes }
        };
        (0..).zip(Manifest::new(&self.config()).tensors()).map(tensor).collect()
    }

    /// A file of tensors.
    pub(crate) fn safetensors(&self, tensors: &[Stored]) -> Vec<u8> {
        let stored = match self.dtype {
            Dtype::F32 => StoredDtype::F32,
            Dtype::F16 => StoredDtype::F16,
            _ => StoredDtype::BF16,
        };
        let views = tensors.iter().map(|Stored { name, shape, bytes }| {
            (&**name, TensorView::new(stored, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    pub(crate) fn model(&self, backend: Backend) -> Model {
        Model::load(self.config(), &self.checkpoint(|_, _| ()), backend).unwrap()
    }

    pub(crate) fn ids(&self, n: usize) -> Vec<u32> {
        (0..n as u64).map(|i| (uniform(self.seed ^ 7, &[i]) * self.vocabulary as f32) as u32).collect()
    }
}

/// All logits of a text read in pieces, as bits.
pub(crate) fn read(
    model: &Model,
    ids: &[u32],
    pieces: &[usize],
    options: SessionOptions,
    observer: &mut dyn Observer,
) -> Vec<u32> {
    let mut session = model.session(options).unwrap();
    let (mut workspace, mut all, mut from) = (Workspace::new(), Vec::new(), 0);
    for n in pieces {
        let step = Step::new(&mut session, &ids[from..from + n]).wanted(Wanted::All);
        all.extend(bits(&model.forward(&mut [step], &mut workspace, observer).unwrap().to_owned()));
        from += n;
    }
    assert_eq!(from, ids.len());
    all
}

pub(crate) fn bits(a: &Array2<f32>) -> Vec<u32> {
    a.iter().map(|v| v.to_bits()).collect()
}
