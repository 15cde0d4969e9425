//! Directories of several files, which may contradict each other. The ids are those of Transformers 5.24.0, but for BOS in front
//! of a prompt where there is `tokenizer.model` alone and nobody speaks of BOS.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mixtral_model::{Error, Result, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{DEMO_JSON, DEMO_MODEL, Report};

/// A directory with the demo's `tokenizer.json`, `tokenizer.model` or both, and further files.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new(files: &[&str]) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in [("tokenizer.json", DEMO_JSON), ("tokenizer.model", DEMO_MODEL)] {
            if files.contains(&name) {
                dir.write(name, bytes);
            }
        }
        dir
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.path().join(name), bytes).unwrap();
    }

    fn with(self, name: &str, value: Value) -> Self {
        self.write(name, value.to_string().as_bytes());
        self
    }

    fn open(&self) -> Result<Tokenizer> {
        Tokenizer::from_dir(self.0.path())
    }

    /// The warnings, with names of files alone.
    fn warnings(&self) -> Vec<String> {
        let prefix = format!("{}/", self.0.path().display());
        self.open().unwrap().warnings().iter().map(|warning| warning.replace(&prefix, "")).collect()
    }

    fn error(&self) -> String {
        let prefix = format!("{}/", self.0.path().display());
        self.open().unwrap_err().to_string().replace(&prefix, "")
    }
}

const JSON: &[&str] = &["tokenizer.json"];
const MODEL: &[&str] = &["tokenizer.model"];
const BOTH: &[&str] = &["tokenizer.json", "tokenizer.model"];

fn special(content: &str) -> Value {
    json!({ "content": content, "lstrip": false, "rstrip": false, "single_word": false, "normalized": false, "special": true })
}

#[test]
fn a_directory_without_a_tokenizer_is_an_error() {
    let dir = Dir::new(&[]);
    let error = dir.open().unwrap_err();
    assert!(matches!(&error, Error::Tokenizer { path, .. } if path == dir.0.path()), "{error}");
    assert!(
        error.to_string().ends_with("expected tokenizer.model, tokenizer.json or tekken.json, found none"),
        "{error}"
    );
}

#[test]
fn a_damaged_file_is_an_error_beside_good_ones() {
    for name in [
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ] {
        let dir = Dir::new(BOTH);
        dir.write(name, b"{\"half\": ");
        assert!(dir.error().starts_with(&format!("{name}: ")), "{name}: {}", dir.error());
    }
    let cases = [
        (
            json!({ "bos_token": 1 }),
            "tokenizer_config.json: bos_token: expected a token, as a text or with its content, found 1",
        ),
        (json!({ "bos_token": "" }), "tokenizer_config.json: bos_token: expected a token"),
        (
            json!({ "add_bos_token": "yes" }),
            "tokenizer_config.json: add_bos_token: expected true or false, found \"yes\"",
        ),
        (
            json!({ "added_tokens_decoder": [] }),
            "added_tokens_decoder: expected an object of tokens by id, found []",
        ),
        (
            json!({ "added_tokens_decoder": { "-1": special("x") } }),
            "added_tokens_decoder.-1: expected an id as key",
        ),
        (json!({ "added_tokens_decoder": { "9": {} } }), "added_tokens_decoder.9: expected a token"),
        (json!({ "additional_special_tokens": [[]] }), "additional_special_tokens: expected a token"),
    ];
    for (config, message) in cases {
        let error = Dir::new(BOTH).with("tokenizer_config.json", config).error();
        assert!(error.contains(message), "{error}");
    }
    let error = Dir::new(JSON).with("added_tokens.json", json!({ "x": -5 })).error();
    assert_eq!(error, "added_tokens.json: x: expected an id, found -5");
}

