//! Models as Transformers 5 and 4, PEFT and mergekit save them, each with the greedy texts that Transformers gives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/report.rs"]
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mixtral_model::{
    Access, Ended, GenerateOptions, Model, SessionOptions, Source, Step, Wanted, Workspace, generate,
};
use moe_kernels::Backend;
use ndarray::ArrayView1;
use report::Report;
use serde::Deserialize;

/// How far the distance between the two best logits may be from the expected one, which has five digits: both sides round
/// logits of about 5 by some 1e-5.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Saved {
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    prompt: Vec<u32>,
    /// What follows, an end token included.
    tokens: Vec<u32>,
    /// Of every token, how far its logit is above the next best.
    margins: Vec<f32>,
}

fn dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/saved").join(name)
}

fn all() -> BTreeMap<String, Saved> {
    serde_json::from_slice(&fs::read(dir("expected.json")).unwrap()).unwrap()
}

fn load(source: &Source, access: Access) -> mixtral_model::Result<Model> {
    Model::load(source.config()?, &source.checkpoint(access)?, Backend::best())
}

/// What follows the prompt under the model's own end tokens, the one that ended it included.
fn greedy(model: &Model, prompt: &[u32]) -> Vec<u32> {
    let mut session = model.session(SessionOptions::default()).unwrap();
    let options = GenerateOptions::new(model, 24);
    let go_on = |_| Ok::<_, mixtral_model::Error>(ControlFlow::Continue(()));
    let generated =
        generate(model, &mut session, prompt, &options, &mut Workspace::new(), &mut (), go_on).unwrap();
    let end = match generated.ended {
        Ended::Stop(token) => Some(token),
        _ => None,
    };
    generated.tokens.into_iter().chain(end).collect()
}

/// How far the best logit is above the next, before each token of the text.
fn margins(model: &Model, text: &Text) -> Vec<f32> {
    let read = [&text.prompt[..], &text.tokens[..text.tokens.len() - 1]].concat();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut workspace = Workspace::new();
    let step = Step::new(&mut session, &read).wanted(Wanted::All);
    let logits = model.forward(&mut [step], &mut workspace, &mut ()).unwrap();
    let margin = |logits: ArrayView1<'_, f32>| {
        let mut logits = logits.to_vec();
        logits.sort_unstable_by(|a, b| b.total_cmp(a));
        logits[0] - logits[1]
    };
    logits.rows().into_iter().skip(text.prompt.len() - 1).map(margin).collect()
}

#[test]
fn greedy_texts_of_every_model_are_those_of_transformers() {
    let mut report = Report::default();
    for (name, saved) in all() {
        let source = Source::find(&dir(&name)).unwrap();
        for access in [Access::Map, Access::Read] {
            let case = |text: &Text, what: &str| format!("{name} {access:?} {:?}, {what}", text.prompt);
            let model = match load(&source, access) {
                Ok(model) => model,
                Err(error) => {
                    report.check(|| format!("{name} {access:?}"), error.to_string(), "a model".to_owned());
                    continue;
                }
            };
            for text in &saved.texts {
                let least = text.margins.iter().copied().fold(f32::INFINITY, f32::min);
                report.check(
                    || case(text, &format!("margins of at least {least}")),
                    greedy(&model, &text.prompt),
                    text.tokens.clone(),
                );
                let found = margins(&model, text);
                let near =
                    |(found, expected): (&f32, &f32)| (found - expected).abs() <= TOLERANCE + 1e-4 * expected;
                if found.len() != text.margins.len() || !found.iter().zip(&text.margins).all(near) {
                    report.check(|| case(text, "margins"), found, text.margins.clone());
                }
            }
        }
    }
    report.finish();
}

/// Each directory is tried, and both ways of storing experts are among them.
#[test]
fn every_directory_has_texts() {
    let entries = fs::read_dir(dir("")).unwrap().map(|entry| entry.unwrap());
    let directories = entries.filter(|entry| entry.path().is_dir());
    let names: BTreeSet<String> = directories.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert_eq!(names, all().into_keys().collect());
    let layouts: BTreeSet<String> = names
        .iter()
        .map(|name| {
            let checkpoint = Source::find(&dir(name)).unwrap().checkpoint(Access::Map).unwrap();
            serde_json::to_value(checkpoint.layout()).unwrap().as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(layouts, ["hub-fused", "hub-per-expert"].map(str::to_owned).into());
}

/// A model that was saved without its head has none, unless that is the embedding.
#[test]
fn a_head_that_was_not_saved() {
    let copy = tempfile::tempdir().unwrap();
    for name in ["base-fused-tied", "base-original-tied"] {
        let (weights, config) = ("model.safetensors", "config.json");
        fs::copy(dir(name).join(weights), copy.path().join(weights)).unwrap();
        let text = fs::read_to_string(dir(name).join(config)).unwrap();
        let untied = text.replace(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#);
        assert_ne!(text, untied);
        fs::write(copy.path().join(config), untied).unwrap();
        let error = load(&Source::find(copy.path()).unwrap(), Access::Map).err().unwrap().to_string();
        assert!(error.contains("lm_head.weight") && error.contains("no such tensor"), "{error}");
    }
}
