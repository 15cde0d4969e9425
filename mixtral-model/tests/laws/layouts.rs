//! However a checkpoint names its tensors and puts experts into them, the model is the same to the bit.

use std::path::Path;

use mixtral_model::{Checkpoint, Config, Model, SessionOptions, TensorKey};
use moe_kernels::{Backend, Dtype};

use crate::tiny::{Shape, Stored, read};

/// The matrices of experts as the hub, Mistral and GGUF call them.
const MATRICES: [[&str; 2]; 3] = [["w1", "gate"], ["w2", "down"], ["w3", "up"]];

fn shape() -> Shape {
    Shape { hidden: 32, ffn: 24, experts: 3, half_head: 4, ..Shape::plain() }
}

/// The tensors with new names; a tensor without one is left out.
fn renamed(tensors: &[Stored], name: impl Fn(&str) -> Option<String>) -> Vec<Stored> {
    let rename = |tensor: &Stored| Some(Stored { name: name(&tensor.name)?, ..tensor.clone() });
    tensors.iter().filter_map(rename).collect()
}

fn find<'a>(tensors: &'a [Stored], name: &str) -> &'a Stored {
    tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// In place of the matrices of a layer's experts, `name(layer, matrix)`: for each expert the bytes of all these matrices,
/// and the dimensions that `shape(experts, rows of an expert, columns)` gives.
fn gathered(
    tensors: &[Stored],
    layers: usize,
    experts: usize,
    into: &[(&[&str], &str)],
    shape: impl Fn(usize, usize, usize) -> Vec<usize>,
) -> Vec<Stored> {
    let mut all: Vec<_> =
        tensors.iter().filter(|tensor| !tensor.name.contains(".experts.")).cloned().collect();
    for n in 0..layers {
        for (matrices, name) in into {
            let part = |e: usize, w: &str| {
                find(tensors, &format!("model.layers.{n}.block_sparse_moe.experts.{e}.{w}.weight"))
            };
            let first = part(0, matrices[0]);
            let rows = first.shape[0] * matrices.len();
            let bytes = (0..experts)
                .flat_map(|e| matrices.iter().flat_map(move |w| part(e, w).bytes.clone()))
                .collect();
            let name = format!("model.layers.{n}.{name}");
            all.push(Stored { name, shape: shape(experts, rows, first.shape[1]), bytes });
        }
    }
    all
}

/// Rows of queries and keys, each head's halves interleaved.
fn in_pairs(tensors: Vec<Stored>, config: &Config) -> Vec<Stored> {
    let interleave = |tensor: Stored| {
        if !(tensor.name.contains("q_proj") || tensor.name.contains("k_proj")) {
            return tensor;
        }
        let (row, half) = (tensor.bytes.len() / tensor.shape[0], config.head_dim / 2);
        let rows: Vec<_> = tensor.bytes.chunks(row).collect();
        let bytes = rows
            .chunks(2 * half)
            .flat_map(|head| (0..2 * half).flat_map(move |i| head[i / 2 + i % 2 * half].to_vec()));
        Stored { bytes: bytes.collect(), ..tensor }
    };
    tensors.into_iter().map(interleave).collect()
}

fn consolidated(name: &str) -> String {
    let name = name.replace("model.layers.", "layers.").replace("model.embed_tokens", "tok_embeddings");
    let name = name.replace("model.norm", "norm").replace("lm_head", "output");
    let name =
        name.replace("post_attention_layernorm", "ffn_norm").replace("input_layernorm", "attention_norm");
    let name = name.replace("block_sparse_moe", "feed_forward");
    ["q", "k", "v", "o"]
        .iter()
        .fold(name, |name, w| name.replace(&format!("self_attn.{w}_proj"), &format!("attention.w{w}")))
}

fn in_gguf(name: &str) -> String {
    let name = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd");
    let name = name.replace("model.norm", "output_norm").replace("lm_head", "output");
    let name = name.replace("post_attention_layernorm", "ffn_norm").replace("input_layernorm", "attn_norm");
    let name = name.replace("block_sparse_moe.gate", "ffn_gate_inp").replace("o_proj", "output");
    let name = name.replace("self_attn.", "attn_").replace("_proj", "");
    // An expert's matrix: `block_sparse_moe.experts.2.w1.weight` is `ffn_gate.2.weight`.
    let Some((layer, rest)) = name.split_once("block_sparse_moe.experts.") else { return name };
    let (expert, matrix) = rest.split_once('.').unwrap();
    let matrix = MATRICES.iter().find(|[w, _]| matrix.starts_with(w)).unwrap()[1];
    format!("{layer}ffn_{matrix}.{expert}.weight")
}