#[test]
fn what_surrounds_a_prompt_is_said_by_the_first_file_that_counts() {
    let around = |files, config| {
        let dir = Dir::new(files).with("tokenizer_config.json", config);
        (dir.open().unwrap().encode_prompt("Alice").unwrap(), dir.warnings())
    };
    let quiet: Vec<String> = Vec::new();
    assert_eq!(around(MODEL, json!({})), (vec![1, 1498], quiet.clone()));
    assert_eq!(around(MODEL, json!({ "add_bos_token": false })), (vec![1498], quiet.clone()));
    assert_eq!(around(MODEL, json!({ "add_eos_token": true })), (vec![1, 1498, 2], quiet.clone()));
    assert_eq!(
        around(JSON, json!({ "add_bos_token": true, "add_eos_token": false })),
        (vec![1, 1498], quiet)
    );
    let told = "tokenizer_config.json: add_bos_token is false, and the post_processor of tokenizer.json puts one, which counts";
    assert_eq!(around(BOTH, json!({ "add_bos_token": false })), (vec![1, 1498], vec![told.to_owned()]));
    let told = "tokenizer_config.json: add_eos_token is true, and the post_processor of tokenizer.json puts none, which counts";
    assert_eq!(around(BOTH, json!({ "add_eos_token": true })), (vec![1, 1498], vec![told.to_owned()]));
}

#[test]
fn a_space_in_front_after_a_token_is_a_matter_of_legacy() {
    let ids = |legacy: bool| {
        let dir = Dir::new(MODEL).with("tokenizer_config.json", json!({ "legacy": legacy }));
        dir.open().unwrap().encode("<s>x</s> x").unwrap()
    };
    assert_eq!(ids(true), [1, 1977, 2013, 2, 1977, 1977, 2013]);
    assert_eq!(ids(false), [1, 2013, 2, 1977, 2013]);
}

#[test]
fn added_tokens_have_the_ids_that_are_free() {
    let tokens = json!({ "2048": special("<a>"), "2060": special("<b>") });
    for files in [JSON, MODEL, BOTH] {
        let dir = Dir::new(files).with("tokenizer_config.json", json!({ "added_tokens_decoder": tokens }));
        assert_eq!(dir.open().unwrap().encode("<b><a>").unwrap(), [2049, 2048]);
        assert_eq!(
            dir.warnings(),
            [
                "tokenizer_config.json: added_tokens_decoder: \"<b>\" is 2060 there; it is 2049, which is how Transformers counts"
            ]
        );
    }
    let dir = Dir::new(JSON).with("added_tokens.json", json!({ "<b>": 2049, "<a>": 2048 }));
    assert_eq!(dir.open().unwrap().encode("<b><a>").unwrap(), [2049, 63, 1980, 65]);
    assert_eq!(dir.open().unwrap().encode(" <a> <b>").unwrap(), [1977, 2048, 2049]);
    assert_eq!(dir.warnings(), [""; 0]);
    // What `added_tokens_decoder` does not tell of is not added.
    let dir =
        dir.with("tokenizer_config.json", json!({ "added_tokens_decoder": { "2048": special("<a>") } }));
    assert_eq!(dir.open().unwrap().id_of("<b>"), None);
    assert_eq!(dir.warnings(), ["added_tokens.json: \"<b>\" is 2049 there; no token is added for it"]);
}

#[test]
fn tokens_that_play_a_part() {
    let config = json!({ "bos_token": "<s>", "eos_token": { "content": "<|end|>" }, "pad_token": "<unk>",
        "additional_special_tokens": ["<x>"], "model_max_length": 1e30, "add_bos_token": true });
    let dir = Dir::new(JSON).with("tokenizer_config.json", config);
    let tokenizer = dir.open().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.id_of("<x>")), (1, 2048, Some(2049)));
    assert!(tokenizer.is_control(2048) && tokenizer.is_control(2049));
    assert_eq!(dir.warnings().len(), 2, "{:?}", dir.warnings());
    // Transformers hears `special_tokens_map.json` after it, unless there is `added_tokens_decoder`.
    let dir = dir.with("special_tokens_map.json", json!({ "eos_token": "</s>" }));
    assert_eq!(dir.open().unwrap().eos(), 2);
    assert_eq!(
        dir.warnings()[0],
        "tokenizer_config.json: eos_token: \"<|end|>\", and \"</s>\" in special_tokens_map.json; \"</s>\" counts"
    );
}

#[test]
fn warnings_are_few() {
    let tokens: Vec<String> = (0..100).map(|n| format!("<{n}>")).collect();
    let dir = Dir::new(JSON).with("tokenizer_config.json", json!({ "additional_special_tokens": tokens }));
    assert_eq!(dir.open().unwrap().id_of("<99>"), Some(2147));
    assert_eq!(
        (dir.warnings().len(), &*dir.warnings()[16]),
        (17, "tokenizer.json: 84 more contradictions like these")
    );
}

