//! Damaged and unsuitable files are errors, whatever the damage; what still loads still works.

use std::panic::catch_unwind;
use std::path::Path;

use mixtral_model::{Error, Result, Tokenizer};
use serde_json::{Value, json};

use crate::{DEMO_JSON, DEMO_MODEL, MODEL};

type Load = fn(&[u8], &Path) -> Result<Tokenizer>;

const FILES: [(&str, &[u8], Load); 3] = [
    ("tokenizer.model", MODEL, Tokenizer::from_sentencepiece),
    ("demo tokenizer.model", DEMO_MODEL, Tokenizer::from_sentencepiece),
    ("demo tokenizer.json", DEMO_JSON, Tokenizer::from_json),
];

/// Whether the file loads. If it does, it is put to work; if not, the error names the file.
fn loads(name: &str, bytes: &[u8], load: Load) -> bool {
    match load(bytes, Path::new(name)) {
        Ok(tokenizer) => {
            let ids = tokenizer.encode_prompt("The Mixtral <s> of  émigrés 🙂\n").unwrap();
            tokenizer.decode(&ids);
            tokenizer.decode(&(0..tokenizer.vocab_size() as u32).collect::<Vec<_>>());
            true
        }
        Err(error) => {
            assert!(matches!(error, Error::Tokenizer { .. } | Error::Json { .. }), "{error:?}");
            assert!(error.to_string().starts_with(&format!("{name}: ")), "{error}");
            assert!(error.to_string().len() < 1000, "{error}");
            false
        }
    }
}

#[test]
fn a_truncated_file_is_an_error() {
    for (name, bytes, load) in FILES {
        for len in (0..bytes.len()).step_by(997) {
            let loaded = catch_unwind(|| loads(name, &bytes[..len], load));
            assert!(!loaded.unwrap(), "{name}: the first {len} bytes load");
        }
    }
}

#[test]
fn flipped_bytes_do_no_harm() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for (name, bytes, load) in FILES {
        let cases = if bytes.len() > 200_000 { 60 } else { 300 };
        for _ in 0..cases {
            let mut bytes = bytes.to_vec();
            // Half of the flips at the ends, where the settings are.
            let range = if random(2) == 0 { bytes.len() } else { 400 };
            for _ in 0..=random(3) {
                let at = random(range);
                let at = if random(2) == 0 { at } else { bytes.len() - 1 - at };
                bytes[at] ^= 1 << random(8);
            }
            loads(name, &bytes, load);
        }
    }
}

#[test]
fn other_files_are_errors() {
    for bytes in [&b""[..], b"\n", b"{}", b"[]", b"null", b"\x80\x02ccopy_reg", &[0xff; 4096], &[0; 4096]] {
        for (name, _, load) in FILES {
            assert!(!loads(name, bytes, load), "{bytes:?}");
        }
    }
    assert!(!loads("deep", "[".repeat(1 << 20).as_bytes(), Tokenizer::from_json));
}

/// One change each to a good `tokenizer.json`, and what the message says.
#[test]
fn an_unknown_kind_of_json_is_an_error() {
    let cases: [(&str, Value, &str); 18] = [
        ("/model/type", json!("Unigram"), "expected type BPE, found Unigram"),
        ("/model/dropout", json!(0.1), "expected no dropout"),
        ("/model/continuing_subword_prefix", json!("##"), "expected no continuing_subword_prefix"),
        ("/model/end_of_word_suffix", json!("</w>"), "expected no end_of_word_suffix"),
        ("/model/unk_token", json!("<none>"), "expected a piece \"<none>\", found none"),
        ("/model/vocab", json!({}), "merge 0: expected pieces of vocab"),
        ("/model/vocab/<0x41>", json!(1 << 20), "expected ids below 1048576, found 1048576"),
        ("/model/vocab/<0x41>", json!(u32::MAX), "expected ids below 1048576, found 4294967295"),
        ("/model/vocab/<0x41>", json!(1), "expected one piece for id 1"),
        ("/model/vocab/<0x41>", json!(-1), "invalid value: integer `-1`"),
        ("/model/merges/0", json!("nope nothing"), "merge 0: expected pieces of vocab, found"),
        ("/model/merges/0", json!("a b c"), "two pieces"),
        ("/model/merges/0", json!(["a"]), "two pieces"),
        (
            "/normalizer",
            Value::Null,
            "normalizer and pre_tokenizer: expected what marks spaces with ▁ and no more, found null",
        ),
        ("/normalizer", json!({ "type": "NFKC" }), "found {\"type\":\"NFKC\"} and null"),
        ("/pre_tokenizer", json!({ "type": "ByteLevel" }), "byte-level BPE is supported as GPT-2, Llama 3"),
        (
            "/added_tokens/1/content",
            json!("<bos>"),
            "added token 1: expected \"<s>\" as in vocab, found \"<bos>\"",
        ),
        ("/post_processor", json!({ "type": "Nothing" }), "post_processor: expected TemplateProcessing"),
    ];
    let good: Value = serde_json::from_slice(DEMO_JSON).unwrap();
    for (pointer, value, message) in cases {
        let mut file = good.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match file.pointer_mut(parent).unwrap() {
            Value::Array(array) => array[key.parse::<usize>().unwrap()] = value,
            object => object[key] = value,
        }
        let error =
            Tokenizer::from_json(file.to_string().as_bytes(), Path::new("f")).unwrap_err().to_string();
        assert!(error.contains(message), "{pointer}: {error}");
    }
}

