//! Probabilities of prompts are those of one pass over them, to the bit.

use mixtral_model::{SessionOptions, Step, Wanted, Workspace, log_sum_exp};
use serde_json::{Value, json};

use crate::client::{Running, demo};

/// The logarithm of the probability of each token but the first, and the greatest of its place.
fn direct(ids: &[u32]) -> Vec<(f64, f64)> {
    let (model, ..) = demo();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut workspace = Workspace::new();
    let step = Step::new(&mut session, ids).wanted(Wanted::All);
    let logits = model.forward(&mut [step], &mut workspace, &mut ()).unwrap();
    let scored = logits.rows().into_iter().zip(&ids[1..]).map(|(row, &id)| {
        let row = row.as_slice().unwrap();
        let total = log_sum_exp(row);
        let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        (f64::from(row[id as usize]) - total, f64::from(greatest) - total)
    });
    scored.collect()
}

fn check(choice: &Value, ids: &[u32], drawn: usize) {
    let logprobs = &choice["logprobs"];
    let (scores, tops) =
        (logprobs["token_logprobs"].as_array().unwrap(), logprobs["top_logprobs"].as_array().unwrap());
    assert_eq!((scores.len(), tops.len()), (ids.len() + drawn, ids.len() + drawn));
    assert!(scores[0].is_null() && tops[0].is_null());
    for (n, (score, greatest)) in direct(ids).into_iter().enumerate() {
        assert_eq!(scores[n + 1].as_f64(), Some(score), "token {}", n + 1);
        let top = tops[n + 1].as_object().unwrap().values().filter_map(Value::as_f64);
        assert_eq!(top.fold(f64::NEG_INFINITY, f64::max), greatest);
    }
}

/// What lm-evaluation-harness asks for, alone and among others, whatever the prompt is cut into.
#[test]
fn echoed_prompts_are_scored_to_the_bit() {
    let (_, tokenizer, _) = demo();
    let texts = [
        "Alice was beginning to get very tired of sitting by her sister on the bank",
        "The Mock Turtle sighed deeply",
        "x",
    ];
    let prompts: Vec<_> = texts.iter().map(|text| tokenizer.encode_prompt(text).unwrap()).collect();
    for prompt_tokens in [3, 256] {
        let server = Running::start(|options| options.prompt_tokens = prompt_tokens);
        let body = json!({
            "model": "mixtral", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true,
        });
        let answer = server.ask("/v1/completions", &body);
        for (choice, ids) in answer["choices"].as_array().unwrap().iter().zip(&prompts) {
            check(choice, ids, 1);
        }
        let none = json!({"prompt": prompts[0], "max_tokens": 0, "logprobs": 5, "echo": true});
        let answer = server.ask("/v1/completions", &none);
        check(&answer["choices"][0], &prompts[0], 0);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

/// A token that ends the text is scored too: who drops the last score drops none of the prompt's.
#[test]
fn an_end_is_scored() {
    let (_, tokenizer, _) = demo();
    let server = Running::start(|_| ());
    let ids = tokenizer.encode_prompt("The end").unwrap();
    let eos = tokenizer.eos().to_string();
    let body = json!({"prompt": ids, "temperature": 0, "max_tokens": 3, "logprobs": 1, "echo": true, "logit_bias": {eos: 100}});
    let answer = server.ask("/v1/completions", &body);
    let choice = &answer["choices"][0];
    check(choice, &ids, 1);
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().last().unwrap(), "</s>");
    assert_eq!((&choice["finish_reason"], &choice["text"]), (&json!("stop"), &json!("The end")));
}
