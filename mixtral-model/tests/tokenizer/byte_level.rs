//! Byte-level BPE against the `tokenizers` library; `fixtures/tokenizer/make_byte_level.py` makes the goldens.

use std::collections::BTreeMap;
use std::path::Path;

use mixtral_model::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Report, from_json, stream};

#[derive(Deserialize)]
struct Goldens {
    /// A `tokenizer.json`.
    file: Value,
    encode: Vec<Kind>,
    /// Ids with their text.
    decode: Vec<(Vec<u32>, String)>,
}

#[derive(Deserialize)]
struct Kind {
    name: String,
    /// What stands in the file in place of its own, by JSON pointer.
    patch: BTreeMap<String, Value>,
    /// Texts with their ids.
    cases: Vec<(String, Vec<u32>)>,
}

fn goldens() -> Goldens {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/byte_level.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn patched(file: &Value, patch: &BTreeMap<String, Value>) -> Value {
    let mut file = file.clone();
    // Files of this kind have one; it says which token begins a sequence.
    file["post_processor"] = json!({ "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": "<|begin|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [], "special_tokens": { "<|begin|>": { "id": "<|begin|>", "ids": [1200], "tokens": ["<|begin|>"] } } });
    file["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "id": 1203, "content": "</s>", "special": true }));
    for (pointer, value) in patch {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        file.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    file
}

fn build(file: &Value) -> Tokenizer {
    from_json(file.to_string().as_bytes())
}

#[test]
fn byte_level_bpe_encodes_as_the_tokenizers_library() {
    let Goldens { file, encode, .. } = goldens();
    let mut report = Report::default();
    for Kind { name, patch, cases } in encode {
        let tokenizer = build(&patched(&file, &patch));
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk()), (1200, 1203, None));
        for (text, ids) in cases {
            let case = || format!("{name}: {text:?}");
            report.check(case, tokenizer.encode_prompt(&text).unwrap(), [&[1200][..], &ids].concat());
            if !text.contains('<') {
                report.check(case, tokenizer.encode_ordinary(&text).unwrap(), ids.clone());
                let space = if name.ends_with("space") && !text.starts_with(' ') { " " } else { "" };
                report.check(case, tokenizer.decode(&ids), format!("{space}{text}"));
            }
        }
        assert!(!tokenizer.encode_ordinary("<|eot|><a>").unwrap().iter().any(|&id| id >= 1200));
    }
    report.finish();
}

#[test]
fn byte_level_bpe_decodes_as_the_tokenizers_library() {
    let Goldens { file, encode, decode } = goldens();
    let tokenizer = build(&patched(&file, &encode[0].patch));
    let mut report = Report::default();
    for (ids, text) in decode {
        report.check(|| format!("{ids:?}"), tokenizer.decode(&ids), text.clone());
        report.check(|| format!("{ids:?}"), stream(&tokenizer, &ids), text);
    }
    report.finish();
}

#[test]
fn other_byte_level_files_are_errors() {
    let Goldens { file, encode, .. } = goldens();
    let llama = encode.iter().find(|kind| kind.name == "llama 3").unwrap();
    let file = patched(&file, &llama.patch);
    for (pointer, value, message) in [
        ("/normalizer", json!({ "type": "NFC" }), "byte-level BPE is supported as GPT-2, Llama 3"),
        (
            "/pre_tokenizer/pretokenizers/0/pattern/Regex",
            json!("(a+)+$"),
            "the words of one of them, found null and",
        ),
        ("/pre_tokenizer/pretokenizers/0/behavior", json!("Removed"), "byte-level BPE is supported as"),
        ("/pre_tokenizer/pretokenizers/1/use_regex", json!(true), "byte-level BPE is supported as"),
        (
            "/model/vocab/Ġ",
            Value::Null,
            "vocab: expected a piece \"Ġ\", which stands for byte 32, found none",
        ),
    ] {
        let mut file = file.clone();
        if value.is_null() {
            let id = file["model"]["vocab"].as_object_mut().unwrap().remove("Ġ").unwrap();
            file["model"]["vocab"]["another"] = id;
            file["model"]["merges"] = json!([]);
        } else {
            *file.pointer_mut(pointer).unwrap_or(&mut Value::Null) = value;
        }
        if pointer == "/normalizer" {
            file["normalizer"] = json!({ "type": "NFC" });
        }
        let error =
            Tokenizer::from_json(file.to_string().as_bytes(), Path::new("f")).unwrap_err().to_string();
        assert!(error.contains(message), "{pointer}: {error}");
    }
}
