//! The demo model, from the bytes that the command line embeds.

use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use mixtral_model::{
    Access, Checkpoint, Compute, Config, Model, Perplexity, PerplexityOptions, SessionOptions, Tokenizer,
    Workspace,
};
use moe_kernels::{Activations, Backend};

use crate::support::{Goldens, Recorder, compare, fixtures, greedy, logits, rows};

const CONFIG: &[u8] = include_bytes!("../../cli/demo/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../cli/demo/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../cli/demo/tokenizer.model");
pub(crate) const HELDOUT: &str = include_str!("../../cli/demo/heldout.txt");

/// The size of f32's rounding in this model's logits and router logits, which are of order 10: the goldens of the tiny models
/// state 1e-5 to 6e-5 for logits of that size at three layers.
const TOLERANCE: f32 = 1e-4;

pub(crate) fn demo(compute: impl Into<Compute>) -> Model {
    let config = Config::from_json(CONFIG, Path::new("demo/config.json")).unwrap();
    let checkpoint =
        Checkpoint::from_bytes(Path::new("demo/model.safetensors"), Bytes::from_static(WEIGHTS)).unwrap();
    Model::load(config, &checkpoint, compute).unwrap()
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_sentencepiece(TOKENIZER, Path::new("demo/tokenizer.model")).unwrap()
}

#[test]
fn prompts() {
    let goldens = Goldens::read(&fixtures().join("demo"));
    let (tokenizer, mut failures) = (tokenizer(), Vec::new());
    let prompts = goldens.facts["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 3);
    for backend in Backend::available() {
        let model = demo(backend);
        for (k, facts) in prompts.iter().enumerate() {
            let ids = goldens.ids(&format!("{k}.input_ids"));
            let label = |what: &str| format!("prompt {k} {backend} {what}");
            if tokenizer.encode_prompt(facts["prompt"].as_str().unwrap()).unwrap() != ids {
                failures.push(label("input_ids"));
            }
            let mut recorder = Recorder::default();
            let found = logits(&model, &ids, &[ids.len()], &mut recorder);
            compare(
                &mut failures,
                &label("logits"),
                found.view(),
                goldens.floats(&format!("{k}.logits")).view(),
                TOLERANCE,
            );
            for n in 0..model.config().layers {
                for kind in ["router_logits", "weights"] {
                    let (what, golden) = (format!("{kind}.{n}"), goldens.floats(&format!("{k}.{kind}.{n}")));
                    compare(
                        &mut failures,
                        &label(&what),
                        recorder.floats[&what].view(),
                        golden.view(),
                        TOLERANCE,
                    );
                }
                let what = format!("experts.{n}");
                if recorder.experts[&what] != goldens.ids(&format!("{k}.{what}")) {
                    failures.push(label(&what));
                }
            }
            let expected = goldens.ids(&format!("{k}.greedy_ids"));
            let found = greedy(&model, &ids, expected.len());
            if found != expected {
                failures.push(label("greedy_ids"));
            }
            let text = tokenizer.decode(&found);
            if text != facts["greedy_text"].as_str().unwrap() {
                failures.push(format!("{}: {text:?}", label("greedy_text")));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// How a model predicts a text in windows of so many tokens without overlap.
fn predicted(model: &Model, ids: &[u32], window: usize) -> Perplexity {
    let mut session = model.session(SessionOptions::default()).unwrap();
    let options = PerplexityOptions::new(window);
    let (mut workspace, go_on) = (Workspace::new(), |_| ControlFlow::Continue(()));
    mixtral_model::perplexity(model, &mut session, ids, &options, &mut workspace, &mut (), go_on).unwrap()
}

#[test]
fn perplexity() {
    let goldens = Goldens::read(&fixtures().join("demo"));
    let facts = &goldens.facts["perplexity"];
    let model = demo(Backend::best());
    let ids = tokenizer().encode_prompt(HELDOUT).unwrap();
    assert_eq!(ids.len() as u64, facts["tokens_with_bos"].as_u64().unwrap());

    let golden = &facts["windows_of_256_without_overlap"];
    let found = predicted(&model, &ids, 256);
    assert_eq!(found.predicted as u64, golden["predicted_tokens"].as_u64().unwrap());
    let expected = golden["nll_sum"].as_f64().unwrap();
    println!("nll {}, golden {expected}, perplexity {}", found.nll_sum, found.perplexity());
    // A token's nll is good to the tolerance of its logits; over thousands of tokens the errors mostly cancel.
    let tolerance = f64::from(TOLERANCE) * (found.predicted as f64).sqrt() * 3.0;
    assert!((found.nll_sum - expected).abs() < tolerance, "{found:?} {expected}");

    let golden = &facts["first_2048_tokens_in_one_pass"];
    let found = predicted(&model, &ids[..2048], 2048);
    assert_eq!(found.predicted as u64, golden["predicted_tokens"].as_u64().unwrap());
    let (found, golden) = (found.perplexity(), golden["perplexity"].as_f64().unwrap());
    println!("one pass: perplexity {found}, golden {golden}");
    assert!((found / golden - 1.0).abs() < f64::from(TOLERANCE), "{found} {golden}");
}

/// What rounding activations to 8 bits does to the demo: next to nothing, stated in `docs/numerics.md`.
#[test]
fn perplexity_with_bf16_activations() {
    let golden = Goldens::read(&fixtures().join("demo")).facts["perplexity"]["first_2048_tokens_in_one_pass"]
        ["perplexity"]
        .as_f64()
        .unwrap();
    let model = demo(Compute { activations: Activations::Bf16, ..Compute::default() });
    let ids = tokenizer().encode_prompt(HELDOUT).unwrap();
    let found = predicted(&model, &ids[..2048], 2048).perplexity();
    println!("one pass with bf16 activations: perplexity {found}, golden with f32 {golden}");
    assert!((found / golden - 1.0).abs() < 2e-3, "{found} {golden}");
    assert!((found - golden).abs() > 1e-5 * golden, "activations are rounded: {found} {golden}");
}

#[test]
fn read_and_mapped_from_the_directory_as_from_the_bytes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/demo");
    let ids = tokenizer().encode_prompt("Call me Ishmael.").unwrap();
    let expected = logits(&demo(Backend::best()), &ids, &[ids.len()], &mut ());
    for access in [Access::Map, Access::Prefault, Access::Read] {
        let checkpoint = Checkpoint::open(&dir, access).unwrap();
        let model = Model::load(Config::from_dir(&dir).unwrap(), &checkpoint, Backend::best()).unwrap();
        let found = logits(&model, &ids, &[ids.len()], &mut ());
        assert_eq!(rows(&found, ids.len()), expected.view(), "{access:?}");
    }
}
