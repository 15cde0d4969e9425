//! Whatever else runs, a text is its text alone; and who leaves, leaves nothing.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{PATIENCE, Running, head};

const PATH: &str = "/v1/completions";

fn body(n: usize) -> Value {
    // Some begin alike, so that prefixes are found.
    let begin = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do";
    let prompt = if n.is_multiple_of(2) { format!("{begin} {n}") } else { format!("The Hatter {n}") };
    json!({"prompt": prompt, "max_tokens": 8 + n % 7, "seed": n, "logprobs": 2, "echo": n.is_multiple_of(3)})
}

fn metric(server: &Running, name: &str) -> u64 {
    let (_, text) = server.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("mixtral_{name} "))).unwrap();
    line.parse().unwrap()
}

/// Waits for a number to come to something; a test that waits too long fails.
fn wait(server: &Running, name: &str, is: impl Fn(u64) -> bool) {
    let begun = Instant::now();
    while !is(metric(server, name)) {
        assert!(begun.elapsed() < PATIENCE, "{name} is {}", metric(server, name));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn texts_do_not_depend_on_load() {
    let plain = Running::start(|options| options.prefix_bytes = 0);
    let expected: Vec<_> = (0..16).map(|n| plain.ask(PATH, &body(n))["choices"].clone()).collect();
    plain.end();
    for (prefix_bytes, sessions) in [(0, 16), (64 << 20, 5)] {
        let server = Running::start(|options| {
            (options.prefix_bytes, options.sessions, options.prompt_tokens) = (prefix_bytes, sessions, 16);
        });
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for (n, expected) in expected.iter().enumerate() {
                    let server = &server;
                    scope.spawn(move || {
                        let mut body = body(n);
                        assert_eq!(server.ask(PATH, &body)["choices"], *expected, "{n}");
                        body["stream"] = json!(true);
                        let chunks = server.stream(PATH, &body);
                        let text: String =
                            chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
                        assert_eq!(expected[0]["text"], *text, "{n}");
                    });
                }
            });
        }
        assert_eq!(metric(&server, "prefix_tokens_total") > 0, prefix_bytes > 0);
        server.end();
    }
}

#[test]
fn who_goes_away_is_forgotten() {
    let server = Running::start(|options| options.sessions = 2);
    for stream in [true, false] {
        let before = metric(&server, "cancelled_total");
        // None of them would end before the test's patience does: the first two run, the third waits.
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let body = json!({"prompt": "Alice", "max_tokens": 200, "stream": stream, "logit_bias": {"2": -100}, "n": 8});
                let body = body.to_string();
                let mut client = server.connect();
                client.write_all(head(PATH, body.len(), "").as_bytes()).unwrap();
                client.write_all(body.as_bytes()).unwrap();
                client
            })
            .collect();
        wait(&server, "requests_running", |n| n == 2);
        drop(clients);
        wait(&server, "cancelled_total", |n| n > before);
        wait(&server, "requests_running", |n| n == 0);
        wait(&server, "requests_waiting", |n| n == 0);
    }
    server.ask(PATH, &json!({"prompt": "Alice", "max_tokens": 2}));
}

#[test]
fn a_full_queue_says_so() {
    let server = Running::start(|options| (options.sessions, options.queue) = (1, 2));
    let long =
        json!({"prompt": "Alice", "max_tokens": 200, "stream": true, "logit_bias": {"2": -100}}).to_string();
    let begin = || {
        let mut client = server.connect();
        client.write_all(head(PATH, long.len(), "").as_bytes()).unwrap();
        client.write_all(long.as_bytes()).unwrap();
        client
    };
    let mut first = begin();
    // It has begun, so that it is no longer in the queue.
    first.read_exact(&mut [0; 16]).unwrap();
    let (status, answer) = server.post(PATH, &json!({"prompt": "Alice", "n": 2, "max_tokens": 1}));
    assert!(status == 200 || status == 429, "{answer}");
    let (status, answer) = server.post(PATH, &json!({"prompt": "Alice", "n": 3, "max_tokens": 1}));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("prompt")));
    // Three at once where there is place for two.
    let waiting = [begin(), begin()];
    let refused = std::thread::scope(|scope| {
        let many: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| server.post(PATH, &json!({"prompt": "Alice", "n": 2, "max_tokens": 200})).0)
            })
            .collect();
        many.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(
        refused.contains(&429) && refused.iter().all(|status| [200, 429].contains(status)),
        "{refused:?}"
    );
    drop((first, waiting));
    wait(&server, "requests_running", |n| n == 0);
    server.ask(PATH, &json!({"prompt": "Alice", "max_tokens": 2}));
}

#[test]
fn who_does_not_read_keeps_nobody_waiting() {
    let server = Running::start(|options| options.sessions = 2);
    let body = json!({"prompt": "Alice", "max_tokens": 200, "stream": true, "logprobs": 20, "logit_bias": {"2": -100}}).to_string();
    let mut silent = server.connect();
    silent.write_all(head(PATH, body.len(), "").as_bytes()).unwrap();
    silent.write_all(body.as_bytes()).unwrap();
    for _ in 0..3 {
        server.ask(PATH, &json!({"prompt": "The cat", "max_tokens": 30}));
    }
    drop(silent);
    wait(&server, "requests_running", |n| n == 0);
}

#[test]
fn an_end_comes_with_requests_running() {
    let server = Running::start(|options| options.sessions = 1);
    let body = json!({"prompt": "Alice", "max_tokens": 250, "n": 8, "logit_bias": {"2": -100}}).to_string();
    let mut client = server.connect();
    client.write_all(head(PATH, body.len(), "").as_bytes()).unwrap();
    client.write_all(body.as_bytes()).unwrap();
    wait(&server, "requests_running", |n| n == 1);
    server.end();
}
