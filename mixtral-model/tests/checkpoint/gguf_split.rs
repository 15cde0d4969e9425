//! GGUF models in several files.

use std::fs;
use std::path::{Path, PathBuf};

use mixtral_model::Access;

use crate::BOTH;
use crate::gguf::load;
use crate::gguf_writer::{Gguf, Value};

/// The head may lie in a part that has nothing else of the model.
#[test]
fn a_head_in_a_part_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let order = |_: usize, part: Gguf| part;
    let first = split(dir.path(), Gguf::healthy().tensors.len(), order);
    let (config, _) = load(&first, Access::Map).unwrap();
    assert!(!config.tie_embeddings);
}

/// The tensors of a healthy file in several.
fn split(dir: &Path, parts: usize, change: impl Fn(usize, Gguf) -> Gguf) -> PathBuf {
    let healthy = Gguf::healthy();
    let total = healthy.tensors.len();
    for (n, tensors) in healthy.tensors.chunks(total.div_ceil(parts)).enumerate() {
        let mut part = Gguf { tensors: tensors.to_vec(), ..healthy.clone() };
        if n > 0 {
            part.keys.clear();
        }
        let part = part
            .set("split.no", Value::U16(n as u16))
            .set("split.count", Value::U16(parts as u16))
            .set("split.tensors.count", Value::Raw(5, (total as i32).to_le_bytes().to_vec()));
        fs::write(dir.join(format!("m-{:05}-of-{parts:05}.gguf", n + 1)), change(n, part).bytes()).unwrap();
    }
    dir.join(format!("m-00001-of-{parts:05}.gguf"))
}

#[test]
fn a_model_in_several_files() {
    let dir = tempfile::tempdir().unwrap();
    let first = split(dir.path(), 3, |_, part| part);
    for source in [&*first, dir.path()] {
        for access in BOTH {
            let (found, checkpoint) = load(source, access).unwrap();
            // The head is in the last file.
            assert!(!found.tie_embeddings);
            assert_eq!(checkpoint.files().len(), 3);
        }
    }
    let second = dir.path().join("m-00002-of-00003.gguf");
    let error = load(&second, Access::Map).unwrap_err().to_string();
    assert!(error.contains("split.no") && error.contains("the first part"), "{error}");
    for (what, change) in [
        (
            "split.no",
            (|n, part| if n == 1 { part.set("split.no", Value::U16(2)) } else { part })
                as fn(usize, Gguf) -> Gguf,
        ),
        ("split.count", |n, part| if n == 2 { part.set("split.count", Value::U16(4)) } else { part }),
        ("as split.tensors.count says", |n, mut part| {
            part.tensors.truncate(if n == 1 { 2 } else { 99 });
            part
        }),
        ("output.weight", |n, mut part| {
            let head = Gguf::healthy().tensors.into_iter().find(|tensor| tensor.name == "output.weight");
            let mut other = head.unwrap();
            other.bytes[0] ^= 1;
            match n {
                0 => part.tensors.push(other),
                1 => drop(part.tensors.pop()),
                _ => {}
            }
            part
        }),
    ] {
        split(dir.path(), 3, change);
        let error = load(&first, Access::Map).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    fs::remove_file(second).unwrap();
    let error = load(&first, Access::Map).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00003.gguf"), "{error}");
}
