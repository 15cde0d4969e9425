//! Writes small GGUF files, every part of which can be made to lie.

use mixtral_model::{ExpertMatrix, LayerPart, Manifest, TensorKey};

use crate::writer::config;

/// A value of the metadata.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U16(u16),
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<&'static str>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    /// A type's number, and whatever bytes.
    Raw(u32, Vec<u8>),
}

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Innermost first.
    pub(crate) shape: Vec<u64>,
    pub(crate) ty: u32,
    /// Where it is said to be, if not where it is.
    pub(crate) offset: Option<u64>,
    pub(crate) bytes: Vec<u8>,
}

/// A file in pieces.
#[derive(Clone, Debug)]
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) keys: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: usize,
    /// What is said of their numbers, if not the truth.
    pub(crate) count: Option<u64>,
    pub(crate) key_count: Option<u64>,
}

impl Gguf {
    /// A whole model of the sizes of [`config`], every weight 1, in f32, and a vocabulary.
    pub(crate) fn healthy() -> Self {
        let config = config();
        let size = |key: &str, n: usize| (format!("llama.{key}"), Value::U32(n as u32));
        let mut keys = vec![
            ("general.architecture".to_owned(), Value::Text("llama")),
            size("context_length", config.max_positions),
            size("embedding_length", config.hidden_size),
            size("block_count", config.layers),
            size("feed_forward_length", config.intermediate_size),
            size("attention.head_count", config.heads),
            size("attention.head_count_kv", config.kv_heads),
            size("expert_count", config.experts.most()),
            size("expert_used_count", config.experts_per_token),
            ("llama.attention.layer_norm_rms_epsilon".to_owned(), Value::F32(config.rms_norm_eps)),
            ("llama.rope.freq_base".to_owned(), Value::F32(1e6)),
        ];
        let texts = vec!["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a", "c", "d"];
        assert_eq!(texts.len(), config.vocab_size);
        let of_vocabulary = |key: &str, value| (format!("tokenizer.ggml.{key}"), value);
        keys.extend([
            of_vocabulary("model", Value::Text("llama")),
            of_vocabulary("scores", Value::Floats((0..texts.len()).map(|i| -(i as f32)).collect())),
            of_vocabulary("token_type", Value::Ints(vec![2, 3, 3, 1, 1, 1, 1, 1, 1, 1])),
            of_vocabulary("tokens", Value::Texts(texts)),
            of_vocabulary("bos_token_id", Value::U32(1)),
            of_vocabulary("eos_token_id", Value::U32(2)),
            of_vocabulary("add_bos_token", Value::Bool(true)),
        ]);
        let tensor = |name: String, shape: Vec<usize>| {
            let bytes = 1f32.to_le_bytes().repeat(shape.iter().product());
            let shape = shape.iter().rev().map(|&n| n as u64).collect();
            Tensor { name, shape, ty: 0, offset: None, bytes }
        };
        let mut tensors = Vec::new();
        for spec in Manifest::new(&config).tensors() {
            if let Some((name, shape)) = stored(spec.key, spec.shape, config.experts.most()) {
                tensors.push(tensor(name, shape));
            }
        }
        Self { version: 3, keys, tensors, alignment: 32, count: None, key_count: None }
    }

    pub(crate) fn set(mut self, key: &str, value: Value) -> Self {
        self.keys.retain(|(other, _)| other != key);
        self.keys.push((key.to_owned(), value));
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(other, _)| other != key);
        self
    }

    pub(crate) fn change(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn tensor(mut self, name: &str, change: impl FnOnce(&mut Tensor)) -> Self {
        change(self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap());
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = [b"GGUF", &self.version.to_le_bytes()[..]].concat();
        file.extend(self.count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            file.extend(string(key));
            file.extend(value.bytes());
        }
        let mut data = Vec::new();
        for Tensor { name, shape, ty, offset, bytes } in &self.tensors {
            file.extend(string(name));
            file.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|n| file.extend(n.to_le_bytes()));
            file.extend(ty.to_le_bytes());
            file.extend(offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(data);
        file
    }
}

/// What llama.cpp calls a tensor, and its shape there; `None` for all experts but the first, which are part of its.
fn stored(key: TensorKey, shape: Vec<usize>, experts: usize) -> Option<(String, Vec<usize>)> {
    let name = match key {
        TensorKey::Embedding => "token_embd".to_owned(),
        TensorKey::FinalNorm => "output_norm".to_owned(),
        TensorKey::Head => "output".to_owned(),
        TensorKey::Layer { layer, part } => {
            let part = match part {
                LayerPart::AttentionNorm => "attn_norm",
                LayerPart::Query => "attn_q",
                LayerPart::Key => "attn_k",
                LayerPart::Value => "attn_v",
                LayerPart::Output => "attn_output",
                LayerPart::MoeNorm => "ffn_norm",
                LayerPart::Gate => "ffn_gate_inp",
                LayerPart::Expert { expert: 0, matrix } => {
                    let name = match matrix {
                        ExpertMatrix::W1 => "gate",
                        ExpertMatrix::W2 => "down",
                        ExpertMatrix::W3 => "up",
                    };
                    return Some((
                        format!("blk.{layer}.ffn_{name}_exps.weight"),
                        [&[experts], &shape[..]].concat(),
                    ));
                }
                _ => return None,
            };
            format!("blk.{layer}.{part}")
        }
        _ => return None,
    };
    Some((name + ".weight", shape))
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Value {
    /// Its type's number and its bytes.
    fn bytes(&self) -> Vec<u8> {
        let array = |ty: u32, items: Vec<Vec<u8>>| {
            let head = [&ty.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
            (9, [head, items.concat()].concat())
        };
        let (ty, bytes) = match self {
            Self::U16(n) => (2, n.to_le_bytes().to_vec()),
            Self::U32(n) => (4, n.to_le_bytes().to_vec()),
            Self::F32(value) => (6, value.to_le_bytes().to_vec()),
            Self::Bool(flag) => (7, vec![u8::from(*flag)]),
            Self::Text(text) => (8, string(text)),
            Self::Texts(texts) => array(8, texts.iter().map(|text| string(text)).collect()),
            Self::Floats(values) => {
                array(6, values.iter().map(|value| value.to_le_bytes().to_vec()).collect())
            }
            Self::Ints(values) => array(5, values.iter().map(|value| value.to_le_bytes().to_vec()).collect()),
            Self::Raw(ty, bytes) => (*ty, bytes.clone()),
        };
        [&ty.to_le_bytes()[..], &bytes].concat()
    }
}
