//! Tokenizers of which several files tell.

use std::fs;
use std::path::Path;

use mixtral_model::convert::Conversion;
use mixtral_model::{Access, Source};

use crate::sources::save;
use crate::{demo, recipe, tensors, to_directory, to_gguf, write};

/// A copy of the demo with so many ids, and another file beside its pieces.
fn demo_with(dir: &Path, ids: usize, name: &str, text: &str) -> std::path::PathBuf {
    let copy = dir.join(name);
    fs::create_dir(&copy).unwrap();
    fs::copy(demo().join("tokenizer.model"), copy.join("tokenizer.model")).unwrap();
    fs::write(copy.join(name), text).unwrap();
    let config = fs::read_to_string(demo().join("config.json")).unwrap();
    fs::write(
        copy.join("config.json"),
        config.replace("\"vocab_size\": 2048", &format!("\"vocab_size\": {ids}")),
    )
    .unwrap();
    let mut all = tensors(&demo());
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let (_, shape, bytes) = all.get_mut(name).unwrap();
        shape[0] = ids;
        bytes.resize(ids * 256 * 2, 0);
    }
    save(&copy, &all);
    copy
}

#[test]
fn tokens_that_other_files_add() {
    let dir = tempfile::tempdir().unwrap();
    let added = r#"{"<|im_start|>": 2048, "<|im_end|>": 2049}"#;
    let from = demo_with(dir.path(), 2051, "added_tokens.json", added);
    let (file, back) = (dir.path().join("m.gguf"), dir.path().join("back"));
    to_gguf(&from, &[], &file);
    to_directory(&file, &[], &back);
    let [first, there, again] =
        [&from, &file, &back].map(|path| Source::find(path).unwrap().tokenizer().unwrap());
    let text = "<|im_start|>user\nHello <|im_end|>";
    let ids = first.encode_prompt(text).unwrap();
    assert!(ids.contains(&2048) && ids.contains(&2049), "{ids:?}");
    for other in [&there, &again] {
        assert_eq!(other.piece(2048), Some("<|im_start|>"));
        assert_eq!(other.piece(2050), Some("[PAD2050]"));
        let found = other.encode_prompt(text).unwrap();
        assert!(found.contains(&2048) && found.contains(&2049), "{found:?}");
    }
}

#[test]
fn what_a_prompt_has_around_it() {
    let dir = tempfile::tempdir().unwrap();
    let around =
        r#"{"add_bos_token": false, "add_eos_token": true, "bos_token": "<s>", "eos_token": "</s>"}"#;
    let from = demo_with(dir.path(), 2048, "tokenizer_config.json", around);
    let (file, back) = (dir.path().join("m.gguf"), dir.path().join("back"));
    to_gguf(&from, &[], &file);
    to_directory(&file, &[], &back);
    for path in [&from, &file, &back] {
        let ids = Source::find(path).unwrap().tokenizer().unwrap().encode_prompt("Hello").unwrap();
        assert_eq!((ids[0] == 1, ids.last()), (false, Some(&2)), "{}", path.display());
    }
}

#[test]
fn merges_become_scores() {
    let dir = tempfile::tempdir().unwrap();
    let json = fs::read_to_string(demo().join("tokenizer.json")).unwrap();
    let from = demo_with(dir.path(), 2048, "tokenizer.json", &json);
    fs::remove_file(from.join("tokenizer.model")).unwrap();
    let file = dir.path().join("m.gguf");
    let source = Source::find(&from).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let plan = conversion.gguf().unwrap();
    let told = plan.warnings().join("\n");
    assert!(told.contains("from the order of merges") && !told.contains("otherwise"), "{told}");
    write(&plan, &file).unwrap();
    let [first, there, usual] =
        [&from, &file, &demo()].map(|path| Source::find(path).unwrap().tokenizer().unwrap());
    let text = fs::read_to_string(demo().join("heldout.txt")).unwrap();
    for text in text.split_inclusive('\n').take(300) {
        let ids = first.encode_prompt(text).unwrap();
        assert_eq!(there.encode_prompt(text).unwrap(), ids, "{text}");
        assert_eq!(usual.encode_prompt(text).unwrap(), ids, "{text}");
    }
}

