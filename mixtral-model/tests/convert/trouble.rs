//! Where writing fails or is ended, nothing is left.

use std::fs;
use std::ops::ControlFlow;

use mixtral_model::convert::Conversion;
use mixtral_model::{Access, Error, Manifest, Source};

use crate::{demo, fixtures, names, recipe, tensors, write};

fn copy_of_the_demo(dir: &std::path::Path) -> std::path::PathBuf {
    let copy = dir.join("copy");
    fs::create_dir(&copy).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.model"] {
        fs::copy(demo().join(name), copy.join(name)).unwrap();
    }
    copy
}

#[test]
fn ended_by_the_caller() {
    let (source, dir) = (Source::find(&demo()).unwrap(), tempfile::tempdir().unwrap());
    let conversion = Conversion::new(&source, Access::Map, recipe(&["q8_0"])).unwrap();
    let as_directory = Conversion::new(&source, Access::Map, recipe(&["f16"])).unwrap();
    let (file, directory) = (dir.path().join("m.gguf"), dir.path().join("m"));
    for (plan, path) in [(conversion.gguf(), file), (as_directory.directory(), directory)] {
        let (plan, mut calls) = (plan.unwrap(), 0);
        let total = plan.weights();
        let stopped = plan.write(&path, |weights| {
            calls += 1;
            assert!(weights < total);
            if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let copy = copy_of_the_demo(dir.path());
    let source = Source::find(&copy).unwrap();
    let conversion = Conversion::new(&source, Access::Read, recipe(&["q8_0"])).unwrap();
    let weights = fs::OpenOptions::new().write(true).open(copy.join("model.safetensors")).unwrap();
    weights.set_len(4_000_000).unwrap();
    let failed = write(&conversion.gguf().unwrap(), &dir.path().join("m.gguf"));
    assert!(matches!(failed, Err(Error::Io { path, .. }) if path == copy.join("model.safetensors")));
    assert_eq!(names(dir.path()), ["copy"]);
}

/// A copy of the demo with another first element of the head, in bf16.
fn with_a_weight(dir: &std::path::Path, value: u16) -> std::path::PathBuf {
    let copy = copy_of_the_demo(dir);
    let source = Source::find(&copy).unwrap();
    let (config, checkpoint) = (source.config().unwrap(), source.checkpoint(Access::Read).unwrap());
    let head = Manifest::new(&config).head().unwrap();
    let at = checkpoint.place(&head, &config).unwrap().offset as usize;
    let mut bytes = fs::read(copy.join("model.safetensors")).unwrap();
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    fs::write(copy.join("model.safetensors"), bytes).unwrap();
    copy
}

#[test]
fn a_weight_that_is_not_finite() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::find(&with_a_weight(dir.path(), 0x7fc0)).unwrap();
    let file = dir.path().join("m.gguf");
    let conversion = Conversion::new(&source, Access::Map, recipe(&["head=q8_0"])).unwrap();
    let message = write(&conversion.gguf().unwrap(), &file).unwrap_err().to_string();
    assert!(
        message.contains("lm_head.weight: expected values that q8_0 can hold")
            && message.contains("NaN in row 0"),
        "{message}"
    );
    assert_eq!(names(dir.path()), ["copy"]);
    // What is copied is copied as it is.
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    write(&conversion.gguf().unwrap(), &file).unwrap();
    assert_eq!(tensors(&file)["output.weight"].2[..2], [0xc0, 0x7f]);
}

#[test]
fn a_value_beyond_f16() {
    let dir = tempfile::tempdir().unwrap();
    // 2^127.
    let source = Source::find(&with_a_weight(dir.path(), 0x7f00)).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&["f16"])).unwrap();
    let failed = write(&conversion.directory().unwrap(), &dir.path().join("m")).unwrap_err().to_string();
    assert!(failed.contains("lm_head.weight: expected values that f16 can hold"), "{failed}");
    assert_eq!(names(dir.path()), ["copy"]);
}

#[test]
fn what_cannot_be_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::find(&fixtures().join("gguf/Q8_0.gguf")).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let refused = conversion.directory().map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("token_embd.weight") && refused.contains("found q8_0"), "{refused}");
    // A directory with something in it stays as it is.
    fs::write(dir.path().join("there"), "x").unwrap();
    let source = Source::find(&demo()).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(&[])).unwrap();
    let refused = write(&conversion.directory().unwrap(), dir.path());
    assert!(matches!(refused, Err(Error::Checkpoint { .. })));
    assert_eq!(names(dir.path()), ["there"]);
}
