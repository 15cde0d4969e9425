//! Checkpoints as other programs write them, and what lies beside them.

use std::ops::ControlFlow;

use mixtral_model::convert::{Conversion, Recipe};
use mixtral_model::{Access, Ended, GenerateOptions, Model, Source};

use crate::tiny::{PROMPT, case, continued};

/// The model of a case, what its layout is called, and what follows the prompt.
fn run(name: &str) -> (String, Vec<u32>) {
    let source = Source::find(&case(name)).unwrap();
    let layout = source.checkpoint(Access::Map).unwrap().layout().clone();
    let model = Model::open(&case(name)).unwrap();
    let (tokens, ended) = continued(&model, &PROMPT, &GenerateOptions::new(&model, 3));
    assert_eq!(ended, Ended::MaxTokens);
    (serde_json::to_value(layout).unwrap().as_str().unwrap().to_owned(), tokens)
}

#[test]
fn fused_experts_of_mergekit_and_transformers_5() {
    for (name, expected) in [
        ("01-mergekit-0.1.5-moe-fused", [970, 1264, 397]),
        ("02-t5-save-original-format-false", [1812, 204, 1007]),
        // With tied embeddings and Llama 3's RoPE.
        ("18-llama3-rope-merge", [421, 405, 402]),
    ] {
        assert_eq!(run(name), ("hub-fused".to_owned(), expected.to_vec()), "{name}");
    }
}

/// The model runs without what the adapter would change, and says so.
#[test]
fn an_adapter_beside_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let from = case("02-t5-save-original-format-false");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    assert_eq!(Source::find(dir.path()).unwrap().warnings().unwrap(), Vec::<String>::new());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::write(dir.path().join(name), "{}").unwrap();
        let warnings = Source::find(dir.path()).unwrap().warnings().unwrap();
        assert!(
            matches!(&warnings[..], [one] if one.contains("adapter_") && one.contains("not applied")),
            "{warnings:?}"
        );
    }
    // And alone it is no model.
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let error = Source::find(dir.path()).unwrap_err().to_string();
    assert!(error.contains("a LoRA adapter (adapter_config.json)"), "{error}");
}

/// A folder of the hub's cache is its main snapshot, also by the repository's name.
#[test]
fn a_folder_of_the_hub_cache() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--mistralai--Mixtral-8x7B-v0.1");
    let snapshot = folder.join("snapshots/fc7ac94680e38d7348cfa806e51218e6273104b0");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::write(folder.join("refs/main"), "fc7ac94680e38d7348cfa806e51218e6273104b0").unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(case("02-t5-save-original-format-false").join(name), snapshot.join(name)).unwrap();
    }
    let text = Source::find(&folder).unwrap().to_string();
    assert_eq!(text, format!("directory {}", snapshot.display()));
}

/// Mistral's own hyperparameters: keys that are not known are refused, those of the experts too.
#[test]
fn params_of_mistrals_own_files() {
    let params = serde_json::json!({
        "dim": 16, "n_layers": 2, "head_dim": 4, "hidden_dim": 24, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 2048,
        "sliding_window": "4096", "moe": {"num_experts_per_tok": 2, "num_experts": 4},
    });
    let read = |params: &serde_json::Value| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), params.to_string()).unwrap();
        mixtral_model::Config::from_params(file.path()).map_err(|error| error.to_string())
    };
    let config = read(&params).unwrap();
    assert_eq!((config.sliding_window, config.rope_theta, config.experts), (Some(4096), 1e6, 4.into()));
    for (pointer, key) in [("", "yarn"), ("/moe", "num_shared_experts")] {
        let mut changed = params.clone();
        changed.pointer_mut(pointer).unwrap()[key] = 1.into();
        let error = read(&changed).unwrap_err();
        assert!(error.contains(key) && error.contains("not known"), "{error}");
    }
}

/// `config.json` counts, and what `params.json` says otherwise is told.
#[test]
fn a_config_that_contradicts_params() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, value: serde_json::Value| {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap()
    };
    let from = case("22-generation-config-bad-words").join("config.json");
    std::fs::copy(from, dir.path().join("config.json")).unwrap();
    let warnings = || Source::directory(dir.path()).warnings().unwrap();
    let mut params = serde_json::json!({
        "dim": 16, "n_layers": 2, "head_dim": 4, "hidden_dim": 24, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
        "vocab_size": 2048, "moe": {"num_experts_per_tok": 2, "num_experts": 4},
    });
    write("params.json", params.clone());
    assert_eq!(warnings(), [""; 0]);
    params["moe"]["num_experts_per_tok"] = 1.into();
    write("params.json", params.clone());
    params["moe"]["num_experts_per_tok"] = 2.into();
    let expected = "params.json: num_experts_per_tok is 1, and 2 by config.json, which counts";
    assert!(matches!(&warnings()[..], [only] if only.ends_with(expected)), "{:?}", warnings());
    for (key, value, expected) in [
        ("rope_theta", serde_json::json!(5.0), "rope_theta is 5, and 10000 by config.json, which counts"),
        ("norm_eps", serde_json::json!(0.1), "norm_eps is 0.1, and 0.00001 by config.json, which counts"),
        (
            "sliding_window",
            serde_json::json!(4),
            "sliding_window is 4, and none by config.json, which counts",
        ),
    ] {
        let mut changed = params.clone();
        changed[key] = value;
        write("params.json", changed);
        assert!(matches!(&warnings()[..], [only] if only.ends_with(expected)), "{:?}", warnings());
    }
    // Of another model altogether.
    write("params.json", serde_json::json!({"dim": 16}));
    assert_eq!(warnings(), [""; 0]);
}

/// Repositories of GGUF files often have the config of the model that they were made from.
#[test]
fn a_config_beside_a_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let source = Source::directory(&case("02-t5-save-original-format-false"));
    let conversion = Conversion::new(&source, Access::Map, Recipe::default()).unwrap();
    let plan = conversion.gguf().unwrap();
    plan.write(&dir.path().join("m.gguf"), |_| ControlFlow::Continue(())).unwrap();
    assert!(Source::find(dir.path()).unwrap().to_string().starts_with("GGUF file"));
    std::fs::write(dir.path().join("model.safetensors"), "").unwrap();
    assert!(Source::find(dir.path()).unwrap().to_string().starts_with("directory"));
}

#[test]
fn what_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| Source::find(&dir.path().join(name)).unwrap_err().to_string();
    std::fs::write(dir.path().join("x.gguf"), b"GGUF\0\0\0\0").unwrap();
    std::fs::write(dir.path().join("x.bin"), b"PK").unwrap();
    assert!(of("x.gguf").contains("expected GGUF version 2 or 3"), "{}", of("x.gguf"));
    assert!(of("x.bin").contains("found a file of another kind"), "{}", of("x.bin"));
    assert!(of("nothing").contains("nothing is downloaded"), "{}", of("nothing"));
    let error = Source::find("mistralai/No-Such-Model".as_ref()).unwrap_err().to_string();
    assert!(
        error.contains("the hub's local cache (") && error.contains("`hf download mistralai/No-Such-Model`"),
        "{error}"
    );
    std::fs::write(dir.path().join("y.gguf"), b"GGUF").unwrap();
    let error = Source::find(dir.path()).unwrap_err().to_string();
    assert!(error.contains("found 2 of them, x.gguf the first"), "{error}");
}
