//! Opening checkpoints: the healthy, the broken and the very large.
#![allow(clippy::unwrap_used, reason = "what writes the test's own files may panic")]

mod broken;
mod gguf;
mod gguf_split;
mod gguf_writer;
mod large;
mod writer;

use std::path::Path;

use mixtral_model::inspect::Report;
use mixtral_model::{Access, Checkpoint, Config, Source};
use writer::Model;

pub(crate) const BOTH: [Access; 2] = [Access::Map, Access::Read];

#[test]
fn report_of_a_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, gguf_writer::Gguf::healthy().bytes()).unwrap();
    let report = Report::of(&Source::find(&path).unwrap()).unwrap();
    let text = report.to_string();
    for line in [
        &format!("GGUF file {}, version 3", path.display()),
        "layout      GGUF, all experts of a layer in three tensors",
        "tokenizer   10 pieces",
        "chat        v1: no template; no [INST] piece in the vocabulary: Mistral's v1, assumed",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["layout"], &json["tokenizer"]["pieces"]), (&"gguf-stacked".into(), &10.into()));
    assert_eq!((&json["chat"]["format"], &json["chat"]["assumed"]), (&"v1".into(), &true.into()));
    assert_eq!(json["kinds"][3]["dtypes"]["f32"], json["kinds"][3]["bytes"]);
    // Without a tokenizer it is a model all the same.
    std::fs::write(&path, gguf_writer::Gguf::healthy().without("tokenizer.ggml.scores").bytes()).unwrap();
    let text = Report::of(&Source::find(&path).unwrap()).unwrap().to_string();
    assert!(text.contains("tokenizer   none: ") && text.contains("tokenizer.ggml.scores"), "{text}");
}

#[test]
fn bytes_in_memory() {
    let bytes = writer::encode(&writer::tensors());
    let checkpoint = Checkpoint::from_bytes(Path::new("inside"), bytes.clone().into()).unwrap();
    assert_eq!(checkpoint.verify(&writer::config()).unwrap(), [""; 0]);
    assert_eq!(checkpoint.files().collect::<Vec<_>>(), [(Path::new("inside"), bytes.len() as u64)]);
    let view = checkpoint.tensor("model.norm.weight").unwrap();
    assert_eq!(&view.bytes[..], [0x80, 0x3f].repeat(8));
    // A slice keeps the bytes alive by itself.
    let norm = view.bytes.clone();
    drop(checkpoint);
    assert_eq!(norm.len(), 16);
}

#[test]
fn unused_tensors_are_reported_and_rotary_tables_are_not() {
    let model = Model::single().change(|tensors| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("score.weight".to_owned(), norm.clone());
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), norm);
    });
    let checkpoint = Checkpoint::open(model.dir(), Access::Map).unwrap();
    assert_eq!(checkpoint.verify(&writer::config()).unwrap(), ["score.weight"]);
}

#[test]
fn tied_embeddings_may_be_stored_twice_if_equal() {
    let mut config = writer::config();
    config.tie_embeddings = true;
    let checkpoint = Checkpoint::open(Model::single().dir(), Access::Read).unwrap();
    assert_eq!(checkpoint.verify(&config).unwrap(), [""; 0]);
    let model = Model::single().change(|tensors| tensors.get_mut("lm_head.weight").unwrap().data[7] ^= 1);
    let error = Checkpoint::open(model.dir(), Access::Map).unwrap().verify(&config).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("tie_word_embeddings"), "{error}");
}

#[test]
fn copies_of_a_tensor_in_another_shard_are_passed_over() {
    let model = Model::sharded();
    let model = model.file("b.safetensors", &writer::encode(&writer::tensors()));
    let checkpoint = Checkpoint::open(model.dir(), Access::Map).unwrap();
    assert_eq!(checkpoint.verify(&writer::config()).unwrap(), [""; 0]);
    assert_eq!(checkpoint.entries().len(), writer::tensors().len());
}

#[test]
fn shards_may_lie_below_the_index() {
    let model = Model::sharded();
    std::fs::create_dir(model.path("part")).unwrap();
    std::fs::rename(model.path("a.safetensors"), model.path("part/a.safetensors")).unwrap();
    let index = std::fs::read_to_string(model.path("model.safetensors.index.json")).unwrap();
    let model = model.file(
        "model.safetensors.index.json",
        index.replace("a.safetensors", "part/a.safetensors").as_bytes(),
    );
    Checkpoint::open(model.dir(), Access::Map).unwrap().verify(&writer::config()).unwrap();
}

#[cfg(unix)]
#[test]
fn links_of_the_hub_cache_are_followed() {
    let model = Model::sharded();
    let snapshot = model.path("snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    for name in ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"] {
        std::os::unix::fs::symlink(Path::new("../..").join(name), snapshot.join(name)).unwrap();
    }
    let config = Config::from_dir(&snapshot).unwrap();
    for access in BOTH {
        Checkpoint::open(&snapshot, access).unwrap().verify(&config).unwrap();
    }
}

#[test]
fn a_file_that_shrinks_is_an_error_when_read() {
    let model = Model::single();
    let checkpoint = Checkpoint::open(model.dir(), Access::Read).unwrap();
    let file = std::fs::File::options().write(true).open(model.path("model.safetensors")).unwrap();
    file.set_len(file.metadata().unwrap().len() - 10).unwrap();
    let error = checkpoint.check_values().unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("bytes expected at offset"), "{error}");
}
