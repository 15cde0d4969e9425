//! Scaled rotary embeddings.

use std::path::Path;

use mixtral_model::{Config, GenerateOptions};
use serde_json::Value;

use crate::tiny::{PROMPT, case, continued, load};

#[test]
fn greedy_texts_under_scaled_rope() {
    let goldens: Value = serde_json::from_str(include_str!("../fixtures/rope/greedy.json")).unwrap();
    let cases = goldens["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    let text = std::fs::read_to_string(case("35-dtype-said-twice").join("config.json")).unwrap();
    let mut failures = Vec::new();
    for golden in cases {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        let changes = golden["config"].as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(changes);
        let config = Config::from_json(config.to_string().as_bytes(), Path::new("config.json")).unwrap();
        let model = load(config);
        let (tokens, _) = continued(&model, &PROMPT, &GenerateOptions::new(&model, 40).with_stop(Vec::new()));
        if golden["tokens"] != Value::from(tokens.clone()) {
            failures.push(format!("{}: {tokens:?}", golden["config"]));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
