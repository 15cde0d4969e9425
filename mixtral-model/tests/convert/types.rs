//! Weights in other types.

use std::fs;
use std::path::Path;

use mixtral_model::convert::Conversion;
use mixtral_model::{Access, Checkpoint, Compute, Kind, LayerPart, Loader, Source, TensorKey, TensorSpec};
use moe_kernels::{BlockType, WeightMatrix};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{demo, fixtures, logits, model, recipe, tensors, to_gguf, write};

/// The type of blocks of 32 that stands in where rows are no multiple of 256.
fn of_short_rows(block: BlockType) -> BlockType {
    match block {
        BlockType::Q2K | BlockType::Q3K => BlockType::Q4_0,
        BlockType::Q4K => BlockType::Q5_0,
        BlockType::Q5K => BlockType::Q5_1,
        BlockType::Q6K => BlockType::Q8_0,
        BlockType::Iq4Xs => BlockType::Iq4Nl,
        other => other,
    }
}

fn quantised(weight: &WeightMatrix, block: BlockType) -> WeightMatrix {
    let (rows, columns) = (weight.rows(), weight.columns());
    let block = if columns.is_multiple_of(block.elements()) { block } else { of_short_rows(block) };
    let stride = block.row_bytes(columns).unwrap();
    let mut bytes = vec![0; rows * stride];
    bytes.par_chunks_exact_mut(stride).enumerate().for_each(|(n, to)| {
        let mut row = vec![0.0; columns];
        weight.widen_row(n, &mut row);
        block.quantise_row(&row, None, to).unwrap();
    });
    WeightMatrix::new(bytes.into(), block, rows, columns).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of a file's tensors: names, types, shapes and values.
fn values(file: &Path) -> String {
    let checkpoint = Checkpoint::open_gguf(file, Access::Map).unwrap();
    let mut bytes = Vec::new();
    for entry in checkpoint.entries() {
        let tensor = checkpoint.tensor(entry.name).unwrap();
        bytes.extend(format!("{} {} {:?}\n", tensor.name, tensor.format, tensor.shape).as_bytes());
        let columns = *tensor.shape.last().unwrap();
        let rows = tensor.shape.iter().product::<usize>() / columns;
        let matrix = WeightMatrix::new(tensor.bytes, tensor.format, rows, columns).unwrap();
        let mut row = vec![0.0; columns];
        for n in 0..rows {
            matrix.widen_row(n, &mut row);
            bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    digest(&bytes)
}

#[test]
fn the_demo_in_every_type_computes_what_it_does_quantised_in_memory() {
    let source = Source::find(&demo()).unwrap();
    let checkpoint = source.checkpoint(Access::Map).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let goldens = fs::read(fixtures().join("convert/digests.json")).unwrap();
    let goldens: serde_json::Value = serde_json::from_slice(&goldens).unwrap();
    let made: Vec<_> = BlockType::ALL.iter().filter(|block| block.can_be_made()).collect();
    assert_eq!(made.len(), 13);
    for &block in made {
        let file = dir.path().join(format!("{block}.gguf"));
        // Two layers' experts suffice.
        let choices = [block.name(), "embedding=bf16", "experts@1-2=bf16"];
        let summary = to_gguf(&demo(), &choices, &file);
        let kept = |key| matches!(key, TensorKey::Layer { layer: 1 | 2, part: LayerPart::Expert { .. } });
        let quantise = |spec: &TensorSpec, weight: WeightMatrix| {
            Ok(if kept(spec.key) { weight } else { quantised(&weight, block) })
        };
        let expected = Loader::new(source.config().unwrap(), &checkpoint, Compute::default())
            .map_weights(quantise)
            .load()
            .unwrap();
        assert_eq!(logits(&model(&file)), logits(&expected), "{block}");
        let golden = &goldens[block.name()];
        assert_eq!(golden["file"], digest(&fs::read(&file).unwrap()), "{block}: file");
        assert_eq!(golden["values"], values(&file), "{block}: values");
        assert_eq!(summary.changed.len(), if block.elements() == 256 { 2 } else { 0 }, "{block}");
        for changed in &summary.changed {
            assert_eq!((&*changed.wanted, changed.columns), (block.name(), 128));
            assert_eq!(changed.got, of_short_rows(block).name());
        }
        for row in &summary.rows {
            let whole = ["f32", "bf16"].contains(&&*row.format);
            assert_eq!(row.relative_error > 0.0, !whole, "{block} {}", row.part);
        }
    }
}

#[test]
fn errors_are_those_of_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let summary = to_gguf(&demo(), &["head=q4_0"], &file);
    let row = summary.rows.iter().find(|row| row.part == "head").unwrap();
    assert_eq!((&*row.format, row.tensors, row.weights, row.bits_per_weight), ("q4_0", 1, 2048 * 256, 4.5));
    let wide = |path: &Path| {
        let source = Source::find(path).unwrap();
        let (config, checkpoint) = (source.config().unwrap(), source.checkpoint(Access::Map).unwrap());
        let head = mixtral_model::Manifest::new(&config).head().unwrap();
        let matrix = checkpoint.matrix(&checkpoint.place(&head, &config).unwrap()).unwrap();
        let mut all = vec![0.0; matrix.rows() * matrix.columns()];
        for (row, to) in all.chunks_exact_mut(matrix.columns()).enumerate() {
            matrix.widen_row(row, to);
        }
        all
    };
    let (before, after) = (wide(&demo()), wide(&file));
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let error = squares(&mut before.iter().zip(&after).map(|(a, b)| a - b));
    let expected = (error / squares(&mut before.iter().copied())).sqrt();
    assert!((row.relative_error / expected - 1.0).abs() < 1e-9, "{} {expected}", row.relative_error);
    assert!((0.02..0.2).contains(&expected), "{expected}");
}

#[test]
fn some_layers_and_some_experts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layers.gguf");
    to_gguf(&demo(), &["q8_0", "experts.w1@0,2-3=q4_0", "attention@1=f16"], &file);
    let found = tensors(&file);
    for (name, expected) in [
        ("blk.0.ffn_gate_exps.weight", "q4_0"),
        ("blk.1.ffn_gate_exps.weight", "q8_0"),
        ("blk.3.ffn_gate_exps.weight", "q4_0"),
        ("blk.0.ffn_up_exps.weight", "q8_0"),
        ("blk.1.attn_q.weight", "f16"),
        ("blk.2.attn_q.weight", "q8_0"),
        ("blk.1.ffn_gate_inp.weight", "f32"),
        ("token_embd.weight", "q8_0"),
    ] {
        assert_eq!(found[name].0, expected, "{name}");
    }
    // Where experts differ, each has tensors of its own, and the user is told.
    let source = Source::find(&demo()).unwrap();
    let choices = recipe(&["q4_0", "experts.w2@1:7=q8_0"]);
    let conversion = Conversion::new(&source, Access::Map, choices).unwrap();
    let (plan, file) = (conversion.gguf().unwrap(), dir.path().join("experts.gguf"));
    assert!(plan.warnings().iter().any(|warning| warning.contains("a tensor of its own")));
    write(&plan, &file).unwrap();
    let found = tensors(&file);
    assert_eq!(found["blk.1.ffn_down.7.weight"].0, "q8_0");
    assert_eq!(found["blk.1.ffn_down.6.weight"].0, "q4_0");
    assert_eq!(found["blk.0.ffn_down.7.weight"].0, "q4_0");
    assert!(logits(&model(&file)).iter().all(|logit| logit.is_finite()));
}

#[test]
fn rows_that_are_no_blocks_of_any_kind_become_f16() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let summary = to_gguf(&fixtures().join("models/head-dim-24-odd"), &["q4_k_m"], &file);
    assert!(summary.changed.iter().any(|changed| changed.got == "f16"));
    assert_eq!(tensors(&file)["blk.0.ffn_gate_exps.weight"].0, "f16");
    assert!(summary.to_string().contains("f16 in place of q4_k, as rows of 52 are no whole blocks of that"));
}

