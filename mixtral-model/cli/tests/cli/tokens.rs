//! `mixtral tokenize` and `mixtral inspect`.

use std::fs;

use serde_json::Value;

use crate::{demo, fixtures, json, mixtral, output, run, run_with_input, tiny};

#[test]
fn ids_are_the_goldens() {
    let dir = fixtures().join("tokenizer");
    let model = dir.to_str().unwrap();
    let goldens = json(&dir.join("goldens.json"));
    // A process each: every tenth will do.
    for golden in goldens["encode"].as_array().unwrap().iter().step_by(10) {
        let text = golden["text"].as_str().unwrap();
        let command = mixtral("tokenize --json --no-bos --model {}", &[model]);
        let said = run_with_input(command, text.as_bytes());
        assert_eq!(said.status, Some(0), "{text:?}: {}", said.err);
        let found: Value = serde_json::from_str(&said.out).unwrap();
        // With tokens that are written in the text.
        let ids = golden.get("hf_ids").unwrap_or(&golden["ids"]);
        assert_eq!(&found["ids"], ids, "{text:?}");
        assert_eq!(found["pieces"].as_array().unwrap().len(), ids.as_array().unwrap().len());
        assert_eq!(found.as_object().unwrap().len(), 2);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    for golden in goldens["chat"].as_array().unwrap() {
        fs::write(file.path(), golden["messages"].to_string()).unwrap();
        let found = output("tokenize --json --model {} --chat {}", &[model, file.path().to_str().unwrap()]);
        assert_eq!(serde_json::from_str::<Value>(&found).unwrap()["ids"], golden["ids"]);
    }
}

#[test]
fn pieces_and_lines() {
    assert_eq!(
        output("tokenize --json {}", &["Alice\n"]),
        "{\"ids\":[1,1498,13],\"pieces\":[\"<s>\",\"▁Alice\",\"<0x0A>\"]}\n"
    );
    assert_eq!(output("tokenize {}", &["Alice"]), "     1  <s>\n  1498  ▁Alice\n");
    assert_eq!(output("tokenize {} --no-bos", &[""]), "");
    let said = run_with_input(mixtral("tokenize -", &[]), b"Alice\n");
    assert_eq!(said.out, "     1  <s>\n  1498  ▁Alice\n    13  <0x0A>\n");
    let said = run_with_input(mixtral("tokenize", &[]), b"Alice\xff");
    assert_eq!(said.status, Some(1));
    assert_eq!(said.err, "error: standard input: expected UTF-8, found another byte at offset 5\n");
}

#[test]
fn reports() {
    let text = output("inspect", &[]);
    assert!(text.starts_with("built-in demo\n") && text.contains("\nparameters  4,860,160 "), "{text}");
    assert!(output("inspect --check-values", &[]).ends_with("\nvalues      all finite\n"));

    let report: Value = serde_json::from_str(&output("inspect --json", &[])).unwrap();
    assert_eq!((&report["parameters"], &report["tensors"]), (&4_860_160.into(), &127.into()));
    let demo = demo();
    for line in ["inspect --json {}", "inspect --json --model {}", "inspect --json --read --check-values {}"]
    {
        let mut found: Value = serde_json::from_str(&output(line, &[demo.to_str().unwrap()])).unwrap();
        assert_eq!(found["path"], demo.to_str().unwrap(), "{line}");
        assert_eq!(found["source"], format!("directory {}", demo.display()), "{line}");
        found["source"] = report["source"].clone();
        found["path"] = report["path"].clone();
        found["memory"] = report["memory"].clone();
        assert_eq!(found, report, "{line}");
    }
    let report: Value =
        serde_json::from_str(&output("inspect --json {}", &[&tiny("bf16-3-shards")])).unwrap();
    assert_eq!((&report["files"], &report["geometry"]["layers"]), (&3.into(), &3.into()));
}

#[test]
fn a_weight_that_is_not_finite_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures().join("models/f32-single");
    fs::copy(model.join("config.json"), dir.path().join("config.json")).unwrap();
    let mut bytes = fs::read(model.join("model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let dir = dir.path().to_str().unwrap();
    output("inspect {}", &[dir]);
    for line in ["inspect --check-values {}", "inspect --json --check-values {}"] {
        let said = run(line, &[dir]);
        assert_eq!(said.status, Some(1), "{line}");
        assert!(said.err.contains("expected finite values, found NaN"), "{line}: {}", said.err);
    }
}

/// A tokenizer of five pieces for a model with 199 ids.
#[test]
fn a_token_without_a_piece_has_no_text() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures().join("models/f32-single");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(model.join(name), dir.path().join(name)).unwrap();
    }
    let special =
        |id: u32, content: &str| serde_json::json!({ "id": id, "content": content, "special": true });
    let tokenizer = serde_json::json!({
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>"), special(5, "[PAD]")],
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "merges": [],
            "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4 } },
    });
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let said = run("generate a --model {} -n 5 -t 0 --ignore-eos", &[dir.path().to_str().unwrap()]);
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert_eq!(said.out, "a\n");
    let warning = "warning: 5 of the tokens have no piece in the tokenizer and no text, ";
    assert!(said.err.contains(warning), "{}", said.err);
}

#[test]
fn contradictions_of_files_are_warnings() {
    let dir = fixtures().join("cases/15-gap-in-added-token-ids/model");
    let said = run("tokenize --json {} --no-bos --model {}", &["Hello world", dir.to_str().unwrap()]);
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.out.starts_with("{\"ids\":[502,286,1981,924],"), "{}", said.out);
    let warning = "tokenizer.json: added_tokens: \"<|im_end|>\": id 2051 leaves a gap; it is 2049";
    assert!(said.err.starts_with("warning: ") && said.err.contains(warning), "{}", said.err);
}