/// Merges that would spell a special token out of text do not do so.
#[test]
fn text_does_not_grow_into_special_tokens() {
    let mut file: Value = serde_json::from_slice(DEMO_JSON).unwrap();
    for (text, id) in [("<", 2048), (">", 2049), ("<s", 2050)] {
        file["model"]["vocab"][text] = json!(id);
    }
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    merges.splice(0..0, [json!(["<", "s"]), json!(["<s", ">"])]);
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes(), Path::new("f")).unwrap();
    let pieces: Vec<_> = tokenizer
        .encode_ordinary("<s>")
        .unwrap()
        .into_iter()
        .map(|id| tokenizer.piece(id).unwrap())
        .collect();
    assert_eq!(pieces, ["▁", "<s", ">"]);
    assert_eq!(tokenizer.encode("<s>").unwrap(), [tokenizer.bos()]);
}

/// Fields appended to a good model override it, as protobuf has it.
#[test]
fn an_unknown_kind_of_model_is_an_error() {
    let cases: [(&str, &[u8], &str); 12] = [
        ("unigram", &[0x12, 2, 0x18, 1], "model_type: expected 2 (BPE), found 1"),
        (
            "bytes for nothing",
            &[0x12, 3, 0x98, 2, 0],
            "piece 3: expected no bytes without byte_fallback, found one",
        ),
        ("suffix", &[0x12, 3, 0xc0, 1, 1], "treat_whitespace_as_suffix: expected false, found true"),
        ("collapsing", &[0x1a, 2, 0x20, 1], "remove_extra_whitespaces: expected false, found true"),
        ("charsmap", &[0x1a, 3, 0x12, 1, b'x'], "precompiled_charsmap: expected none"),
        ("another BOS", &[0x12, 4, 0xf2, 2, 1, b'e'], "\"e\": expected kind control, found normal"),
        ("twice", &[0x0a, 3, 0x0a, 1, b'e'], "piece 2048: expected a new text, found \"e\" of piece"),
        ("no text", &[0x0a, 0], "piece 2048: expected a text, found none"),
        ("no type", &[0x0a, 5, 0x0a, 1, b'~', 0x18, 7], "piece 2048 \"~\": expected a type from 1"),
        ("no byte", &[0x0a, 5, 0x0a, 1, b'~', 0x18, 6], "piece 2048: expected a byte such as <0x0A>"),
        (
            "score",
            &[0x0a, 8, 0x0a, 1, b'~', 0x15, 0, 0, 0xc0, 0x7f],
            "piece 2048 \"~\": expected a score, found NaN",
        ),
        (
            "characters",
            &[0x0a, 5, 0x0a, 3, b'e', 0xc7, 0x86],
            "expected characters that are pieces, found 'ǆ'",
        ),
    ];
    for (name, more, message) in cases {
        let file = [DEMO_MODEL, more].concat();
        let error = Tokenizer::from_sentencepiece(&file, Path::new("f")).unwrap_err().to_string();
        assert!(error.contains(message), "{name}: {error}");
    }
}