/// A GGUF file of these tensors, without metadata.
fn gguf(tensors: &[Stored], dtype: Dtype) -> Vec<u8> {
    const ALIGNMENT: usize = 32;
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file =
        [b"GGUF", &3u32.to_le_bytes()[..], &(tensors.len() as u64).to_le_bytes(), &0u64.to_le_bytes()]
            .concat();
    let (mut data, ty) = (
        Vec::new(),
        match dtype {
            Dtype::F32 => 0u32,
            Dtype::F16 => 1,
            _ => 30,
        },
    );
    for Stored { name, shape, bytes } in tensors {
        file.extend(string(name));
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&n| file.extend((n as u64).to_le_bytes()));
        file.extend(ty.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend(data);
    file
}

/// Every layout of the same weights: its short name, and a file.
fn layouts(shape: &Shape) -> Vec<(&'static str, Vec<u8>)> {
    let (config, hub) = (shape.config(), shape.tensors(|_, _| ()));
    let gather = |into: &[(&[&str], &str)], dimensions: fn(usize, usize, usize) -> Vec<usize>| {
        gathered(&hub, config.layers, config.experts.most(), into, dimensions)
    };
    let stack = |experts, rows, columns| vec![experts, rows, columns];
    let moe = "block_sparse_moe";
    let fused =
        gather(&[(&["w1", "w3"], "mlp.experts.gate_up_proj"), (&["w2"], "mlp.experts.down_proj")], stack);
    let fused = renamed(&fused, |name| Some(name.replace(&format!("{moe}.gate"), "mlp.gate")));
    let switch = MATRICES.map(|[w, gguf]| ([w], format!("{moe}.switch_mlp.{gguf}_proj.weight")));
    let switch = gather(&switch.each_ref().map(|(w, name)| (&w[..], &**name)), stack);
    let rows = MATRICES.map(|[w, _]| ([w], format!("{moe}.{w}")));
    let rows = gather(&rows.each_ref().map(|(w, name)| (&w[..], &**name)), |experts, rows, columns| {
        vec![experts * rows, columns]
    });
    let with_prefix = renamed(&hub, |name| Some(format!("language_model.{name}")));

    let pairs = in_pairs(hub.clone(), &config);
    let mistral = renamed(&pairs, |name| Some(consolidated(name)));
    let stacked = MATRICES.map(|[w, gguf]| ([w], format!("ffn_{gguf}_exps.weight")));
    let stacked = gathered(
        &pairs,
        config.layers,
        config.experts.most(),
        &stacked.each_ref().map(|(w, name)| (&w[..], &**name)),
        stack,
    );
    let gate_up: [(&[&str], &str); 2] =
        [(&["w1", "w3"], "ffn_gate_up_exps.weight"), (&["w2"], "ffn_down_exps.weight")];
    let gate_up = gathered(&pairs, config.layers, config.experts.most(), &gate_up, stack);
    let of_gguf = |tensors: &[Stored]| gguf(&renamed(tensors, |name| Some(in_gguf(name))), shape.dtype);

    vec![
        ("hub-per-expert", shape.safetensors(&hub)),
        ("hub-per-expert", shape.safetensors(&with_prefix)),
        ("hub-fused", shape.safetensors(&fused)),
        ("hub-stacked", shape.safetensors(&switch)),
        ("hub-concatenated", shape.safetensors(&rows)),
        ("consolidated-per-expert", shape.safetensors(&mistral)),
        ("gguf-per-expert", of_gguf(&pairs)),
        ("gguf-stacked", of_gguf(&stacked)),
        ("gguf-fused", of_gguf(&gate_up)),
    ]
}

fn logits_of(shape: &Shape, file: Vec<u8>) -> Vec<u32> {
    let checkpoint = Checkpoint::from_bytes(Path::new("file"), file.into()).unwrap();
    assert_eq!(checkpoint.verify(&shape.config()).unwrap(), [""; 0]);
    let model = Model::load(shape.config(), &checkpoint, Backend::best()).unwrap();
    read(&model, &shape.ids(20), &[7, 1, 12], SessionOptions::default(), &mut ())
}

#[test]
fn every_layout_is_the_same_model() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (kv_heads, group) in [(2, 2), (1, 3)] {
            let shape = Shape { dtype, kv_heads, group, ..shape() };
            let mut expected = None;
            for (name, file) in layouts(&shape) {
                let checkpoint = Checkpoint::from_bytes(Path::new(name), file.clone().into()).unwrap();
                assert_eq!(serde_json::to_value(checkpoint.layout()).unwrap(), name);
                let found = logits_of(&shape, file);
                assert_eq!(*expected.get_or_insert_with(|| found.clone()), found, "{name} {dtype}");
            }
        }
    }
}

