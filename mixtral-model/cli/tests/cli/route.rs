//! `mixtral route`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{json as parse, mixtral, output, run, run_with_input};

/// Runs a router on a file of this content.
pub(crate) fn route(content: &[u8], router: &str) -> crate::Said {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    run("route --json --logits {} --router {}", &[file.path().to_str().unwrap(), router])
}

#[track_caller]
pub(crate) fn routed(content: &Value, router: &str) -> Value {
    let said = route(content.to_string().as_bytes(), router);
    assert_eq!(said.status, Some(0), "{router}: {}", said.err);
    serde_json::from_str(&said.out).unwrap()
}

/// Pairs of token, expert and weight as they stand.
fn assignments(report: &Value) -> Vec<(u64, u64, f32)> {
    let list = report["assignments"].as_array().unwrap();
    list.iter()
        .map(|a| {
            let weight = a["weight"].to_string().parse().unwrap();
            (a["token"].as_u64().unwrap(), a["expert"].as_u64().unwrap(), weight)
        })
        .collect()
}

/// Softmax or sigmoid, sums and divisions of two implementations, none of which is off by more than some units of 2⁻²⁴.
const TOLERANCE: f32 = 4e-6;

#[test]
fn assignments_are_those_of_transformers() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../moe-router/tests/fixtures/transformers.json");
    let fixture = parse(&path);
    type SpecOf = fn(&Value) -> String;
    let groups: [(&str, SpecOf); 6] = [
        ("mixtral", |s| format!("top-k:k={}", s["top_k"])),
        ("jamba", |s| format!("top-k:k={},weights=all", s["top_k"])),
        ("deepseek_v3", |s| {
            let normalized = if s["norm_topk_prob"] == true { "yes" } else { "no" };
            format!(
                "deepseek-v3:k={},groups={},kept={},normalized={normalized},scale={}",
                s["top_k"], s["n_group"], s["topk_group"], s["routed_scaling_factor"]
            )
        }),
        ("ernie4_5_moe", |s| format!("ernie-4.5:k={},floor={}", s["top_k"], s["norm_min"])),
        ("dbrx", |s| match &s["norm_p"] {
            Value::Null => format!("dbrx:k={}", s["top_k"]),
            p => format!("dbrx:k={},p={p}", s["top_k"]),
        }),
        ("phimoe_eval", |s| format!("sparse-mixer:epsilon={}", s["jitter_eps"])),
    ];
    let mut compared = 0;
    for (group, spec) in groups {
        let cases = fixture["groups"][group]["cases"].as_array().unwrap();
        let clear = |case: &&Value| {
            ["exact_tie_tokens", "near_tie_tokens"]
                .iter()
                .all(|flag| case[flag].as_array().is_none_or(Vec::is_empty))
        };
        for case in cases.iter().filter(clear).take(3) {
            let mut content = json!({"logits": case["inputs"]["logits"]});
            if let Some(bias) = case["inputs"].get("e_score_correction_bias") {
                content["bias"] = bias.clone();
            }
            let report = routed(&content, &spec(&case["settings"]));
            let ids = case["outputs"]["ids"].as_array().unwrap();
            let weights = case["outputs"]["weights"].as_array().unwrap();
            let expected = (0u64..).zip(ids.iter().zip(weights)).flat_map(|(t, (ids, weights))| {
                let pair =
                    move |(e, w): (&Value, &Value)| (t, e.as_u64().unwrap(), w.as_f64().unwrap() as f32);
                let mut pairs: Vec<_> =
                    ids.as_array().unwrap().iter().zip(weights.as_array().unwrap()).map(pair).collect();
                pairs.sort_by_key(|pair| pair.1);
                pairs
            });
            let mut found = assignments(&report);
            // DeepSeek's order within a token is not promised by the reference.
            found.sort_by_key(|pair| (pair.0, pair.1));
            let expected: Vec<_> = expected.collect();
            assert_eq!(found.len(), expected.len(), "{}", case["name"]);
            for (found, expected) in found.iter().zip(&expected) {
                let near = (found.2 - expected.2).abs() <= TOLERANCE * expected.2.abs();
                assert!(
                    (found.0, found.1) == (expected.0, expected.1) && near,
                    "{}: {found:?} {expected:?}",
                    case["name"]
                );
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 18);
}

#[test]
fn sequences_draw_numbers_of_their_own() {
    let alone = json!({ "logits": vec![vec![0; 4]; 24], "sequences": vec![1; 24] });
    for spec in ["random:k=1", "gaussian-noise(top-k:k=1):std=1"] {
        let load = &routed(&alone, spec)["stats"]["load"];
        let idle = load.as_array().unwrap().iter().filter(|n| **n == json!(0)).count();
        assert_eq!(idle, 0, "{spec}: {load}");
    }
}

#[test]
fn the_report_in_full() {
    // Two tokens and padding; both want expert 1, which has one place; the second token is surer of it.
    let content = json!({
        "logits": [[0.0, 1.0, "-inf"], [0.0, 2.0, "-inf"], [9.0, 9.0, 9.0]],
        "mask": [1, true, 0], "token_ids": [5, 6, 0], "sequences": [3],
    });
    let spec = "capped( top-k: k=1, weights=all ): places=1, priority=score";
    let report = routed(&content, spec);
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let found = assignments(&report);
    assert_eq!((found.len(), found[0].0, found[0].1), (1, 1, 1));
    assert!((found[0].2 - sigmoid(2.0)).abs() < 1e-6);
    assert_eq!(report["router"], "capped(top-k:k=1,weights=all):places=1,priority=score");
    assert_eq!(report["refused"], json!([{"token": 0, "expert": 1}]));
    for (key, value) in [
        ("tokens", json!(3)),
        ("padding", json!(1)),
        ("sequences", json!(1)),
        ("experts", json!(3)),
        ("locality", json!("batch")),
    ] {
        assert_eq!(report[key], value, "{key}");
    }
    let stats = &report["stats"];
    assert_eq!((&stats["load"], &stats["requested_load"]), (&json!([0, 1, 0]), &json!([0, 2, 0])));
    assert_eq!(
        (&stats["drop_rate"], &stats["idle"], &stats["max_over_mean"]),
        (&json!(0.5), &json!(2), &json!(3.0))
    );
    // Every choice is expert 1's, so that E Σ f P is 3 P of it.
    let p = f64::from(sigmoid(1.0) + sigmoid(2.0)) / 2.0;
    let losses = report["losses"].as_object().unwrap();
    assert!((losses["load_balance"].as_f64().unwrap() - 3.0 * p).abs() < 1e-6, "{losses:?}");
    let names: Vec<&str> = losses.keys().map(String::as_str).collect();
    assert_eq!(names.len(), 8);
    // Every loss is explained.
    let help = output("route --help", &[]);
    names.iter().for_each(|name| assert!(help.contains(name), "{name}"));

    // The canonical spec, bias included, is the same router.
    let biased = json!({"logits": [[0.0, 1.0, 0.5], [0.3, 0.2, 0.1]], "bias": [0.0, -0.5, 0.25]});
    let first = routed(&biased, "deepseek-v3:k=1");
    let without = json!({"logits": biased["logits"]});
    assert_eq!(routed(&without, first["router"].as_str().unwrap()), first);
    assert_ne!(routed(&without, "deepseek-v3:k=1")["assignments"], first["assignments"]);
}

#[test]
fn the_table() {
    let mut command = mixtral("route --logits - --router top-k:k=1", &[]);
    command.env("NO_COLOR", "1");
    let said = run_with_input(command, br#"{"logits": [[0.0, 1.0], [0.0, 3.0], [1.0, 0.0]]}"#);
    let lines: Vec<Vec<&str>> = said.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let has =
        |words: &[&str]| assert!(lines.iter().any(|line| line.starts_with(words)), "{words:?}: {said:?}");
    has(&["router", "top-k:k=1"]);
    has(&["locality", "token:"]);
    has(&["0", "1", "1", "1.0000"]);
    has(&["1", "2", "2", "2.0000"]);
    has(&["all", "3", "3"]);
    has(&["max/mean", "1.3333"]);
    has(&["dropped", "0", "of", "3", "(0.00%)"]);
    has(&["load_balance"]);
}

#[test]
fn the_list() {
    let list: Vec<Value> = serde_json::from_str(&output("route --list --json", &[])).unwrap();
    let text = output("route --list", &[]);
    assert!(list.len() > 30, "{}", list.len());
    for entry in list {
        for key in ["name", "about", "example", "locality"] {
            assert!(text.contains(entry[key].as_str().unwrap()), "{entry}");
        }
        for setting in entry["settings"].as_array().unwrap() {
            assert!(text.contains(setting["about"].as_str().unwrap()), "{setting}");
            let only = setting["only"].as_str().map(|when| format!("; only {when})"));
            assert!(only.is_none_or(|only| text.contains(&only)), "{setting}");
        }
    }
}

#[test]
fn traces_of_the_model_are_logits_too() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.safetensors");
    let trace = trace.to_str().unwrap();
    output("logits --ids 1,1498,315 --out {}", &[trace]);
    let text = output("route --json --logits {} --tensor router_logits.1 --router top-k:k=2", &[trace]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let file = fs::read(trace).unwrap();
    let found: Vec<u32> = assignments(&report).iter().map(|a| a.1 as u32).collect();
    assert_eq!(found, crate::ids(&file, "experts.1"));
    let weights: Vec<f32> = assignments(&report).iter().map(|a| a.2).collect();
    assert_eq!(weights, crate::floats(&file, "weights.1"), "every weight reads back to the same f32");
}

#[test]
fn errors() {
    let mut failures = vec![];
    for (content, router, message) in [
        ("", "relu", "EOF while parsing"),
        ("{}", "relu", "missing field `logits`"),
        ("[]", "relu", "invalid type: sequence, expected an object {\"logits\": [[...]], ...}"),
        (
            "[[[1, 2]], null, null, null, null, null, null, null, null]",
            "relu",
            "expected an object {\"logits\"",
        ),
        ("7", "relu", "invalid type: integer `7`, expected an object {\"logits\": [[...]], ...}"),
        (
            r#"{"logits": [[1, 2], [3, 1e39]]}"#,
            "relu",
            "logits: row 1, column 1: expected a number of f32, found 1e39",
        ),
        (
            r#"{"logits": [[1, 2]], "noise": [[-3.5e38, 1]]}"#,
            "relu",
            "noise: row 0, column 0: expected a number of f32, found -3.5e38",
        ),
        (
            r#"{"logits": [[1, 2]], "bias": [0, 1e40]}"#,
            "afmoe:k=1",
            "bias: entry 1: expected a number of f32, found 1e40",
        ),
        (r#"{"logits": []}"#, "relu", "logits: expected at least one token and one expert, found [0, 0]"),
        (r#"{"logits": [[], []]}"#, "relu", "found [2, 0]"),
        (r#"{"logits": [[1, 2], [3]]}"#, "relu", "logits: row 1: expected 2 numbers as in row 0, found 1"),
        (
            r#"{"logits": [[[1, 2, 3], [4, 5, 6]]]}"#,
            "relu",
            "logits: expected a matrix of numbers, found shape [1, 2, 3]",
        ),
        (r#"{"logits": [[1, 2]], "bias": [[1], 2]}"#, "relu", "invalid type: sequence, expected a number"),
        (r#"{"logits": [[1, null]]}"#, "relu", "expected a number, \"nan\", \"inf\" or \"-inf\""),
        (r#"{"logits": [[1, "x"]]}"#, "relu", "invalid value: string \"x\""),
        (r#"{"logits": [[1, 2]], "logit": 1}"#, "relu", "unknown field `logit`"),
        (r#"{"logits": [[1, 2]], "mask": [2]}"#, "relu", "1 for a real token or 0 for padding"),
        (r#"{"logits": [[1, 2]], "mask": [1, 1]}"#, "relu", "mask: expected 1 entries, one a token, found 2"),
        (
            r#"{"logits": [[1, 2]], "token_ids": []}"#,
            "hash",
            "token_ids: expected 1 entries, one a token, found 0",
        ),
        (r#"{"logits": [[1, 2]], "token_ids": [-1]}"#, "hash", "invalid value: integer `-1`"),
        (r#"{"logits": [[1, 2]]}"#, "hash", "expected token ids in the input, found none"),
        (
            r#"{"logits": [[1, 2]], "sequences": [2]}"#,
            "relu",
            "lengths that sum to the 1 tokens, found a sum of 2",
        ),
        (
            r#"{"logits": [[1, 2]], "bias": [1, 2]}"#,
            "relu",
            "expected a router with the setting bias, found relu",
        ),
        (
            r#"{"logits": [[1, 2]], "bias": [1]}"#,
            "afmoe:k=1",
            "bias: expected 2 entries, one an expert, found 1",
        ),
        (r#"{"logits": [[1, 2]], "bias": ["nan", 1]}"#, "afmoe:k=1", "expected finite numbers, found NaN"),
        (
            r#"{"logits": [[1, 2]]}"#,
            "learned-noise(relu)",
            "noise logits: expected 2 numbers a token, found none",
        ),
        (r#"{"logits": [[1, 2]], "positions": [-1]}"#, "relu", "invalid value: integer `-1`"),
        (
            r#"{"logits": [[1, 2]], "positions": []}"#,
            "relu",
            "positions: expected 1 entries, one a token, found 0",
        ),
        (
            r#"{"logits": [[1, 2]], "sequence_ids": [1, 2]}"#,
            "relu",
            "sequence_ids: expected 1 entries, one a sequence, found 2",
        ),
        (
            r#"{"logits": [[1, 2]], "noise": []}"#,
            "relu",
            "noise: expected 1 rows of some columns, found [0, 0]",
        ),
        (
            r#"{"logits": [[1, 2]], "noise": [[]]}"#,
            "relu",
            "noise: expected 1 rows of some columns, found [1, 0]",
        ),
        (
            r#"{"logits": [[1, 2]], "noise": [[1]]}"#,
            "jitter(relu):epsilon=0.1",
            "noise: expected 2 numbers a token, found 1",
        ),
        (
            r#"{"logits": [[1, 2]], "noise_logits": [[1]]}"#,
            "relu",
            "noise_logits: expected [1, 2], found [1, 1]",
        ),
        (r#"{"logits": [[1, 2]]}"#, "top-k:k=3", "expected at least 3 experts, found 2"),
        (r#"{"logits": [[1, "nan"]]}"#, "dense", "expected a finite weight, found NaN"),
        (r#"{"logits": [["inf", 0]]}"#, "top-k:k=1,weights=all", "expected a finite weight, found NaN"),
    ] {
        let said = route(content.as_bytes(), router);
        if said.status != Some(1) || !said.err.contains(message) || !said.out.is_empty() {
            failures.push(format!("{content} {router}: {said:?}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");

    for (line, message) in [
        ("route", "--logits"),
        ("route --logits x", "--router"),
        ("route --list --router relu", "cannot be used with"),
        ("route --logits x --router top-k", "byte 5: expected the setting k="),
        ("route --logits x --router capped(top-k:k=two)", "byte 15: expected a whole number, found \"two\""),
    ] {
        let said = run(line, &[]);
        assert!(said.status == Some(2) && said.err.contains(message), "{line}: {said:?}");
    }
    let said = run("route --logits no/such/file --router relu", &[]);
    assert!(said.status == Some(1) && said.err.contains("no/such/file: No such file"), "{said:?}");
}

/// Tokens whose sigmoids all are 0 in f64.
#[test]
fn losses_of_logits_far_below_zero() {
    let report = routed(&json!({"logits": [[-1000, -1000]]}), "top-k:k=1");
    assert_eq!(report["losses"]["sequence_balance_sigmoid"], 1.0);
    assert_eq!(report["losses"]["sequence_balance"], 1.0);
}

#[test]
fn masked_logits_are_routed() {
    let report = routed(&json!({"logits": [["-inf", 1, "-inf"], [1, "-inf", 2]]}), "top-k:k=2");
    let expected: Vec<(u64, u64)> = vec![(0, 1), (1, 2), (1, 0)];
    let found = assignments(&report);
    assert_eq!(found.iter().map(|a| (a.0, a.1)).collect::<Vec<_>>(), expected);
    assert_eq!(found[0].2, 1.0);
    let report = routed(&json!({"logits": [[1, "-inf", "-inf", "-inf"]]}), "sparse-mixer");
    assert_eq!(assignments(&report), [(0, 0, 1.0)]);
    // Nothing is open: no expert, and no loss.
    let report = routed(&json!({"logits": [["-inf", "-inf"]]}), "dense");
    assert_eq!((assignments(&report).len(), &report["losses"]["z"]), (0, &json!(0.0)));
}

/// Each layer draws its own numbers, and the same each time.
#[test]
fn draws_are_of_a_layer() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), json!({ "logits": vec![vec![0; 8]; 16] }).to_string()).unwrap();
    let drawn = |line: &str| {
        output(
            &format!("route --json --logits {{}} --router random:k=2{line}"),
            &[file.path().to_str().unwrap()],
        )
    };
    assert_eq!(drawn(""), drawn(" --layer 0"));
    assert_eq!(drawn(" --layer 3"), drawn(" --layer 3"));
    assert_ne!(drawn(" --layer 3"), drawn(""));
    assert_ne!(drawn(" --layer 3"), drawn(" --layer 4"));
    let said = run("route --logits x --router relu --layer -1", &[]);
    assert_eq!(said.status, Some(2), "{said:?}");
}

#[test]
fn losses_that_are_no_numbers_are_words() {
    // Routed by token id, so that the logits need not be numbers.
    let report = routed(&json!({"logits": [["nan", 1.0]], "token_ids": [3]}), "hash");
    assert_eq!(report["losses"]["z"], "nan");
}
