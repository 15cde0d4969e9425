//! Models written elsewhere: what is written holds the same model, and nothing is left where writing fails.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod importances;
mod sources;
mod there_and_back;
mod tokenizers;
mod trouble;
mod types;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mixtral_model::convert::{Choice, Conversion, Plan, Recipe, Summary};
use mixtral_model::{Access, Compute, Model, Result, SessionOptions, Source, Step, Wanted, Workspace};
use ndarray::Array2;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/demo")
}

fn recipe(choices: &[&str]) -> Recipe {
    Recipe::new(choices.iter().map(|choice| choice.parse::<Choice>().unwrap()).collect())
}

fn write(plan: &Plan<'_>, path: &Path) -> Result<Summary> {
    plan.write(path, |_| ControlFlow::Continue(()))
}

/// Writes a GGUF file of a model.
#[track_caller]
fn to_gguf(from: &Path, choices: &[&str], to: &Path) -> Summary {
    let source = Source::find(from).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(choices)).unwrap();
    write(&conversion.gguf().unwrap(), to).unwrap()
}

/// Writes a directory of a model.
#[track_caller]
fn to_directory(from: &Path, choices: &[&str], to: &Path) -> Summary {
    let source = Source::find(from).unwrap();
    let conversion = Conversion::new(&source, Access::Map, recipe(choices)).unwrap();
    write(&conversion.directory().unwrap(), to).unwrap()
}

fn model(path: &Path) -> Model {
    let source = Source::find(path).unwrap();
    let checkpoint = source.checkpoint(Access::Map).unwrap();
    assert_eq!(checkpoint.verify(&source.config().unwrap()).unwrap(), Vec::<&str>::new());
    Model::load(source.config().unwrap(), &checkpoint, Compute::default()).unwrap()
}

/// Logits of the same few tokens for every model.
fn logits(model: &Model) -> Array2<f32> {
    let vocabulary = model.config().vocab_size as u32;
    let ids: Vec<u32> = (0..24u32).map(|n| (n * n * 7 + n + 1) % vocabulary).collect();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let (mut workspace, step) = (Workspace::new(), Step::new(&mut session, &ids).wanted(Wanted::All));
    model.forward(&mut [step], &mut workspace, &mut ()).unwrap().to_owned()
}

/// Type, shape and bytes of every tensor that is stored.
fn tensors(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let checkpoint = Source::find(path).unwrap().checkpoint(Access::Read).unwrap();
    let tensor = |name: &str| {
        let tensor = checkpoint.tensor(name).unwrap();
        (tensor.format.to_string(), tensor.shape.to_vec(), tensor.bytes.to_vec())
    };
    checkpoint.entries().map(|entry| (entry.name.to_owned(), tensor(entry.name))).collect()
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
