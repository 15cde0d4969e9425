//! `mixtral perplexity`.

use std::fs;

use serde_json::Value;

use crate::{demo, fixtures, json, mixtral, output, run, run_with_input};

#[test]
fn windows_of_256_are_the_golden() {
    let heldout = demo().join("heldout.txt");
    let goldens = json(&fixtures().join("demo/goldens.json"));
    let golden = &goldens["perplexity"]["windows_of_256_without_overlap"];
    let text = heldout.to_str().unwrap();
    let found = output("perplexity --text {} --window 256 --json", &[text]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["tokens"], goldens["perplexity"]["tokens_with_bos"]);
    assert_eq!(found["predicted_tokens"], golden["predicted_tokens"]);
    assert_eq!((&found["window"], &found["stride"]), (&256.into(), &256.into()));
    for name in ["nll_sum", "perplexity"] {
        let (found, golden) = (found[name].as_f64().unwrap(), golden[name].as_f64().unwrap());
        assert!((found / golden - 1.0).abs() < 1e-6, "{name}: {found} {golden}");
    }
    assert_eq!(found.as_object().unwrap().len(), 9);
    assert!(found["perplexity_low"].as_f64() < found["perplexity"].as_f64() && found["against"].is_null());
}

#[test]
fn texts_come_from_files_and_standard_input() {
    let text = &fs::read_to_string(demo().join("heldout.txt")).unwrap()[..2000];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let expected = output("perplexity --text {} --json", &[file]);
    for line in ["perplexity --json", "perplexity --json --text -"] {
        let said = run_with_input(mixtral(line, &[]), text.as_bytes());
        assert_eq!((said.out.as_str(), said.status), (expected.as_str(), Some(0)), "{line}: {}", said.err);
    }
    for rest in ["--threads 1", "--backend portable", "--window 2048 --stride 2048", "--stride 2"] {
        // All of the text is one window.
        let found = output(&format!("perplexity --text {{}} --json {rest}"), &[file]);
        let (found, expected): (Value, Value) =
            (serde_json::from_str(&found).unwrap(), serde_json::from_str(&expected).unwrap());
        assert_eq!(found["nll_sum"], expected["nll_sum"], "{rest}");
    }
    // Of every token but the first, without overlap or with it.
    let said = run("perplexity --text {} --window 64 --stride 32 --context 64", &[file]);
    let tokens = serde_json::from_str::<Value>(&expected).unwrap()["tokens"].as_u64().unwrap();
    let rest = format!(" nats a token, of {} of {tokens} tokens in windows of 64, 32 apart\n", tokens - 1);
    assert!(said.out.starts_with("perplexity ") && said.out.ends_with(&rest), "{}", said.out);
    assert!(said.err.starts_with("read at ") && said.err.ends_with(" tokens/s\n"), "{}", said.err);
    let found = output("perplexity --text {} --context 64", &[file]);
    assert!(found.ends_with(" tokens in windows of 64\n"), "{found}");
}
