//! Chats.

use serde_json::{Value, json};

use crate::client::{Running, alone, demo, text_after};

const PATH: &str = "/v1/chat/completions";

#[test]
fn an_answer_is_what_follows_the_chat() {
    let (model, tokenizer, format) = demo();
    let server = Running::start(|_| ());
    let chat = mixtral_model::Chat::new(vec![mixtral_model::Message::user("Who is the cat?")]);
    let ids = format.encode(&tokenizer, &chat).unwrap();
    let drawn = alone(&model, &ids, 12, mixtral_model::Sampling::greedy());
    let expected = text_after(&tokenizer, &ids, &drawn);
    let messages = json!([{"role": "user", "content": "Who is the cat?"}]);
    let mut body = json!({"messages": messages, "max_tokens": 12, "temperature": 0, "logprobs": true, "top_logprobs": 2});
    let answer = server.ask(PATH, &body);
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": expected}));
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), answer["usage"]["completion_tokens"].as_u64().unwrap() as usize);
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        // Greedy: each is the first of those at its place.
        assert_eq!(
            (top.len(), &top[0]["logprob"], &top[0]["token"]),
            (2, &token["logprob"], &token["token"])
        );
    }

    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = server.stream(PATH, &body);
    let last = events.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &answer["usage"]));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String =
        events.iter().map(|event| event["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, expected);
    let scored: Vec<_> = events
        .iter()
        .flat_map(|e| e["choices"][0]["logprobs"]["content"].as_array().unwrap().clone())
        .collect();
    assert_eq!(Value::from(scored), choice["logprobs"]["content"]);
}

#[test]
fn what_has_no_place_in_the_format_is_refused() {
    let server = Running::start(|_| ());
    let messages = json!([{"role": "user", "content": "a"}]);
    for body in [
        json!({"messages": [{"role": "nobody", "content": "a"}]}),
        json!({"messages": [{"role": "user", "content": 1}]}),
        json!({"messages": []}),
        json!({"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]}),
        json!({"messages": messages, "tool_choice": "required"}),
        json!({"messages": messages, "top_logprobs": 2}),
        json!({"messages": messages, "prompt": "a"}),
    ] {
        let (status, answer) = server.post(PATH, &body);
        assert_eq!(status, 400, "{body}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
}
