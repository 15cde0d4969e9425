//! Mistral's own `tekken.json` against mistral-common; `fixtures/tokenizer/make_tekken.py` makes the goldens.

use std::path::Path;

use mixtral_model::{Chat, ChatEvidence, ChatFormat, Message, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Report, stream};

#[derive(Deserialize)]
struct Goldens {
    vocab: Value,
    goldens: Vec<OfFile>,
}

#[derive(Deserialize)]
struct OfFile {
    config: Value,
    special_tokens: Value,
    /// What the control pieces are called, by id.
    names: Vec<String>,
    /// Texts with their ids.
    encode: Vec<(String, Vec<u32>)>,
    /// Messages with the ids of the chat.
    chats: Vec<(Vec<Value>, Vec<u32>)>,
}

fn goldens() -> Goldens {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/tekken_goldens.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A directory with such a file.
fn written(file: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tekken.json"), file.to_string()).unwrap();
    dir
}

#[test]
fn texts_and_chats_are_those_of_mistral_common() {
    let Goldens { vocab, goldens } = goldens();
    let mut report = Report::default();
    for OfFile { config, special_tokens, names, encode, chats } in goldens {
        let dir = written(&json!({"config": config, "vocab": vocab, "special_tokens": special_tokens}));
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (1, 2, 644));
        for (id, name) in (0..).zip(&names) {
            report.check(|| format!("piece {id}"), tokenizer.piece(id), Some(&**name));
            let named = !name.starts_with("<SPECIAL_");
            report.check(|| format!("{name} written"), tokenizer.encode(name).unwrap() == [id], named);
            report.check(
                || format!("{name} as text"),
                tokenizer.encode_ordinary(name).unwrap() == [id],
                false,
            );
            report.check(|| format!("{name} decoded"), tokenizer.decode(&[id]), String::new());
        }
        assert_eq!(encode.len(), 150);
        for (text, ids) in encode {
            report.check(|| format!("{text:?}"), tokenizer.encode_ordinary(&text).unwrap(), ids.clone());
            report.check(|| format!("{text:?} decoded"), tokenizer.decode(&ids), text.clone());
            report.check(|| format!("{text:?} streamed"), stream(&tokenizer, &ids), text.clone());
            if !text.contains(['<', '[']) {
                let prompt = tokenizer.encode_prompt(&text).unwrap();
                report.check(|| format!("{text:?} as a prompt"), prompt, [&[1][..], &ids].concat());
            }
        }
        let format = ChatFormat::choose(&ChatEvidence::from_dir(dir.path()).unwrap(), &tokenizer).unwrap();
        let version = config["version"].as_str().unwrap();
        let evidence = format!("no template; tekken.json is for {version}: Mistral's {version}");
        report.check(|| "evidence".to_owned(), format.evidence(), &*evidence);
        for (messages, ids) in chats {
            let chat = Chat::new(messages.iter().map(|m| Message::from_json(m.clone()).unwrap()).collect());
            report.check(
                || format!("{version}: {messages:?}"),
                format.encode(&tokenizer, &chat).unwrap(),
                ids,
            );
        }
    }
    report.finish();
}

#[test]
fn files_that_are_refused() {
    let Goldens { vocab, goldens } = goldens();
    let good =
        json!({"config": goldens[1].config, "vocab": vocab, "special_tokens": goldens[1].special_tokens});
    assert!(Tokenizer::from_dir(written(&good).path()).is_ok());
    let mut report = Report::default();
    for (pointer, value, expected) in [
        ("/config/pattern", json!(r"\S+|\s+"), "config.pattern: expected tekken's words"),
        ("/config/pattern", Value::Null, "null"),
        ("/config/version", json!("V3"), "config.version: expected a version as v3, found \"V3\""),
        ("/config/version", json!(3), "expected a string"),
        ("/config/default_vocab_size", json!(900), "expected default_vocab_size 900 without"),
        ("/config/default_vocab_size", json!(4_294_967_295u32), "expected default_vocab_size 4294967295"),
        ("/config/default_num_special_tokens", json!(500), "at least 256"),
        ("/config/default_num_special_tokens", json!(10), "expected a rank of its own below 10"),
        ("/vocab/300/rank", json!(7), "vocab: expected rank 300, found 7"),
        ("/vocab/300/token_bytes", json!("?"), "vocab: rank 300: expected bytes in base64"),
        ("/vocab/300/token_bytes", json!(""), "vocab: rank 300: expected 1 to 512 bytes, found 0"),
        ("/vocab/300/token_bytes", json!("YQ=="), "piece"),
        ("/vocab/3/token_bytes", json!("YQ=="), "vocab: rank 3: expected the byte 3"),
        ("/special_tokens/2/rank", json!(1), "special token \"</s>\": expected a rank of its own"),
        ("/special_tokens/2/token_str", json!("</t>"), "expected a piece \"</s>\", found none"),
    ] {
        let mut file = good.clone();
        *file.pointer_mut(pointer).unwrap() = value.clone();
        let error = Tokenizer::from_dir(written(&file).path()).err().map(|error| error.to_string());
        let found = error.as_deref().is_some_and(|e| e.contains("tekken.json: ") && e.contains(expected));
        report.check(|| format!("{pointer} {value}: {error:?}"), found, true);
    }
    report.finish();
    let mut file = good.clone();
    file["config"]["version"] = json!("v13");
    let (dir, tokenizer) = (written(&file), Tokenizer::from_dir(written(&file).path()).unwrap());
    let error = ChatFormat::choose(&ChatEvidence::from_dir(dir.path()).unwrap(), &tokenizer).unwrap_err();
    assert_eq!(error.to_string(), "chat format: expected v1, v2, v3 or v7, found v13");
}
