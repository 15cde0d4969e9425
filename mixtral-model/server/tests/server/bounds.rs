//! What the server does not do, it says; and who has no key has nothing.

use mixtral_server::ApiKey;
use serde_json::json;

use crate::client::Running;

const PATH: &str = "/v1/completions";

#[test]
fn fields_that_are_not_done_are_named() {
    let server = Running::start(|_| ());
    for (name, value) in [
        ("suffix", json!("x")),
        ("best_of", json!(2)),
        ("response_format", json!({"type": "json_object"})),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-1)),
        ("tools", json!([])),
        ("parallel_tool_calls", json!(true)),
        ("max_completion_tokens", json!(3)),
        ("temperatur", json!(1)),
        ("a\u{7}b", json!(1)),
        ("n", json!(0)),
        ("n", json!(2.5)),
        ("seed", json!("7")),
        ("stop", json!([""])),
        ("stop", json!({})),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("temperature", json!(-1)),
        ("temperature", json!(1e60)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1e9)),
        ("logprobs", json!(21)),
        ("echo", json!("yes")),
        ("stream", json!(1)),
        ("stream_options", json!({"include_usage": true})),
        ("logit_bias", json!({"99999999": 1})),
        ("logit_bias", json!([1])),
        ("router", json!("no-such-router")),
        ("router", json!("replay:path=\"/etc/passwd\"")),
        ("router", json!("capped(replay:path=\"/etc/passwd\"):factor=1.0")),
        ("router", json!("0@replay:path=\"/etc/passwd\"")),
        ("return_routing", json!(1)),
    ] {
        let mut body = json!({"prompt": "Alice", "max_tokens": 1});
        body[name] = value.clone();
        let (status, answer) = server.post(PATH, &body);
        assert_eq!(status, 400, "{name}: {value}: {answer}");
        assert_eq!(answer["error"]["param"], name, "{answer}");
        assert!(answer["error"]["message"].is_string() && answer["error"]["type"] == "invalid_request_error");
    }
    // What changes nothing is taken.
    let body = json!({
        "prompt": "Alice", "max_tokens": 1, "suffix": null, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me",
        "response_format": {"type": "text"}, "logprobs": null, "stop": [], "stream": false,
    });
    server.ask(PATH, &body);
    let (status, answer) = server.post(PATH, &json!({"model": "other", "prompt": "a"}));
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("model_not_found")));
    let (status, answer) = server.post(PATH, &json!({"prompt": "a", "max_tokens": 4096}));
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
}

#[test]
fn a_key_is_asked_for() {
    let server = Running::start(|options| options.api_key = ApiKey::new(" secret\n"));
    let get = |header: &str| {
        server
            .raw(
                format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n").as_bytes(),
            )
            .0
    };
    assert_eq!(get("Authorization: Bearer secret\r\n"), 200);
    assert_eq!(get("authorization: bearer secret\r\n"), 200);
    for header in [
        "",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer secre\r\n",
        "Authorization: Bearer secrets\r\n",
        "Authorization: Basic secret\r\n",
        "Authorization: secret\r\n",
        "X-Api-Key: secret\r\n",
    ] {
        assert_eq!(get(header), 401, "{header}");
    }
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.get("/no/such/path").0, 401);
    let open = Running::start(|_| ());
    let empty = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nAuthorization: Bearer \r\nconnection: close\r\n\r\n";
    assert_eq!(open.raw(empty).0, 200);
    assert!(!format!("{:?}", ApiKey::new("secret")).contains("secret"));
    assert!(ApiKey::new(" \n").is_none() && ApiKey::new("two words").is_none());
}
