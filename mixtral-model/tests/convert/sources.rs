//! Sources of other layouts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mixtral_model::{Access, Config, Source};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::json;

use crate::{Conversion, fixtures, logits, model, recipe, tensors, to_directory, to_gguf};

pub(crate) type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

pub(crate) fn save(dir: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (format, shape, bytes))| {
        let dtype = if format == "bf16" { Dtype::BF16 } else { Dtype::F32 };
        (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

/// The experts of a layer put together as Transformers 5 stores them.
fn fuse(tensors: &mut Tensors, config: &Config) {
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}.block_sparse_moe");
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..config.experts.of(layer) {
            let mut take = |matrix: &str| {
                tensors.remove(&format!("{prefix}.experts.{expert}.{matrix}.weight")).unwrap().2
            };
            gate_up.extend(take("w1"));
            gate_up.extend(take("w3"));
            down.extend(take("w2"));
        }
        let gate = tensors.remove(&format!("{prefix}.gate.weight")).unwrap();
        let module = format!("model.layers.{layer}.mlp");
        tensors.insert(format!("{module}.gate.weight"), gate);
        let (experts, width, hidden) =
            (config.experts.of(layer), config.hidden_size, config.intermediate_size);
        for (name, shape, bytes) in [
            ("gate_up_proj", vec![experts, 2 * hidden, width], gate_up),
            ("down_proj", vec![experts, width, hidden], down),
        ] {
            tensors.insert(format!("{module}.experts.{name}"), ("f32".to_owned(), shape, bytes));
        }
    }
}

#[test]
fn fused_experts() {
    let from = fixtures().join("models/f32-single");
    let dir = tempfile::tempdir().unwrap();
    let (fused, file, back) = (dir.path().join("fused"), dir.path().join("m.gguf"), dir.path().join("back"));
    fs::create_dir(&fused).unwrap();
    fs::copy(from.join("config.json"), fused.join("config.json")).unwrap();
    let config = Source::find(&from).unwrap().config().unwrap();
    let mut all = tensors(&from);
    fuse(&mut all, &config);
    save(&fused, &all);
    to_gguf(&fused, &[], &file);
    to_directory(&fused, &[], &back);
    assert_eq!(tensors(&back), tensors(&from));
    let expected = logits(&model(&from));
    for path in [&fused, &file, &back] {
        assert_eq!(logits(&model(path)), expected, "{}", path.display());
    }
}

#[test]
fn mistrals_own_files() {
    // Rows in pairs, as in a GGUF file, under Mistral's names.
    let from = fixtures().join("models/f32-single");
    let dir = tempfile::tempdir().unwrap();
    let (file, own, back) = (dir.path().join("m.gguf"), dir.path().join("own"), dir.path().join("back"));
    to_gguf(&from, &[], &file);
    let config = Source::find(&from).unwrap().config().unwrap();
    let mut renamed = Tensors::new();
    for (name, (format, shape, bytes)) in tensors(&file) {
        let name = name
            .replace("blk.", "layers.")
            .replace("token_embd", "tok_embeddings")
            .replace("output_norm", "norm")
            .replace("attn_norm", "attention_norm")
            .replace("attn_output", "attention.wo")
            .replace("attn_", "attention.w")
            .replace("ffn_gate_inp", "feed_forward.gate");
        match ["gate_exps", "down_exps", "up_exps"].iter().position(|exps| name.contains(exps)) {
            None => {
                renamed.insert(name, (format, shape, bytes));
            }
            Some(n) => {
                let (layer, _) = name.split_once(".ffn_").unwrap();
                for (expert, bytes) in bytes.chunks_exact(bytes.len() / config.experts.most()).enumerate() {
                    let name = format!("{layer}.feed_forward.experts.{expert}.w{}.weight", n + 1);
                    renamed.insert(name, (format.clone(), shape[1..].to_vec(), bytes.to_vec()));
                }
            }
        }
    }
    fs::create_dir(&own).unwrap();
    fs::copy(from.join("config.json"), own.join("config.json")).unwrap();
    save(&own, &renamed);
    fs::rename(own.join("model.safetensors"), own.join("consolidated.safetensors")).unwrap();
    to_directory(&own, &[], &back);
    assert_eq!(tensors(&back), tensors(&from));
    to_gguf(&own, &[], &dir.path().join("again.gguf"));
    assert_eq!(tensors(&dir.path().join("again.gguf")), tensors(&file));
    assert_eq!(logits(&model(&own)), logits(&model(&from)));
}

/// What a config says of the rotary embedding reaches the other side, or is refused where no key can say it.
#[test]
fn scaled_rope() {
    for (scaling, in_gguf) in [
        (json!({"rope_type": "linear", "factor": 4.0}), true),
        (json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}), true),
        (
            json!({"rope_type": "yarn", "factor": 3.5, "attention_factor": 1.0, "beta_fast": 20, "original_max_position_embeddings": 16}),
            true,
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "truncate": false, "original_max_position_embeddings": 16}),
            false,
        ),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
            false,
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (from, file, back) =
            (dir.path().join("from"), dir.path().join("m.gguf"), dir.path().join("back"));
        fs::create_dir(&from).unwrap();
        fs::copy(fixtures().join("models/f32-single/model.safetensors"), from.join("model.safetensors"))
            .unwrap();
        let text = fs::read_to_string(fixtures().join("models/f32-single/config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config.as_object_mut().unwrap().remove("rope_parameters");
        config["rope_scaling"] = scaling.clone();
        fs::write(from.join("config.json"), config.to_string()).unwrap();
        let expected = logits(&model(&from));
        assert_ne!(expected, logits(&model(&fixtures().join("models/f32-single"))), "{scaling}");
        let source = Source::find(&from).unwrap();
        let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
        if !in_gguf {
            let error = conversion.gguf().err().unwrap().to_string();
            assert!(error.contains("RoPE scaling"), "{error}");
            continue;
        }
        to_gguf(&from, &[], &file);
        assert_eq!(logits(&model(&file)), expected, "{scaling}");
        to_directory(&file, &[], &back);
        assert_eq!(logits(&model(&back)), expected, "{scaling}");
    }
}
