//! Routing of inputs that other programs were reported to get wrong, with values computed by hand or by others.

use std::fs;

use serde_json::{Value, json};

use crate::route::{route, routed};
use crate::{output, run};

fn load(report: &Value) -> &Value {
    &report["stats"]["load"]
}

#[track_caller]
fn near(found: &Value, expected: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - expected).abs() < 2e-7 * expected.abs().max(1.0), "{found} {expected}");
}

fn with(content: &Value, router: &str, options: &str) -> Value {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content.to_string()).unwrap();
    let line = format!("route --json --logits {{}} --router {{}} {options}");
    let line = line.trim_end();
    serde_json::from_str(&output(line, &[file.path().to_str().unwrap(), router])).unwrap()
}

/// Loads of 3, 4, 4 and 5; padding that all prefers expert 0, and NaN in some of it.
#[test]
fn padding_counts_nowhere() {
    let favourites = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    let row = |(t, e): (usize, usize)| (0..4).map(|i| if i == e { 2.0 + t as f64 } else { 0.0 }).collect();
    let logits: Vec<Vec<f64>> = favourites.iter().copied().enumerate().map(row).collect();
    let mask: Vec<u8> = (0..24).map(|t| u8::from(t < 16)).collect();
    let mut content = json!({ "logits": logits, "mask": mask });
    content["logits"][20] = json!(["nan", "nan", "nan", "nan"]);
    for router in ["deepseek-v3:k=1", "top-k:k=1", "capped(top-k:k=1):places=24"] {
        let report = routed(&content, router);
        let stats = &report["stats"];
        assert_eq!((load(&report), &stats["requested_load"]), (&json!([3, 4, 4, 5]), &json!([3, 4, 4, 5])));
        near(&stats["cv"], 0.5f64.sqrt() / 4.0);
        assert_eq!(stats["max_over_mean"], 1.25);
    }
}

#[test]
fn masked_experts() {
    let five = json!({ "logits": vec![json!([2.0, 1.0, "-inf"]); 5] });
    let report = routed(&five, "capped(top-k:k=1):places=1,overflow=reroute");
    assert_eq!(load(&report), &json!([1, 1, 0]));
    assert_eq!(report["refused"].as_array().unwrap().len(), 3);
    near(&report["stats"]["drop_rate"], f64::from(0.6f32));
    // Twelve tokens, three open experts: as those alone.
    let number = |t: usize, e: usize| json!(((t * 7 + e * 5) % 11) as f64 / 4.0);
    let rows = |experts: usize| -> Vec<Vec<Value>> {
        let masked = |t, e| if e == 3 { json!("-inf") } else { number(t, e) };
        (0..12).map(|t| (0..experts).map(|e| masked(t, e)).collect()).collect()
    };
    for router in ["sinkhorn:k=1", "base"] {
        let four = routed(&json!({ "logits": rows(4) }), router);
        let three = routed(&json!({ "logits": rows(3) }), router);
        let mut expected = load(&three).as_array().unwrap().clone();
        expected.push(json!(0));
        assert_eq!(load(&four), &json!(expected), "{router}");
        assert_eq!(four["assignments"], three["assignments"], "{router}");
    }
}

/// Even over six experts, of which two are null and chosen as often: even it is, by the loss of AdaMoE.
#[test]
fn null_experts_count_in_losses() {
    let chosen = |t: usize, e: usize| e == t || e == (t + 1) % 6;
    let logits: Vec<Vec<f64>> =
        (0..6).map(|t| (0..6).map(|e| if chosen(t, e) { 0.001 } else { 0.0 }).collect()).collect();
    let content = json!({ "logits": logits });
    let inner = routed(&content, "top-k:k=2");
    for router in ["without-nulls(top-k:k=2):experts=4", "renormalized(without-nulls(top-k:k=2):experts=4)"] {
        let report = routed(&content, router);
        assert_eq!(report["losses"], inner["losses"]);
        near(&report["losses"]["load_balance"], 2.0);
        // What is routed is without them.
        assert_eq!(load(&report), &json!([2, 2, 2, 2, 0, 0]));
        assert_eq!(report["assignments"].as_array().unwrap().len(), 8);
    }
}