/// What the order of w1 and w3 in one tensor is worth a test for: the other one is no error, and another model.
#[test]
fn of_fused_experts_w1_comes_first() {
    let shape = shape();
    let (config, hub) = (shape.config(), shape.tensors(|_, _| ()));
    let file = |order: [&str; 2]| {
        let into: [(&[&str], &str); 2] =
            [(&order, "mlp.experts.gate_up_proj"), (&["w2"], "mlp.experts.down_proj")];
        let fused = gathered(&hub, config.layers, config.experts.most(), &into, |e, rows, columns| {
            vec![e, rows, columns]
        });
        shape.safetensors(&renamed(&fused, |name| Some(name.replace("block_sparse_moe.gate", "mlp.gate"))))
    };
    let expected = logits_of(&shape, shape.safetensors(&hub));
    assert_eq!(logits_of(&shape, file(["w1", "w3"])), expected);
    assert_ne!(logits_of(&shape, file(["w3", "w1"])), expected);
}

/// The first files had w2 of each expert transposed. That cannot be multiplied where it lies, and where widths are equal it cannot
/// be told.
#[test]
fn concatenated_experts_that_are_transposed() {
    for (ffn, hidden) in [(24, 32), (32, 32)] {
        let shape = Shape { ffn, hidden, ..shape() };
        let (config, hub) = (shape.config(), shape.tensors(|_, _| ()));
        let rows = MATRICES.map(|[w, _]| ([w], format!("block_sparse_moe.{w}")));
        let into = rows.each_ref().map(|(w, name)| (&w[..], &**name));
        let dimensions = |experts, rows, columns| vec![experts * rows, columns];
        let mut all = gathered(&hub, config.layers, config.experts.most(), &into, dimensions);
        for tensor in all.iter_mut().filter(|tensor| tensor.name.ends_with("w2")) {
            tensor.shape = vec![config.experts.most() * ffn, hidden];
        }
        let file = shape.safetensors(&all);
        let checkpoint = Checkpoint::from_bytes(Path::new("file"), file.into()).unwrap();
        let error = checkpoint.verify(&config).unwrap_err().to_string();
        assert!(error.contains("block_sparse_moe.w2") && error.contains("transposed"), "{error}");
    }
}

#[test]
fn of_tied_embeddings_either_name_will_do() {
    let shape = Shape { tied: true, ..shape() };
    let hub = shape.tensors(|_, _| ());
    let head = renamed(&hub, |name| Some(name.replace("model.embed_tokens", "lm_head")));
    assert_eq!(logits_of(&shape, shape.safetensors(&hub)), logits_of(&shape, shape.safetensors(&head)));
}

/// What a layout says of a place is where the bytes are, in the file itself.
#[test]
fn places_are_where_the_bytes_are() {
    let shape = shape();
    let (config, hub) = (shape.config(), shape.tensors(|_, _| ()));
    for (name, file) in layouts(&shape) {
        let checkpoint = Checkpoint::from_bytes(Path::new(name), file.clone().into()).unwrap();
        for spec in mixtral_model::Manifest::new(&config).tensors() {
            let place = checkpoint.place(&spec, &config).unwrap();
            let at = place.offset as usize..(place.offset + place.bytes) as usize;
            assert_eq!(checkpoint.read(&place).unwrap(), &file[at.clone()]);
            let is_permuted = name.starts_with("gguf") || name.starts_with("consolidated");
            let is_head =
                matches!(spec.key, TensorKey::Layer { .. }) && spec.key.to_string().contains("self_attn");
            if !(is_permuted && is_head) {
                assert_eq!(&file[at], find(&hub, &spec.key.to_string()).bytes, "{name} {}", spec.key);
            }
        }
    }
}
