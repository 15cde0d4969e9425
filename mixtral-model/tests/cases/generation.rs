//! Generation configs: four that were ignored, one whose end tokens were joined to others, and many that Transformers was given.

use std::path::Path;

use mixtral_model::{
    Config, Ended, GenerateOptions, GenerationConfig, GenerationFile, Model, Sampler, SessionOptions, Span,
    Step, Wanted, Workspace,
};
use serde_json::Value;

use crate::tiny::{PROMPT, case, continued, load, model};

/// What a case's files make of the prompt.
fn generated(name: &str) -> (Vec<u32>, Ended) {
    let model = model(name);
    let generation = GenerationConfig::from_dir(&case(name)).unwrap();
    assert_eq!(generation.warnings, [""; 0]);
    continued(&model, &PROMPT, &GenerateOptions::new(&model, 3).with_sampling(generation.sampling))
}

#[test]
fn keys_that_change_what_is_chosen() {
    for (name, tokens) in [
        ("22-generation-config-bad-words", [1821, 633, 2013]),
        ("22-generation-config-min-new-tokens", [1821, 633, 2013]),
        ("22-generation-config-seq-bias", [5, 5, 5]),
        ("22-generation-config-suppress-tokens", [1821, 633, 2013]),
    ] {
        assert_eq!(generated(name), (tokens.to_vec(), Ended::MaxTokens), "{name}");
    }
}

#[test]
fn end_tokens_of_the_generation_config_alone() {
    let name = "23-generation-config-eos-does-not-override";
    assert_eq!(generated(name), (vec![1812, 204], Ended::Stop(1007)));
}

#[test]
fn each_of_several_stop_tokens_ends_it() {
    let model = model("35-dtype-said-twice");
    let options = |stop: &[u32]| GenerateOptions::new(&model, 6).with_stop(stop.to_vec());
    let (all, ended) = continued(&model, &PROMPT, &options(&[]));
    assert_eq!((all.len(), ended), (6, Ended::MaxTokens));
    let first = |token: u32| all.iter().position(|&t| t == token).unwrap();
    for &token in &all {
        for stop in [&[token, 2047][..], &[2047, token], &[2046, 2047, token], &[token]] {
            assert!(!all.contains(&2046) && !all.contains(&2047));
            let found = continued(&model, &PROMPT, &options(stop));
            assert_eq!(found, (all[..first(token)].to_vec(), Ended::Stop(token)), "{stop:?}");
        }
    }
}

/// The prompt and all that was drawn, the newest token too, are what a penalty knows.
#[test]
fn a_harsh_penalty_lets_nothing_come_twice() {
    let model = model("35-dtype-said-twice");
    let mut sampling = mixtral_model::Sampling::greedy();
    sampling.repetition_penalty = 1e30;
    let options = GenerateOptions::new(&model, 40).with_stop(vec![]).with_sampling(sampling);
    let (mut tokens, _) = continued(&model, &PROMPT, &options);
    tokens.extend(PROMPT);
    assert_eq!(tokens.len(), 43);
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 43, "{tokens:?}");
}

fn goldens() -> Value {
    serde_json::from_str(include_str!("../fixtures/generation/goldens.json")).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The tiny model, with the end tokens of a golden's config, and how that wants to be sampled.
fn of_golden(golden: &Value) -> (Model, GenerationConfig, Vec<u32>) {
    let mut text = golden["config"].clone();
    let prompt = text.as_object_mut().unwrap().remove("prompt");
    let file = GenerationFile::from_json(text.to_string().as_bytes(), Path::new("golden")).unwrap();
    let mut config = Config::from_dir(&case("35-dtype-said-twice")).unwrap();
    config.eos = file.eos().unwrap().unwrap_or_default();
    let generation = file.read().unwrap();
    assert_eq!(generation.warnings.iter().filter(|w| !w.contains("max_length")).count(), 0);
    (load(config), generation, prompt.map_or(PROMPT.to_vec(), |ids| numbers(&ids)))
}

#[test]
fn greedy_texts_are_those_of_transformers() {
    let goldens = goldens();
    let cases = goldens["greedy"].as_array().unwrap();
    assert_eq!(cases.len(), 49);
    let mut failures = Vec::new();
    for golden in cases {
        let (model, generation, prompt) = of_golden(golden);
        let most = generation.max_new_tokens(prompt.len()).unwrap().unwrap_or(12);
        let options = GenerateOptions::new(&model, most).with_sampling(generation.sampling);
        let (mut tokens, ended) = continued(&model, &prompt, &options);
        if let Ended::Stop(token) = ended {
            tokens.push(token);
        }
        if tokens != numbers::<u32>(&golden["tokens"]) {
            failures.push(format!("{}: {tokens:?}", golden["config"]));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn tokens_left_to_draw_are_those_of_transformers() {
    // Logits of some 10 that differ by the rounding of two implementations, 1e-5, over temperatures down to 0.3.
    const TOLERANCE: f64 = 1e-4;
    let goldens = goldens();
    let cases = goldens["sampled"].as_array().unwrap();
    assert_eq!(cases.len(), 21);
    let mut failures = Vec::new();
    for golden in cases {
        let (model, generation, prompt) = of_golden(golden);
        let mut session = model.session(SessionOptions::default()).unwrap();
        let mut workspace = Workspace::new();
        let step = Step::new(&mut session, &prompt).wanted(Wanted::Last);
        let logits = model.forward(&mut [step], &mut workspace, &mut ()).unwrap();
        let end = generation.max_new_tokens(prompt.len()).unwrap().map(|most| prompt.len() + most);
        let span = Span { begin: prompt.len(), end, stop: model.config().eos.clone() };
        let mut sampler = Sampler::new(generation.sampling).unwrap().with_span(span);
        let logits = logits.as_slice().unwrap();
        let left = sampler.probabilities(logits, &prompt, prompt.len()).unwrap();
        let mut left: Vec<(u32, f32)> = left.collect();
        left.sort_by_key(|(token, _)| *token);
        let same = match golden.get("tokens") {
            Some(tokens) => left.iter().map(|(token, _)| *token).eq(numbers::<u32>(tokens)),
            None => golden["count"] == left.len(),
        };
        let expected: Vec<f64> = numbers(&golden["probabilities"]);
        let near = |(found, expected): (&(u32, f32), &f64)| {
            (f64::from(found.1) - expected).abs() <= TOLERANCE * expected
        };
        if !same || !left.iter().zip(&expected).all(near) {
            failures.push(format!("{}: {} {:?}", golden["config"], left.len(), &left[..left.len().min(9)]));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