#[test]
fn tokenizer_json_counts_before_tokenizer_model() {
    let mut file: Value = serde_json::from_slice(DEMO_JSON).unwrap();
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let e = vocab.remove("q").unwrap();
    vocab.insert("Ω".into(), e.clone());
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|merge| !merge.to_string().contains('q'));
    let dir = Dir::new(BOTH).with("tokenizer.json", file);
    let id = e.as_u64().unwrap() as u32;
    assert_eq!(dir.open().unwrap().encode("Ω").unwrap(), [1977, id]);
    assert_eq!(
        dir.warnings(),
        [format!(
            "tokenizer.model: piece {id} is \"q\", and \"Ω\" in tokenizer.json, which counts (1 such pieces)"
        )]
    );
}

#[test]
fn pieces_that_only_one_file_has() {
    let mut file: Value = serde_json::from_slice(DEMO_JSON).unwrap();
    // An added token may be among the pieces.
    file["model"]["vocab"]["<a>"] = json!(2048);
    let mut token = special("<a>");
    token["id"] = json!(2048);
    file["added_tokens"].as_array_mut().unwrap().push(token);
    let dir = Dir::new(BOTH).with("tokenizer.json", file.clone());
    assert_eq!(dir.warnings(), [""; 0]);

    file["model"]["vocab"]["<b>"] = json!(2049);
    let dir = Dir::new(BOTH).with("tokenizer.json", file);
    assert_eq!(dir.open().unwrap().vocab_size(), 2050);
    assert_eq!(
        dir.warnings(),
        ["tokenizer.model: 0 of its pieces are not in tokenizer.json, which counts, and 1 more are"]
    );
}

#[test]
fn pieces_of_a_model_may_be_called_otherwise() {
    let config = json!({ "added_tokens_decoder": { "5": special("<five>"), "2": special("</s>") } });
    let dir = Dir::new(MODEL).with("tokenizer_config.json", config);
    let tokenizer = dir.open().unwrap();
    assert_eq!(tokenizer.encode("<five>").unwrap(), [5]);
    assert_eq!(tokenizer.piece(5), Some("<five>"));
    assert_eq!(dir.warnings().len(), 1, "{:?}", dir.warnings());
}

#[derive(Deserialize)]
struct Golden {
    /// The files that are the demo's.
    demo: Vec<String>,
    /// The other files; of `tokenizer.json` what it has in place of the demo's.
    files: BTreeMap<String, Value>,
    /// Texts with their ids, and with those as a prompt.
    cases: Vec<(String, Vec<u32>, Vec<u32>)>,
    /// The empty text as a prompt.
    empty: Vec<u32>,
    bos: u32,
    eos: u32,
}

/// `fixtures/tokenizer/make_directories.py` makes the goldens.
#[test]
fn directories_are_what_transformers_makes_of_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/directories.json");
    let goldens: Vec<Golden> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut report = Report::default();
    for Golden { demo, files, cases, empty, bos, eos } in goldens {
        let mut dir = Dir::new(&demo.iter().map(String::as_str).collect::<Vec<_>>());
        let case = |what: &str| format!("{what}: {demo:?} {}", serde_json::to_string(&files).unwrap());
        for (name, value) in &files {
            let mut value = value.clone();
            if name == "tokenizer.json" {
                let mut file: Value = serde_json::from_slice(DEMO_JSON).unwrap();
                file.as_object_mut().unwrap().append(value.as_object_mut().unwrap());
                value = file;
            }
            dir = dir.with(name, value);
        }
        let tokenizer = dir.open().unwrap();
        report.check(|| case("ends"), (tokenizer.bos(), tokenizer.eos()), (bos, eos));
        for (text, ids, prompt) in cases {
            report.check(|| case(&format!("{text:?}")), tokenizer.encode(&text).unwrap(), ids);
            // BOS stands in front once, even if it is written there.
            let twice =
                prompt.iter().take_while(|&&id| empty.first() == Some(&bos) && id == bos).count().max(1) - 1;
            let expected = prompt[twice..].to_vec();
            report.check(
                || case(&format!("prompt {text:?}")),
                tokenizer.encode_prompt(&text).unwrap(),
                expected,
            );
        }
    }
    report.finish();
}