#[test]
fn merges_that_scores_cannot_stand_for() {
    let dir = tempfile::tempdir().unwrap();
    let json = fs::read(demo().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let from = demo_with(dir.path(), 2048, "tokenizer.json", &json.to_string());
    fs::remove_file(from.join("tokenizer.model")).unwrap();
    let refused = |expected: &str| {
        let source = Source::find(&from).unwrap();
        let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
        let error = conversion.gguf().err().map(|error| error.to_string());
        assert!(error.as_ref().is_some_and(|error| error.contains(expected)), "{expected}: {error:?}");
    };
    // Two merges of one piece, of which one comes last of all.
    let merges = json["model"]["merges"].as_array().unwrap().clone();
    let text = |merge: &serde_json::Value| match merge.as_str() {
        Some(pair) => pair.replace(' ', ""),
        None => merge[0].as_str().unwrap().to_owned() + merge[1].as_str().unwrap(),
    };
    let twice = (1..merges.len()).find(|&n| text(&merges[n]) == text(&merges[n - 1])).unwrap();
    let list = json["model"]["merges"].as_array_mut().unwrap();
    let moved = list.remove(twice);
    list.push(moved);
    fs::write(from.join("tokenizer.json"), json.to_string()).unwrap();
    refused("in one another");
    json["model"]["merges"].as_array_mut().unwrap().pop();
    fs::write(from.join("tokenizer.json"), json.to_string()).unwrap();
    refused("other merges of");
}

#[test]
fn what_a_file_cannot_say_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let legacy = r#"{"legacy": false, "bos_token": "<s>", "eos_token": "</s>"}"#;
    let from = demo_with(dir.path(), 2048, "tokenizer_config.json", legacy);
    let source = Source::find(&from).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let told = conversion.gguf().unwrap().warnings().join("\n");
    assert!(told.contains("is encoded otherwise"), "{told}");
}

#[test]
fn chat_templates_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let from = demo_with(dir.path(), 2048, "chat_template.jinja", "{{ bos_token }}default");
    fs::create_dir(from.join("additional_chat_templates")).unwrap();
    fs::write(from.join("additional_chat_templates/tool_use.jinja"), "{{ tools }}").unwrap();
    let [file, back, copy] = ["m.gguf", "back", "copy"].map(|name| dir.path().join(name));
    to_gguf(&from, &[], &file);
    to_directory(&file, &[], &back);
    to_directory(&from, &[], &copy);
    for path in [&from, &file, &back, &copy] {
        let templates = Source::find(path).unwrap().chat_evidence().unwrap().templates;
        let mut found: Vec<_> = templates.into_iter().map(|t| (t.name, t.text)).collect();
        found.sort();
        let expected = [("default", "{{ bos_token }}default"), ("tool_use", "{{ tools }}")];
        assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text.to_owned())), "{path:?}");
    }
}

/// A `tekken.json` goes along to a directory; in a GGUF file there is no place for it, which is an error.
#[test]
fn a_tekken_file() {
    let dir = tempfile::tempdir().unwrap();
    let from = demo_with(dir.path(), 2048, "tekken.json", "");
    let goldens = fs::read(crate::fixtures().join("tokenizer/tekken_goldens.json")).unwrap();
    let goldens: serde_json::Value = serde_json::from_slice(&goldens).unwrap();
    let file =
        serde_json::json!({"config": goldens["goldens"][0]["config"], "vocab": goldens["vocab"]}).to_string();
    fs::write(from.join("tekken.json"), &file).unwrap();
    fs::remove_file(from.join("tokenizer.model")).unwrap();
    let to = dir.path().join("to");
    to_directory(&from, &["f32"], &to);
    assert_eq!(fs::read_to_string(to.join("tekken.json")).unwrap(), file);
    let source = Source::find(&from).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let error = conversion.gguf().err().unwrap().to_string();
    assert!(error.contains("tekken.json: ") && error.contains("found byte-level BPE"), "{error}");
}
