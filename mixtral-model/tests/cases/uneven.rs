//! Layers with different numbers of experts, as in pruned models; `fixtures/uneven/make.py` makes model and goldens.

use std::path::{Path, PathBuf};

use mixtral_model::inspect::Report;
use mixtral_model::{
    Config, Dump, GenerateOptions, LayerExperts, Manifest, Model, SessionOptions, Source, Workspace,
};
use serde_json::{Value, json};

use crate::tiny::continued;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/uneven")
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let model = Model::open(&dir()).unwrap();
    let goldens: Value = serde_json::from_slice(&std::fs::read(dir().join("goldens.json")).unwrap()).unwrap();
    for golden in goldens.as_array().unwrap() {
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(golden[key].clone()).unwrap();
        let (tokens, _) = continued(&model, &ids("prompt"), &GenerateOptions::new(&model, 24));
        assert_eq!(tokens, ids("tokens"), "{golden}");
    }
}

#[test]
fn every_layer_has_its_own_number() {
    let model = Model::open(&dir()).unwrap();
    let experts = &model.config().experts;
    assert_eq!((experts, experts.most()), (&LayerExperts::Each(vec![4, 1, 3]), 4));
    let mut session = model.session(SessionOptions::default()).unwrap();
    let dump = Dump::record(&model, &mut session, &[1, 20, 33], 3, &mut Workspace::new(), &mut ()).unwrap();
    for (layer, (experts, chosen)) in [(4, 2), (1, 1), (3, 2)].into_iter().enumerate() {
        assert_eq!(dump.router_logits(layer).dim(), (3, experts));
        assert_eq!(dump.choices(layer).experts(0).len(), chosen);
    }
    let report = Report::of(&Source::find(&dir()).unwrap()).unwrap();
    // Of each layer 2 norms, q and o, k and v; then a row of the gate and 3 matrices for each expert.
    let (layer, expert) = (2 * 16 + 2 * 16 * 16 + 2 * 8 * 16, 16 + 3 * 16 * 24);
    assert_eq!(report.parameters, 2 * 97 * 16 + 16 + 3 * layer + 8 * expert);
    assert_eq!(report.active_parameters, report.parameters - 3 * 3 * 16 * 24);
    assert_eq!(Manifest::new(model.config()).tensors().count() as u64, 3 + 3 * 7 + 3 * 8);
    assert_eq!(serde_json::to_value(&report).unwrap()["geometry"]["experts"], json!([4, 1, 3]));
    let text = report.to_string();
    assert!(text.contains("3 layers, width 16, 1 to 4 experts of 24, 2 chosen"), "{text}");
}

/// What config and files say must fit together.
#[test]
fn numbers_that_are_refused() {
    let text = std::fs::read(dir().join("config.json")).unwrap();
    let message = |changes: Value| {
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        match Config::from_json(config.to_string().as_bytes(), Path::new("config.json")) {
            Err(error) => error.to_string(),
            Ok(config) => {
                let checkpoint = mixtral_model::Checkpoint::open(&dir(), mixtral_model::Access::Map).unwrap();
                checkpoint
                    .verify(&config)
                    .map_or_else(|error| error.to_string(), |_| "as it should be".into())
            }
        }
    };
    for (changes, expected) in [
        (json!({}), "as it should be"),
        (json!({"num_experts": [4, 1, 3]}), "as it should be"),
        (json!({"layer_deltas": [null, null, null], "mode": "dynamic"}), "as it should be"),
        (
            json!({"num_local_experts": [4, 1]}),
            "num_local_experts: expected a number, or one for each of 3 layers",
        ),
        (json!({"num_local_experts": [4, null, 3]}), "num_local_experts: expected a number, or one for each"),
        (json!({"num_local_experts": [4, 0, 3]}), "num_local_experts: expected at least 1, found 0"),
        (
            json!({"num_local_experts": [1, 1, 1]}),
            "num_experts_per_tok: expected at most num_local_experts 1",
        ),
        (json!({"num_experts": 4}), "num_experts: expected 1 to 4, as num_local_experts says"),
        (
            json!({"num_local_experts": [4, 1, 2]}),
            "model.layers.2.block_sparse_moe.gate.weight: expected shape [2, 16]",
        ),
        (
            json!({"num_local_experts": [4, 2, 3]}),
            "model.layers.1.block_sparse_moe.gate.weight: expected shape [2, 16]",
        ),
        (
            json!({"num_local_experts": 4}),
            "model.layers.1.block_sparse_moe.gate.weight: expected shape [4, 16]",
        ),
        (json!({"layer_deltas": [0.1, null, 0.2], "mode": "dynamic"}), "layer_deltas: expected null"),
    ] {
        let found = message(changes.clone());
        assert!(found.contains(expected), "{changes}: expected {expected}, found {found}");
    }
}
