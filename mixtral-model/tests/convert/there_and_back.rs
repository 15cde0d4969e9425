//! What is kept in its type has the same bytes there and back, and computes the same bits.

use std::fs;

use mixtral_model::convert::Conversion;
use mixtral_model::{Access, Source, Tokenizer};

use crate::{demo, fixtures, logits, model, names, recipe, tensors, to_directory, to_gguf, write};

/// Checkpoints of the hub's layout.
const TINY: [&str; 8] = [
    "bf16-3-shards",
    "f16-single",
    "f32-single",
    "gqa-8q-2kv",
    "head-dim-24-odd",
    "mha-top1",
    "tied-theta-1e4",
    "window-8",
];

#[test]
fn directories_become_gguf_files_and_directories_again() {
    let tiny = TINY.map(|name| fixtures().join("models").join(name));
    for from in tiny.into_iter().chain([demo(), fixtures().join("uneven")]) {
        let (there, label) = (tempfile::tempdir().unwrap(), from.display());
        let (file, back) = (there.path().join("m.gguf"), there.path().join("m"));
        let summary = to_gguf(&from, &[], &file);
        assert_eq!(summary.file_bytes, fs::metadata(&file).unwrap().len());
        assert!(summary.rows.iter().all(|row| row.relative_error == 0.0), "{label}");
        to_directory(&file, &[], &back);
        assert_eq!(names(there.path()), ["m", "m.gguf"], "{label}");

        assert_eq!(tensors(&back), tensors(&from), "{label}");
        let [config, there, again] =
            [&from, &file, &back].map(|path| Source::find(path).unwrap().config().unwrap());
        assert_eq!(there, config, "{label}");
        assert_eq!(again, config, "{label}");
        let expected = logits(&model(&from));
        assert_eq!(logits(&model(&file)), expected, "{label}");
        assert_eq!(logits(&model(&back)), expected, "{label}");
    }
}

#[test]
fn what_is_written_in_a_gguf_file_is_f32_where_it_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    to_gguf(&demo(), &[], &file);
    for (name, (format, shape, _)) in tensors(&file) {
        let small = name.contains("norm") || name.contains("ffn_gate_inp");
        assert_eq!(format, if small { "f32" } else { "bf16" }, "{name} {shape:?}");
    }
}

#[test]
fn gguf_files_become_directories_and_gguf_files_again() {
    let (from, dir) = (fixtures().join("gguf/F16.gguf"), tempfile::tempdir().unwrap());
    let (directory, back) = (dir.path().join("m"), dir.path().join("m.gguf"));
    to_directory(&from, &[], &directory);
    to_gguf(&directory, &[], &back);
    assert_eq!(tensors(&back), tensors(&from));
    let expected = logits(&model(&from));
    assert_eq!(logits(&model(&directory)), expected);
    assert_eq!(logits(&model(&back)), expected);
    assert_eq!(
        names(&directory),
        ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"]
    );
    same_tokenizers(&[
        Source::find(&from).unwrap().tokenizer().unwrap(),
        Source::find(&directory).unwrap().tokenizer().unwrap(),
        Source::find(&back).unwrap().tokenizer().unwrap(),
    ]);
}

#[test]
fn gguf_files_are_copied_whatever_their_types() {
    let mut files = 0;
    for name in names(&fixtures().join("gguf")).iter().filter(|name| name.ends_with(".gguf")) {
        let (from, dir) = (fixtures().join("gguf").join(name), tempfile::tempdir().unwrap());
        let to = dir.path().join(name);
        to_gguf(&from, &[], &to);
        // An older layout becomes the present one.
        let expected = fixtures().join("gguf").join(name.trim_start_matches("OLD-"));
        assert_eq!(tensors(&to), tensors(&expected), "{name}");
        same_tokenizers(&[&from, &to].map(|path| Source::find(path).unwrap().tokenizer().unwrap()));
        let [expected, found] = [&from, &to].map(|path| Source::find(path).unwrap().config().unwrap());
        assert_eq!(found, expected, "{name}");
        files += 1;
    }
    assert_eq!(files, 15);
}

#[test]
fn the_demos_tokenizer_is_the_same_in_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, directory) = (dir.path().join("m.gguf"), dir.path().join("m"));
    to_gguf(&demo(), &[], &file);
    to_directory(&file, &[], &directory);
    same_tokenizers(&[demo(), file, directory].map(|path| Source::find(&path).unwrap().tokenizer().unwrap()));
}

#[test]
fn a_directory_of_several_files() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("m");
    let source = Source::find(&demo()).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let plan = conversion.directory().unwrap().with_shard_bytes(3_000_000);
    write(&plan, &directory).unwrap();
    let shards: Vec<_> = names(&directory).into_iter().filter(|name| name.starts_with("model-")).collect();
    assert_eq!(shards, [1, 2, 3, 4].map(|n| format!("model-{n:05}-of-00004.safetensors")));
    for shard in &shards {
        assert!(fs::metadata(directory.join(shard)).unwrap().len() < 3_050_000, "{shard}");
    }
    assert_eq!(tensors(&directory), tensors(&demo()));
    let index = fs::read(directory.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], plan.bytes());
    // A tensor that is larger than that has a file of its own.
    let plan = conversion.directory().unwrap().with_shard_bytes(1);
    write(&plan, &dir.path().join("each")).unwrap();
    assert_eq!(tensors(&dir.path().join("each")), tensors(&demo()));
}

#[test]
fn keys_are_copied_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (fixtures().join("gguf/Q4_K_M.gguf"), dir.path().join("m.gguf"));
    to_gguf(&from, &[], &to);
    let (again, before) = (dir.path().join("again.gguf"), fs::read(&from).unwrap());
    // From the number of keys to the end of the last, its type and number included.
    let last = before.windows(17).position(|bytes| bytes == b"general.file_type").unwrap();
    assert!(last > 40_000);
    let keys = 16..last + 17 + 8;
    assert_eq!(fs::read(&to).unwrap()[keys.clone()], before[keys.clone()]);
    // Of other types, the file has another number.
    to_gguf(&from, &["q8_0"], &again);
    let after = fs::read(&again).unwrap();
    assert_eq!(after[16..keys.end - 4], before[16..keys.end - 4]);
    assert_eq!(after[keys.end - 4..keys.end], 7u32.to_le_bytes());
}

fn same_tokenizers(tokenizers: &[Tokenizer]) {
    let text = fs::read_to_string(demo().join("heldout.txt")).unwrap();
    let texts = [&text[..4000], "  two  spaces", "\n\n<s>é 日本 \u{1f600}", "</s> [INST] "];
    let (first, others) = tokenizers.split_first().unwrap();
    for other in others {
        assert_eq!(other.vocab_size(), first.vocab_size());
        assert_eq!((other.bos(), other.eos(), other.unk()), (first.bos(), first.eos(), first.unk()));
        for id in 0..first.vocab_size() as u32 {
            assert_eq!(
                (other.piece(id), other.is_control(id)),
                (first.piece(id), first.is_control(id)),
                "{id}"
            );
        }
        for text in texts {
            let ids = first.encode_prompt(text).unwrap();
            assert_eq!(other.encode_prompt(text).unwrap(), ids, "{text:.40}");
            let ordinary = |tokenizer: &Tokenizer| tokenizer.encode_ordinary(text).unwrap();
            assert_eq!(ordinary(other), ordinary(first), "{text:.40}");
            assert_eq!(other.decode(&ids), first.decode(&ids), "{text:.40}");
        }
    }
}
