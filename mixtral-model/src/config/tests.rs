//! What `config.json` may say.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Config, RopeScaling};
use crate::Error;

/// A complete small config with the fields of `changes` replaced; `"-"` removes one.
fn text(changes: &Value) -> String {
    let mut fields = json!({
        "model_type": "mixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4,
        "num_experts_per_tok": 2, "vocab_size": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "bos_token_id": 1, "eos_token_id": 2,
    });
    let fields = fields.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap_or(&Map::new()) {
        match value.as_str() {
            Some("-") => fields.remove(key),
            _ => fields.insert(key.clone(), value.clone()),
        };
    }
    Value::Object(fields.clone()).to_string()
}

fn read(text: &str) -> Result<Config, Error> {
    Config::from_json(text.as_bytes(), Path::new("m/config.json"))
}

fn base() -> Config {
    read(&text(&json!({}))).unwrap()
}

#[test]
fn accepted_spellings() {
    type Change = fn(&mut Config);
    let same: Change = |_| ();
    let cases: &[(Value, Change)] = &[
        (json!({"head_dim": "-"}), same),
        (json!({"head_dim": null}), same),
        (json!({"head_dim": 24}), |c| c.head_dim = 24),
        (json!({"num_key_value_heads": null}), |c| c.kv_heads = 4),
        (json!({"num_attention_heads": 8, "head_dim": 4, "num_key_value_heads": "-"}), |c| {
            (c.heads, c.head_dim, c.kv_heads) = (8, 4, 8);
        }),
        (json!({"num_local_experts": "-", "num_experts": 4}), same),
        (json!({"num_experts": 4}), same),
        (json!({"num_experts_per_tok": 4}), |c| c.experts_per_token = 4),
        (json!({"rms_norm_eps": "-"}), same),
        (json!({"rms_norm_eps": 1e-6}), |c| c.rms_norm_eps = 1e-6),
        (json!({"rope_theta": "-"}), same),
        (json!({"rope_theta": 10000}), |c| c.rope_theta = 1e4),
        (json!({"rope_theta": "-", "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}), |c| {
            c.rope_theta = 1e4;
        }),
        (json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}), same),
        (json!({"rope_scaling": {"type": "default"}}), same),
        (json!({"rope_scaling": {}, "rope_parameters": {"type": "default", "rope_type": "default"}}), same),
        (json!({"rope_scaling": {"type": "linear", "factor": 2}}), |c| {
            c.rope_scaling = RopeScaling::Linear { factor: 2.0 };
        }),
        (
            json!({
                "rope_theta": "-", "rope_scaling": {"rope_type": "linear", "factor": 2.5},
                "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.5},
            }),
            |c| (c.rope_theta, c.rope_scaling) = (5e5, RopeScaling::Linear { factor: 2.5 }),
        ),
        (
            json!({"rope_parameters": {
                "rope_type": "llama3", "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": 64,
            }}),
            |c| {
                c.rope_scaling = RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_positions: 64,
                };
            },
        ),
        (
            json!({
                "rope_scaling": {"type": "yarn", "factor": 1, "beta_fast": 16, "truncate": false},
                "original_max_position_embeddings": 32,
            }),
            |c| {
                c.rope_scaling = RopeScaling::Yarn {
                    factor: 1.0,
                    attention_factor: 1.0,
                    beta_fast: 16.0,
                    beta_slow: 1.0,
                    truncate: false,
                    original_max_positions: 32,
                };
            },
        ),
        (json!({"rope_scaling": null, "quantization_config": null, "attention_bias": false}), same),
        (json!({"sliding_window": null}), same),
        (json!({"sliding_window": 1}), |c| c.sliding_window = Some(1)),
        (json!({"tie_word_embeddings": true}), |c| c.tie_embeddings = true),
        (json!({"eos_token_id": [2, 3]}), |c| c.eos = vec![2, 3]),
        (json!({"eos_token_id": null, "bos_token_id": null}), |c| (c.bos, c.eos) = (None, vec![])),
        (json!({"eos_token_id": "-", "bos_token_id": "-"}), same),
        (json!({"hidden_act": "silu", "architectures": ["MixtralForCausalLM"]}), same),
        (json!({"torch_dtype": "bfloat16", "dtype": "float32"}), same),
        (json!({"": 0, "x": {"a": [1, null, -2.5, true, "s"]}}), same),
    ];
    let mut failed = Vec::new();
    for (changes, change) in cases {
        let mut expected = base();
        change(&mut expected);
        match read(&text(changes)) {
            Ok(config) if config == expected => {}
            other => failed.push(format!("{changes}: {other:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn refused_values_name_their_field() {
    let cases = [
        (json!({"num_local_experts": 0}), "num_local_experts"),
        (json!({"num_local_experts": -4}), "num_local_experts"),
        (json!({"num_local_experts": "4"}), "num_local_experts"),
        (json!({"num_local_experts": 4.5}), "num_local_experts"),
        (json!({"num_local_experts": 1u64 << 60}), "num_local_experts"),
        (json!({"num_local_experts": "-"}), "num_local_experts"),
        (json!({"num_experts": 8}), "num_experts"),
        (json!({"num_experts_per_tok": 0}), "num_experts_per_tok"),
        (json!({"num_experts_per_tok": 5}), "num_experts_per_tok"),
        (json!({"num_experts_per_tok": "-"}), "num_experts_per_tok"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers"),
        (json!({"num_hidden_layers": 1u64 << 60}), "num_hidden_layers"),
        (json!({"hidden_size": 0, "head_dim": "-"}), "hidden_size"),
        (json!({"hidden_size": 32.0}), "hidden_size"),
        (json!({"hidden_size": 1e30}), "hidden_size"),
        (json!({"hidden_size": null}), "hidden_size"),
        (json!({"intermediate_size": 0}), "intermediate_size"),
        (json!({"intermediate_size": u64::MAX}), "intermediate_size"),
        (json!({"vocab_size": 0}), "vocab_size"),
        (json!({"vocab_size": 1u64 << 62}), "vocab_size"),
        (json!({"num_attention_heads": 0, "head_dim": "-"}), "num_attention_heads"),
        (json!({"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": "-"}), "head_dim"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads"),
        (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        (json!({"num_key_value_heads": 8}), "num_key_value_heads"),
        (json!({"num_key_value_heads": "-"}), "num_key_value_heads"),
        (json!({"head_dim": 0}), "head_dim"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"head_dim": 1u64 << 62}), "head_dim"),
        (json!({"max_position_embeddings": 0}), "max_position_embeddings"),
        (json!({"max_position_embeddings": "-"}), "max_position_embeddings"),
        (json!({"sliding_window": 0}), "sliding_window"),
        (json!({"sliding_window": -1}), "sliding_window"),
        (json!({"sliding_window": 4096.5}), "sliding_window"),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps"),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps"),
        (json!({"rms_norm_eps": 1e-60}), "rms_norm_eps"),
        (json!({"rms_norm_eps": 1e60}), "rms_norm_eps"),
        (json!({"rms_norm_eps": "1e-5"}), "rms_norm_eps"),
        (json!({"rope_theta": 0}), "rope_theta"),
        (json!({"rope_theta": -1e4}), "rope_theta"),
        (json!({"rope_theta": 1e300}), "rope_theta"),
        (json!({"rope_theta": "1e6"}), "rope_theta"),
        (json!({"rope_parameters": {"rope_theta": 500}}), "rope_parameters.rope_theta"),
        (json!({"rope_parameters": {"factor": 4}}), "rope_parameters.factor"),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
            "rope_parameters.full_attention",
        ),
        (json!({"rope_parameters": 1e6}), "rope_parameters"),
        (json!({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}), "rope_scaling.type"),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 1e6}}),
            "rope_scaling",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}}),
            "rope_scaling.partial_rotary_factor",
        ),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"model_type": "llama"}), "model_type"),
        (json!({"model_type": 42}), "model_type"),
        (json!({"model_type": "-"}), "model_type"),
        (json!({"architectures": ["MistralForCausalLM"]}), "architectures"),
        (json!({"hidden_act": "gelu"}), "hidden_act"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings"),
        (json!({"bos_token_id": 64}), "bos_token_id"),
        (json!({"bos_token_id": [1]}), "bos_token_id"),
        (json!({"eos_token_id": [2, 64]}), "eos_token_id"),
        (json!({"eos_token_id": "2"}), "eos_token_id"),
        (json!({"eos_token_id": -1}), "eos_token_id"),
    ];
    let mut failed = Vec::new();
    for (changes, expected) in cases {
        match read(&text(&changes)) {
            Err(Error::Config { path, field, .. }) if field == expected && path.ends_with("config.json") => {}
            other => failed.push(format!("{changes}: {other:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn refused_scalings_name_their_key() {
    let mut cases = Vec::new();
    let mut add = |table: Value, key: &'static str| cases.push((table, key));
    for kind in ["dynamic", "longrope", "su", "ntk", "proportional", "mrope", "Linear", ""] {
        add(json!({"type": kind, "factor": 2}), "type");
        add(json!({"rope_type": kind, "factor": 2}), "rope_type");
    }
    for bad in [json!(0), json!(-2), json!(0.999), json!(1e308), json!("2"), json!(true), json!([2])] {
        add(json!({"type": "linear", "factor": bad}), "factor");
        let llama3 = |low: &Value, high: &Value| json!({"type": "llama3", "factor": 8, "low_freq_factor": low, "high_freq_factor": high});
        if bad != json!(0.999) {
            add(llama3(&bad, &json!(4)), "low_freq_factor");
            add(json!({"type": "yarn", "factor": 2, "attention_factor": bad}), "attention_factor");
        }
        add(llama3(&json!(1), &bad), "high_freq_factor");
        if bad != json!(0) {
            add(json!({"type": "yarn", "factor": 2, "beta_fast": bad}), "beta_fast");
        }
        add(json!({"type": "yarn", "factor": bad}), "factor");
    }
    add(json!({"type": "linear"}), "factor");
    add(json!({"type": "linear", "factor": null}), "factor");
    add(json!({"type": "llama3", "factor": 8, "low_freq_factor": 1}), "high_freq_factor");
    add(json!({"type": "yarn"}), "factor");
    add(json!({"type": "yarn", "factor": 2, "beta_slow": -1}), "beta_slow");
    add(json!({"type": "yarn", "factor": 2, "beta_slow": 33}), "beta_fast");
    add(json!({"type": "yarn", "factor": 9, "mscale": -9, "mscale_all_dim": 1}), "attention_factor");
    add(json!({"type": "yarn", "factor": 2, "truncate": 1}), "truncate");
    for bad in [json!(0), json!(-1), json!(64.5), json!("64")] {
        let table = json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": bad});
        add(table, "original_max_position_embeddings");
    }
    let mut failed = Vec::new();
    for (table, key) in cases {
        for spelling in ["rope_parameters", "rope_scaling"] {
            match read(&text(&json!({spelling: table}))) {
                Err(Error::Config { field, .. }) if field == format!("{spelling}.{key}") => {}
                other => failed.push(format!("{spelling} {table}: {other:?}")),
            }
        }
    }
    let changes = json!({
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 64},
    });
    let error = read(&text(&changes)).unwrap_err().to_string();
    assert!(error.contains("rope_scaling.original_max_position_embeddings: expected 32, as "), "{error}");
    let error = read(&text(&json!({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}})));
    assert!(error.unwrap_err().to_string().contains("rope_theta: expected more than 1, as yarn wants"));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn refused_text() {
    let whole = text(&json!({}));
    let cases = [
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        whole[..whole.len() / 2].to_owned(),
        format!("{whole}}}"),
        whole.replace("32", "NaN"),
        whole.replacen('{', "{\"num_experts_per_tok\": 1,", 1),
        whole.replacen('{', "{\"x\": {\"y\": 1, \"y\": 2},", 1),
        whole.replacen('{', &format!("{{\"x\": {}{},", "[".repeat(200_000), "]".repeat(200_000)), 1),
    ];
    let failed: Vec<_> = cases
        .iter()
        .filter(|text| !matches!(read(text), Err(Error::Json { .. })))
        .map(|text| &text[..text.len().min(80)])
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn messages() {
    let message = |changes: Value| read(&text(&changes)).unwrap_err().to_string();
    assert_eq!(
        message(json!({"num_experts_per_tok": 5})),
        "m/config.json: num_experts_per_tok: expected at most num_local_experts 4, found 5"
    );
    assert_eq!(
        message(json!({"hidden_size": "32"})),
        "m/config.json: hidden_size: expected a non-negative integer, found \"32\""
    );
}

#[test]
fn end_tokens_of_generation_config_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let generation = dir.path().join("generation_config.json");
    std::fs::write(dir.path().join("config.json"), text(&json!({}))).unwrap();
    let read = |text: &str| {
        std::fs::write(&generation, text).unwrap();
        Config::from_dir(dir.path())
    };
    assert_eq!(read("{}").unwrap().eos, [2]);
    assert_eq!(read(r#"{"eos_token_id": [5, 3]}"#).unwrap().eos, [5, 3]);
    assert_eq!(read(r#"{"eos_token_id": 5}"#).unwrap().eos, [5]);
    assert_eq!(read(r#"{"eos_token_id": null}"#).unwrap().eos, [0; 0]);
    assert!(matches!(read(r#"{"eos_token_id": 64}"#), Err(Error::Config { path, .. }) if path == generation));
    assert!(matches!(read("{"), Err(Error::Json { path, .. }) if path == generation));
}
