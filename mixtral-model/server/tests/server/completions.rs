//! Completions are what the library generates.

use mixtral_model::Sampling;
use serde_json::{Value, json};

use crate::client::{Running, alone, demo, text_after};

const PATH: &str = "/v1/completions";

fn texts(answer: &Value) -> Vec<&str> {
    answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn texts_are_those_of_the_library() {
    let (model, tokenizer, _) = demo();
    let server = Running::start(|_| ());
    let sampling = Sampling::greedy().with_temperature(0.9).unwrap().with_top_p(0.95).unwrap();
    for (n, prompt) in ["Alice was", "The Queen said", "é, and then"].into_iter().enumerate() {
        let ids = tokenizer.encode_prompt(prompt).unwrap();
        let seed = n as u64 + 5;
        let drawn = alone(&model, &ids, 24, sampling.clone().with_seed(seed));
        let expected = text_after(&tokenizer, &ids, &drawn);
        let body =
            json!({"prompt": prompt, "max_tokens": 24, "temperature": 0.9, "top_p": 0.95, "seed": seed});
        let answer = server.ask(PATH, &body);
        assert_eq!(texts(&answer), [&*expected]);
        assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
        assert_eq!(answer["seed"], seed);
        // Ids are the same prompt, and what is echoed is that prompt.
        let of_ids = json!({"prompt": ids, "max_tokens": 24, "temperature": 0.9, "top_p": 0.95, "seed": seed, "echo": true});
        let of_ids = server.ask(PATH, &of_ids);
        assert_eq!(texts(&of_ids), [&*format!("{}{expected}", tokenizer.decode(&ids))]);
    }
}

#[test]
fn lists_and_choices_are_texts_of_their_own() {
    let server = Running::start(|_| ());
    let one = |prompt: &str, seed: u64| {
        let body = json!({"prompt": prompt, "max_tokens": 9, "seed": seed});
        server.ask(PATH, &body)["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let answer =
        server.ask(PATH, &json!({"prompt": ["Alice", "The cat"], "n": 2, "max_tokens": 9, "seed": 3}));
    assert_eq!(texts(&answer), [one("Alice", 3), one("Alice", 4), one("The cat", 3), one("The cat", 4)]);
    let indices: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64()).collect();
    assert_eq!(indices, [0, 1, 2, 3].map(Some));
}

#[test]
fn chunks_add_up_to_the_text() {
    let server = Running::start(|_| ());
    let body =
        json!({"prompt": ["Alice was", "It is"], "max_tokens": 20, "seed": 11, "echo": true, "logprobs": 1});
    let whole = server.ask(PATH, &body);
    let mut body = body;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = server.stream(PATH, &body);
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    for (n, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let own: Vec<_> =
            events.iter().map(|event| &event["choices"][0]).filter(|c| c["index"] == n).collect();
        let text: String = own.iter().map(|c| c["text"].as_str().unwrap()).collect();
        assert_eq!(choice["text"], *text);
        assert_eq!(own.last().unwrap()["finish_reason"], choice["finish_reason"]);
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let joined: Vec<_> =
                own.iter().flat_map(|c| c["logprobs"][key].as_array().unwrap().clone()).collect();
            assert_eq!(choice["logprobs"][key], Value::from(joined), "{key}");
        }
    }
    assert!(
        events
            .iter()
            .all(|event| event["usage"].is_null() && event["choices"].as_array().unwrap().len() == 1)
    );
}

#[test]
fn a_text_ends_before_a_stop() {
    let server = Running::start(|_| ());
    let body = json!({"prompt": "Alice was", "max_tokens": 40, "temperature": 0});
    let free = server.ask(PATH, &body);
    let text = texts(&free)[0];
    let stop: String = text.chars().skip(10).take(3).collect();
    let expected = &text[..text.find(&stop).unwrap()];
    for stop in [json!(stop), json!(["never to come", stop])] {
        let mut body = body.clone();
        body["stop"] = stop;
        let answer = server.ask(PATH, &body);
        assert_eq!(texts(&answer), [expected]);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        body["stream"] = json!(true);
        let chunks = server.stream(PATH, &body);
        let text: String = chunks.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(text, expected);
    }
}

#[test]
fn biases_count() {
    let server = Running::start(|_| ());
    let body = json!({"prompt": "Alice", "max_tokens": 5, "temperature": 0, "logit_bias": {"300": 100}, "logprobs": 0});
    let answer = server.ask(PATH, &body);
    let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert!(tokens.len() == 5 && tokens.iter().all(|token| token == &tokens[0]), "{answer}");
}

#[test]
fn routers_and_routing_of_a_request() {
    let (model, tokenizer, _) = demo();
    let server = Running::start(|_| ());
    let mut body = json!({"prompt": "Alice was", "max_tokens": 6, "temperature": 0, "return_routing": true});
    let count = tokenizer.encode_prompt("Alice was").unwrap().len();
    for (router, k) in [(None, model.config().experts_per_token), (Some("top-k:k=1"), 1)] {
        if let Some(router) = router {
            body["router"] = json!(router);
        }
        let answer = server.ask(PATH, &body);
        let routing = answer["choices"][0]["routing"].as_array().unwrap();
        // The last token that is drawn is not read.
        assert_eq!(routing.len(), count + 5);
        for token in routing {
            let layers = token.as_array().unwrap();
            assert_eq!(layers.len(), model.config().layers);
            assert!(layers.iter().all(|l| l["experts"].as_array().unwrap().len() == k));
        }
    }
    // A router that looks at the whole prompt reads it in one pass of its own.
    body["router"] = json!("expert-choice:capacity=1.0");
    body["return_routing"] = json!(false);
    let answer = server.ask(PATH, &body);
    assert_eq!(server.ask(PATH, &body)["choices"], answer["choices"]);
}

#[test]
fn tokens_to_and_fro() {
    let (_, tokenizer, _) = demo();
    let server = Running::start(|_| ());
    let ids = tokenizer.encode_prompt("Off with her head").unwrap();
    let answer = server.ask("/tokenize", &json!({"prompt": "Off with her head", "add_special_tokens": true}));
    assert_eq!(answer["tokens"], json!(ids));
    let bare = server.ask("/tokenize", &json!({"prompt": "Off with her head", "add_special_tokens": false}));
    assert_eq!(bare["tokens"], json!(ids[1..]));
    assert_eq!(server.ask("/detokenize", &json!({"tokens": ids}))["prompt"], "Off with her head");
    let (status, info) = server.get("/tokenizer_info");
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        (status, &info["eos_token_id"], &info["bos_token"]),
        (200, &json!(tokenizer.eos()), &json!("<s>"))
    );
    let (status, models) = server.get("/v1/models");
    assert!(status == 200 && models.contains("\"mixtral\""));
    assert_eq!(server.get("/v1/models/mixtral").0, 200);
    assert_eq!(server.get("/v1/models/other").0, 404);
}
