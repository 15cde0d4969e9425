//! Tokenizers of which several files tell.

use std::fs;
use std::path::Path;

use mixtral_model::Source;

use crate::sources::save;
use crate::{demo, tensors, to_directory, to_gguf};

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