#[test]
fn places_of_a_decimal_factor() {
    let row = |_| [3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let content = json!({ "logits": (0..50).map(row).collect::<Vec<_>>() });
    let report = routed(&content, "capped(top-k:k=2):factor=1.1");
    assert_eq!(load(&report), &json!([11, 11, 0, 0, 0, 0, 0, 0, 0, 0]));
    near(&report["stats"]["drop_rate"], f64::from(0.78f32));
}

/// Two experts and noise that turns the second token around: `2 Σ f P` of logits 1, 0 and 0, 3 with noise, 1, 0 and 2, 0 without.
#[test]
fn losses_of_noisy_logits() {
    let content = json!({ "logits": [[1.0, 0.0], [2.0, 0.0]], "noise": [[0.0, 0.0], [-2.0, 3.0]] });
    let spec = "gaussian-noise(top-k:k=1,weights=all):std=1";
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (noisy, clean) = ([sigmoid(1.0), sigmoid(-3.0)], [sigmoid(1.0), sigmoid(2.0)]);
    // f is a half for each expert, and so the sum of P a half of 2.
    let cv2 = |p: [f64; 2]| (p[0] + p[1] - 1.0).powi(2);
    for (options, balance, importance) in [
        ("", noisy, clean),
        ("--loss-logits paper", noisy, clean),
        ("--loss-logits noisy", noisy, noisy),
        ("--loss-logits clean", clean, clean),
    ] {
        let report = with(&content, spec, options);
        near(&report["losses"]["load_balance_first_choices"], 1.0);
        near(&report["losses"]["importance_cv2"], cv2(importance));
        let z = |p: f64| (1.0 + (p / (1.0 - p))).ln();
        let logits = if balance == noisy {
            [z(sigmoid(1.0)), z(sigmoid(3.0))]
        } else {
            [z(sigmoid(1.0)), z(sigmoid(2.0))]
        };
        near(&report["losses"]["z"], (logits[0].powi(2) + logits[1].powi(2)) / 2.0);
    }
    // One expert takes both: twice its mean probability.
    let content = json!({ "logits": [[1.0, 0.0], [2.0, 0.0]], "noise": [[1.0, 0.0], [1.0, 0.0]] });
    let balance = |options| with(&content, spec, options)["losses"]["load_balance"].clone();
    near(&balance(""), sigmoid(2.0) + sigmoid(3.0));
    near(&balance("--loss-logits clean"), sigmoid(1.0) + sigmoid(2.0));
    let content = json!({ "logits": [[1.0, 0.0], [2.0, 0.0]], "noise": [[1.0, 0.5], [0.5, 0.5]] });
    let jittered = with(&content, "jitter(top-k:k=1):epsilon=0.5", "");
    near(&jittered["losses"]["load_balance"], sigmoid(1.5) + sigmoid(2.0));
}

#[test]
fn means_weighted_by_tokens() {
    let content = json!({ "logits": [[2.0, 0.0], [1.0, 0.5], [0.0, 3.0]], "sequences": [2, 1] });
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (first, second) = (sigmoid(2.0) + sigmoid(0.5), 2.0 * sigmoid(3.0));
    for (options, expected) in
        [("", (first + second) / 2.0), ("--loss-mean tokens", (2.0 * first + second) / 3.0)]
    {
        let report = with(&content, "top-k:k=1", options);
        near(&report["losses"]["load_balance_per_sequence"], expected);
        near(&report["losses"]["sequence_balance"], expected);
    }
}

#[test]
fn probabilities_are_declared_or_warned_of() {
    let content = json!({ "logits": [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]] });
    let said = route(content.to_string().as_bytes(), "top-k:k=2");
    assert!(said.status == Some(0) && said.err.contains("--given probabilities"), "{said:?}");
    let report = with(&content, "top-k:k=2,weights=all", "--given probabilities");
    let entropy = |p: [f64; 3]| p.iter().map(|p| -p * p.ln()).sum::<f64>();
    near(&report["losses"]["entropy"], (entropy([0.5, 0.25, 0.25]) + entropy([0.1, 0.1, 0.8])) / 2.0);
    assert_eq!(
        (&report["losses"]["z"], &report["losses"]["sequence_balance_sigmoid"]),
        (&json!(null), &json!(null))
    );
    near(&report["assignments"][0]["weight"], 0.5);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content.to_string()).unwrap();
    let path = file.path().to_str().unwrap();
    let table = run("route --logits {} --router top-k:k=1 --given probabilities", &[path]);
    assert!(table.out.contains("not defined") && !table.err.contains("warning"), "{table:?}");
    let sigmoids = with(&content, "deepseek-v3:k=1,normalized=no", "--given sigmoids");
    near(&sigmoids["assignments"][1]["weight"], f64::from(0.8f32));
    fs::write(file.path(), r#"{"logits": [[0.5, 0.25]]}"#).unwrap();
    let said = run("route --logits {} --router top-k:k=1 --given probabilities", &[path]);
    assert!(
        said.status == Some(1) && said.err.contains("expected a sum of 1 for every token, found 0.75"),
        "{said:?}"
    );
    // Ordinary logits are no reason to warn.
    assert!(!route(br#"{"logits": [[1, 2]]}"#, "relu").err.contains("warning"));
}

#[test]
fn depth_and_drops() {
    let depth = json!({ "logits": [[1.0], [5.0], [3.0], [-2.0]] });
    let report = routed(&depth, "expert-choice:places=2,score=sigmoid");
    let tokens: Vec<_> = report["assignments"].as_array().unwrap().iter().map(|a| &a["token"]).collect();
    assert_eq!(tokens, [1, 2]);
    let logits = json!({ "logits": [
        [0.63, -0.13, 0.64], [0.6, -0.54, 0.36], [1.8, 0.95, -0.7],
        [-0.77, -0.62, 0.04], [-1.83, -0.22, -1.25], [-0.23, -0.54, -0.32],
    ] });
    let report = routed(&logits, "capped(top-k:k=2,weights=all):factor=1.0,priority=own-score");
    assert_eq!(report["refused"], json!([{"token": 4, "expert": 2}]));
    let report = with(&logits, "capped(top-k:k=1):factor=1,priority=random", "--seed 4");
    assert!(load(&report).as_array().unwrap().iter().all(|n| n.as_u64() <= Some(2)), "{report}");
}

/// All layers of a file in one call: each as alone, and the loss over all rows.
#[test]
fn several_layers() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.safetensors");
    let trace = trace.to_str().unwrap();
    output("logits --ids 1,1498,315,8 --out {}", &[trace]);
    let of = |line: &str| -> Value {
        serde_json::from_str(&output(
            &format!("route --json --logits {{}} --router top-k:k=2 {line}"),
            &[trace],
        ))
        .unwrap()
    };
    let both = of("--tensor router_logits.0 --tensor router_logits.1");
    let file = fs::read(trace).unwrap();
    let experts = load(&both["layers"][0]).as_array().unwrap().len();
    let (mut f, mut p, mut rows) = (vec![0.0; experts], vec![0.0; experts], 0.0);
    for layer in 0..2 {
        let name = format!("router_logits.{layer}");
        let mut alone = of(&format!("--tensor {name}"));
        alone["tensor"] = json!(name);
        assert_eq!(both["layers"][layer], alone);
        for row in crate::floats(&file, &name).chunks(experts) {
            let exp: Vec<f64> = row.iter().map(|&l| f64::from(l).exp()).collect();
            let total: f64 = exp.iter().sum();
            p.iter_mut().zip(&exp).for_each(|(p, x)| *p += x / total);
            rows += 1.0;
        }
        for a in alone["assignments"].as_array().unwrap() {
            f[a["expert"].as_u64().unwrap() as usize] += 1.0;
        }
    }
    let sum: f64 = f.iter().zip(&p).map(|(f, p)| f * p).sum();
    near(&both["losses"]["load_balance"], experts as f64 * sum / (rows * rows));
    let line = "route --logits {} --router top-k:k=2 --tensor router_logits.0 --tensor router_logits.1";
    let table = output(line, &[trace]);
    assert!(table.contains("all layers") && table.contains("router_logits.1"), "{table}");

    // The vocabulary's logits are not taken for experts' without a word.
    let said = run("route --logits {} --router top-k:k=2", &[trace]);
    assert!(said.status == Some(1) && said.err.contains("--tensor router_logits.0"), "{said:?}");
    let said = run("route --logits {} --router top-k:k=2 --tensor logits", &[trace]);
    assert!(said.status == Some(0) && said.err.contains("those of the vocabulary"), "{said:?}");
    let json = dir.path().join("a.json");
    fs::write(&json, r#"{"logits": [[1, 2]]}"#).unwrap();
    let said = run("route --logits {} --router relu --tensor a --tensor b", &[json.to_str().unwrap()]);
    assert!(said.status == Some(1) && said.err.contains("found JSON"), "{said:?}");
}
