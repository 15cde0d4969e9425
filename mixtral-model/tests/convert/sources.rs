//! Sources of other layouts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mixtral_model::{Config, Source};
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::{fixtures, logits, model, tensors, to_directory, to_gguf};

type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn save(dir: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (format, shape, bytes))| {
        assert_eq!(format, "f32");
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

/// The experts of a layer put together as Transformers 5 stores them.
fn fuse(tensors: &mut Tensors, config: &Config) {
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}.block_sparse_moe");
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..config.experts {
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
        let (experts, width, hidden) = (config.experts, config.hidden_size, config.intermediate_size);
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
                for (expert, bytes) in bytes.chunks_exact(bytes.len() / config.experts).enumerate() {
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