#[test]
fn quantised_weights_can_be_quantised_again_and_widened() {
    let dir = tempfile::tempdir().unwrap();
    let (file, wide) = (dir.path().join("m.gguf"), dir.path().join("wide"));
    to_gguf(&fixtures().join("gguf/Q4_K_M.gguf"), &["experts=q2_k"], &file);
    assert_eq!(tensors(&file)["blk.1.ffn_down_exps.weight"].0, "q2_k");
    assert_eq!(tensors(&file)["blk.1.attn_v.weight"].0, "q6_k");
    crate::to_directory(&fixtures().join("gguf/Q4_K_M.gguf"), &["f32"], &wide);
    // Products are the same, for either widens to the same f32.
    assert_eq!(logits(&model(&wide)), logits(&model(&fixtures().join("gguf/Q4_K_M.gguf"))));
    let config = fs::read_to_string(wide.join("config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"float32\""), "{config}");
}

#[test]
fn gates_and_norms_are_never_quantised() {
    let source = Source::find(&demo()).unwrap();
    let manifest_config = source.config().unwrap();
    for block in ["q2_k", "q4_k_m", "all=q8_0"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.gguf");
        to_gguf(&demo(), &[block], &file);
        let written = Source::find(&file).unwrap().checkpoint(Access::Map).unwrap();
        for spec in mixtral_model::Manifest::new(&manifest_config).tensors() {
            let format = written.place(&spec, &manifest_config).unwrap().format.to_string();
            let whole = matches!(spec.kind(), Kind::Gate | Kind::Norms);
            assert_eq!(format == "f32", whole, "{block} {}", spec.key);
        }
    }
}
