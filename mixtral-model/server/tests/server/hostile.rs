//! What no client should send: an answer of the 400s, and a server as before.

use std::io::Write;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::client::{Running, answer, head};

const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];

/// Still answers, and rightly.
fn lives(server: &Running) {
    server.ask("/v1/completions", &json!({"prompt": "Alice", "max_tokens": 1}));
}

#[test]
fn bodies_of_all_kinds() {
    let server = Running::start(|_| ());
    let texts = prop_oneof!["[a-z]{0,12}", "\\PC{0,40}", Just("Alice".to_owned())];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..40).prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{1,10}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let names = prop::sample::select(vec![
        "prompt",
        "messages",
        "tokens",
        "max_tokens",
        "temperature",
        "top_p",
        "n",
        "stop",
        "logprobs",
        "echo",
        "stream",
        "stream_options",
        "logit_bias",
        "seed",
        "router",
        "return_routing",
        "tools",
        "top_logprobs",
        "model",
        "suffix",
        "x",
    ]);
    let body = prop::collection::vec((names, value), 0..4);
    let strategy = (0..PATHS.len(), body, any::<prop::sample::Index>(), any::<u8>(), 0u8..4);
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(400) });
    runner
        .run(&strategy, |(path, fields, place, byte, damage)| {
            // Short, whatever it asks for.
            let mut body = json!({"max_tokens": 1});
            if path == 2 || path == 3 {
                body = json!({});
            }
            for (name, value) in fields {
                body[name] = value;
            }
            let mut bytes = body.to_string().into_bytes();
            let at = place.index(bytes.len());
            match damage {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, byte),
                _ => {}
            }
            let (status, answer) = server.post_bytes(PATHS[path], &bytes);
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert!(status == 200 || (400..500).contains(&status), "{} for {}", status, shown);
            if status != 200 {
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                prop_assert!(answer["error"]["message"].is_string() && answer["error"]["type"].is_string());
            }
            Ok(())
        })
        .unwrap();
    lives(&server);
}

#[test]
fn requests_that_are_none() {
    let server = Running::start(|options| {
        options.body_bytes = 10_000;
        options.client_time = Duration::from_millis(300);
    });
    let path = "/v1/completions";
    for (bytes, expected) in [
        (b"\x00\xff\xfe garbage\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/9.9\r\n\r\n".to_vec(), 400),
        (format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(200_000)).into_bytes(), 431),
        (format!("GET /health HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000)).into_bytes(), 431),
        ([head(path, 20_000, "").into_bytes(), vec![b' '; 20_000]].concat(), 413),
        (
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}")
                .into_bytes(),
            415,
        ),
        (format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes(), 405),
        (b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(), 404),
        // A body that never comes, and a head that never ends.
        (head(path, 100, "").into_bytes(), 408),
    ] {
        let (status, _) = server.raw(&bytes);
        assert_eq!(status, expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
    }
    let mut half = server.connect();
    half.write_all(b"GET /health HT").unwrap();
    let (status, _) = answer(&mut half);
    assert!(status == 0 || status == 408, "{status}");
    lives(&server);
}

#[test]
fn nested_and_long() {
    let server = Running::start(|_| ());
    let deep = format!("{{\"prompt\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(server.post_bytes(PATHS[0], deep.as_bytes()).0, 400);
    let many = json!({"prompt": vec!["a"; 100_000]});
    assert_eq!(server.post(PATHS[0], &many).0, 400);
    let long = json!({"prompt": "word ".repeat(200_000)});
    let (status, answer) = server.post(PATHS[0], &long);
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("context_length_exceeded")));
    let ids = json!({"prompt": vec![5; 100_000]});
    assert_eq!(server.post(PATHS[0], &ids).0, 400);
    for ids in [
        json!([[1, 2, 4_000_000_000u64]]),
        json!([-1]),
        json!([1.5]),
        json!([[], [1]]),
        json!([]),
        json!([["a"]]),
    ] {
        assert_eq!(server.post(PATHS[0], &json!({"prompt": ids})).0, 400, "{ids}");
    }
    lives(&server);
}
