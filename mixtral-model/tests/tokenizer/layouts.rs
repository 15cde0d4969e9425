//! Every layout of `tokenizer.json` against the `tokenizers` library, with added tokens of all kinds; `fixtures/tokenizer/make_layouts.py`
//! makes the goldens.

use std::collections::BTreeMap;
use std::path::Path;

use mixtral_model::Tokenizer;
use serde::Deserialize;
use serde_json::Value;

use crate::{DEMO_JSON, DEMO_MODEL, Report, from_json, from_model};

#[derive(Deserialize)]
struct Golden {
    name: String,
    /// What stands in the file in place of the demo's, by JSON pointer.
    patch: BTreeMap<String, Value>,
    /// Texts with their ids.
    cases: Vec<(String, Vec<u32>)>,
}

fn patched(patch: &BTreeMap<String, Value>) -> Tokenizer {
    let mut file: Value = serde_json::from_slice(DEMO_JSON).unwrap();
    for (pointer, value) in patch {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        file.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    from_json(file.to_string().as_bytes())
}

#[test]
fn every_layout_encodes_as_the_tokenizers_library() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/layouts.json");
    let goldens: Vec<Golden> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut report = Report::default();
    for Golden { name, patch, cases } in goldens {
        let tokenizer = patched(&patch);
        for (text, ids) in cases {
            let case = || format!("{name}: {text:?}: {}", patch["/added_tokens"]);
            report.check(case, tokenizer.encode(&text).unwrap(), ids);
        }
    }
    report.finish();
}

#[derive(Deserialize)]
struct Extended {
    /// Texts and types of the pieces that the demo's model has in addition.
    more: Vec<(String, u8)>,
    /// Texts with their ids, and what those are decoded to.
    cases: Vec<(String, Vec<u32>, String)>,
}

/// `fixtures/tokenizer/make_user_defined.py` makes the goldens.
#[test]
fn user_defined_and_unused_pieces_encode_as_sentencepiece_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/user_defined.json");
    let goldens: Vec<Extended> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut report = Report::default();
    for Extended { more, cases } in goldens {
        let mut model = DEMO_MODEL.to_vec();
        for (n, (text, kind)) in more.iter().enumerate() {
            let score = (-1000.0 - n as f32).to_le_bytes();
            let text = text.as_bytes();
            let piece = [&[0x0a, text.len() as u8], text, &[0x15], &score, &[0x18, *kind]].concat();
            model.extend([0x0a, piece.len() as u8]);
            model.extend(piece);
        }
        let tokenizer = from_model(&model);
        for (text, ids, decoded) in cases {
            let case = || format!("{more:?}: {text:?}");
            report.check(case, tokenizer.decode(&ids), decoded);
            report.check(case, tokenizer.encode_ordinary(&text).unwrap(), ids);
        }
    }
    report.finish();
}
