//! Opening checkpoints: the healthy, the broken and the very large.
#![allow(clippy::unwrap_used, reason = "what writes the test's own files may panic")]

mod broken;
mod gguf;
mod gguf_split;
mod gguf_writer;
mod large;
mod writer;

use std::path::{Path, PathBuf};

use mixtral_model::inspect::Report;
use mixtral_model::{Access, Checkpoint, Config, Manifest, Source};
use writer::Model;

pub(crate) const BOTH: [Access; 2] = [Access::Map, Access::Read];

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.retain(|path| path.is_dir());
    dirs.sort();
    dirs
}

#[test]
fn fixtures_match_their_manifests() {
    let dirs = fixtures();
    assert_eq!(dirs.len(), 11);
    for dir in dirs {
        let config = Config::from_dir(&dir).unwrap();
        let [mapped, read] = BOTH.map(|access| Checkpoint::open(&dir, access).unwrap());
        for checkpoint in [&mapped, &read] {
            assert_eq!(checkpoint.verify(&config).unwrap(), [""; 0], "{}", dir.display());
            checkpoint.check_values().unwrap();
        }
        for spec in Manifest::new(&config).tensors() {
            let [a, b] = [&mapped, &read].map(|checkpoint| checkpoint.place(&spec, &config).unwrap());
            assert_eq!(a, b);
            let bytes = mapped.read(&a).unwrap();
            assert_eq!(bytes, read.read(&b).unwrap(), "{}", spec.key);
            assert_eq!(bytes.len(), a.rows * a.format.row_bytes(a.columns).unwrap());
            assert_eq!((a.name, (a.rows * a.columns) as u64), (&*spec.key.to_string(), spec.elements()));
            // The same bytes, read from the file where the place says they are.
            let file = std::fs::read(a.path).unwrap();
            assert_eq!(bytes, &file[a.offset as usize..][..a.bytes as usize]);
        }
        assert_eq!(mapped.entries().len(), Manifest::new(&config).tensors().count());
    }
}

#[test]
fn fixtures_hold_what_other_readers_find() {
    for dir in fixtures() {
        let checkpoint = Checkpoint::open(&dir, Access::Map).unwrap();
        for (path, len) in checkpoint.files() {
            let bytes = std::fs::read(path).unwrap();
            assert_eq!(bytes.len() as u64, len);
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in file.tensors() {
                let ours = checkpoint.tensor(&name).unwrap();
                assert_eq!(
                    (ours.path, ours.shape, &*ours.bytes),
                    (path, view.shape(), view.data()),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn report_of_a_fixture() {
    let dirs = fixtures();
    let dir = dirs.iter().find(|dir| dir.ends_with("bf16-3-shards")).unwrap();
    let report = Report::of(&Source::directory(dir)).unwrap();
    assert_eq!((report.files, report.tensors, report.unused.len()), (3, 3 * (7 + 24) + 3, 0));
    assert_eq!(report.kinds.iter().map(|kind| kind.parameters).sum::<u64>(), report.parameters);
    assert_eq!(report.dtypes.iter().collect::<Vec<_>>(), [(&"bf16".to_owned(), &(2 * report.parameters))]);
    // Keys and values of 2 heads of 16, 3 layers, 2 bytes.
    assert_eq!(report.kv_bytes_per_token, 2 * 2 * 16 * 3 * 2);
    let text = report.to_string();
    assert!(text.contains("full causal") && text.contains("in 96 tensors, 3 files, bf16"), "{text}");
    assert_eq!(serde_json::to_value(&report).unwrap()["layout"], "hub-per-expert");

    let dir = dirs.iter().find(|dir| dir.ends_with("window-8")).unwrap();
    let report = Report::of(&Source::directory(dir)).unwrap();
    assert_eq!(report.memory.kv_cache, 8 * report.kv_bytes_per_token);
    assert!(report.to_string().contains("window of 8"));
}

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
