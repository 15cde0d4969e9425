//! `mixtral bench`.

use serde_json::Value;

use crate::{output, run};

fn array(line: &str) -> Vec<Value> {
    let Value::Array(cases) = serde_json::from_str(&output(line, &[])).unwrap() else {
        panic!("{line}: no array")
    };
    cases
}

/// A figure that can be one.
#[track_caller]
fn positive(case: &Value, key: &str) -> f64 {
    let value = case[key].as_f64().unwrap_or_else(|| panic!("{key}: {case}"));
    assert!(value > 0.0 && value.is_finite(), "{key}: {value}");
    value
}

#[test]
fn a_layer() {
    for (kind, dtype, bytes) in [("f32", "f32", 4.0), ("f32", "f16", 2.0), ("bf16", "bf16", 2.0)] {
        let cases = array(&format!(
            "bench --layer 48x80x4x2 --dtype {dtype} --activations {kind} --tokens 1,37 --rounds 1 --json -j 1"
        ));
        assert_eq!(cases.len(), 2);
        for (case, tokens) in cases.iter().zip([1, 37]) {
            assert_eq!(case["case"], "48x80x4x2");
            assert_eq!((&case["dtype"], &case["activations"]), (&dtype.into(), &kind.into()));
            assert_eq!((case["tokens"].as_u64(), case["threads"].as_u64()), (Some(tokens), Some(1)));
            let seconds = positive(case, "seconds");
            let flops = 6.0 * 48.0 * 80.0 * 2.0 * tokens as f64 / 1e9;
            assert!((positive(case, "gflops") * seconds / flops - 1.0).abs() < 1e-6, "{case}");
            let touched = positive(case, "experts_touched");
            assert!(if tokens == 1 { touched == 2.0 } else { touched == 4.0 }, "{case}");
            let weights = touched * 3.0 * 48.0 * 80.0 * bytes / 1e9;
            assert!((positive(case, "gbytes_per_s") * seconds / weights - 1.0).abs() < 1e-6, "{case}");
            let peak = positive(case, "share_of_fma_peak") * positive(case, "peak_gflops");
            assert!((positive(case, "gflops") / peak - 1.0).abs() < 1e-6, "{case}");
            let read = positive(case, "share_of_bandwidth") * positive(case, "read_gbytes_per_s");
            assert!((positive(case, "gbytes_per_s") / read - 1.0).abs() < 1e-6, "{case}");
            assert!(case["tiles"].as_str().unwrap().starts_with("4 x "), "{case}");
        }
    }
    let table = output("bench --layer 48x80x4x2 --tokens 3 --rounds 1", &[]);
    assert!(table.starts_with("bf16 weights, f32 activations, "), "{table}");
    assert!(
        table.contains("\ntiles of exact products: 4 x ") && table.contains("\nlimits: peak "),
        "{table}"
    );
    assert_eq!(table.lines().count(), 5);
}

#[test]
fn a_layer_of_quantised_weights() {
    for (kind, dtype, bits) in [("int8", "q4_k", 4.5), ("int8", "q8_0", 8.5), ("f32", "q6_k", 6.5625)] {
        let cases = array(&format!(
            "bench --layer 256x512x4x2 --dtype {dtype} --activations {kind} --tokens 1,9 --rounds 1 --json -j 1"
        ));
        for case in &cases {
            assert_eq!((&case["dtype"], &case["activations"]), (&dtype.into(), &kind.into()));
            let weights = positive(case, "experts_touched") * 3.0 * 256.0 * 512.0 * bits / 8.0 / 1e9;
            let read = positive(case, "gbytes_per_s") * positive(case, "seconds");
            assert!((read / weights - 1.0).abs() < 1e-6, "{case}");
        }
    }
    for (options, named) in [
        ("--layer 48x80x4x2 --dtype q4_k", "expected widths in whole blocks of q4_k, found 48"),
        (
            "--layer 64x64x4x2 --dtype bf16 --activations int8",
            "expected weights for int8 activations, found bf16",
        ),
        (
            "--layer 256x256x4x2 --dtype q4_k --activations bf16",
            "expected weights for bf16 activations, found q4_k",
        ),
        ("--layer 256x256x4x2 --dtype iq2_s", "iq2_s"),
        ("--layer 256x256x4x2 --dtype q7_k", "q7_k"),
    ] {
        let refused = run(&format!("bench {options} --tokens 1 --rounds 1"), &[]);
        assert_ne!(refused.status, Some(0), "{options}");
        assert!(refused.err.contains(named), "{options}: {}", refused.err);
    }
}

#[test]
fn a_layer_beside_dense_ones() {
    let dir = tempfile::tempdir().unwrap();
    let chart = dir.path().join("chart.svg");
    let chart = chart.to_str().unwrap();
    let table = output("bench --layer 48x80x4x2 --dense --tokens 1,5 --rounds 1 --chart {}", &[chart]);
    for layer in ["48x80x4x2 ", "48x160x1x1 ", "48x320x1x1 "] {
        assert_eq!(table.lines().filter(|line| line.starts_with(layer)).count(), 2, "{table}");
    }
    assert_eq!(std::fs::read_to_string(chart).unwrap().matches("<polyline").count(), 3);
}

#[test]
fn a_model() {
    let passes = array("bench --tokens 1,9 --sessions 1,3 --rounds 2 --json");
    let what =
        |p: &Value| (p["case"].clone(), p["sessions"].as_u64().unwrap(), p["tokens"].as_u64().unwrap());
    let expected = [("prompt", 1, 1), ("prompt", 1, 9), ("together", 1, 1), ("together", 3, 3)];
    assert_eq!(passes.iter().map(what).collect::<Vec<_>>(), expected.map(|(c, s, t)| (c.into(), s, t)));
    for pass in &passes {
        let parts: f64 =
            ["attention", "router", "experts", "head"].iter().map(|part| positive(pass, part)).sum();
        assert!((0.5..=1.001).contains(&parts), "{pass}");
        let touched = positive(pass, "experts_touched");
        assert!((2.0..=8.0).contains(&touched), "{pass}");
        positive(pass, "tokens_per_s");
        positive(pass, "share_of_fma_peak");
        positive(pass, "share_of_bandwidth");
    }
    assert_eq!(output("bench --tokens 2 --sessions 2 --rounds 1", &[]).lines().count(), 6);
}

#[test]
fn what_cannot_be_measured() {
    for (line, reason) in [
        ("bench --layer 4096x14336x8", "expected four numbers"),
        ("bench --layer 0x1x1x1", "expected four numbers"),
        ("bench --layer 99999999999x1x1x1", "expected four numbers"),
        ("bench --layer 8x8x4x5", "expected at most 4 experts a token"),
        ("bench --layer 8x8x4x2 --tokens 0", "--tokens"),
        (
            "bench --layer 8x8x4x2 --dtype f16 --activations bf16",
            "expected weights for bf16 activations, found f16",
        ),
        ("bench --dtype f16", "--layer"),
        ("bench --layer 1048576x1048576x1048576x1", "the memory available"),
        ("bench --layer 8x8x4x2 --tokens 18446744073709551615", "the memory available"),
        ("bench --dense", "--layer"),
        ("bench --layer 8x8x4x2 --chart x.svg", "--dense"),
        ("bench --activations f8", "expected one of f32, bf16, int8, found \"f8\""),
        ("bench --tokens 99999 --sessions 1", "--tokens: expected at most 4096, the model's positions"),
        ("bench --tokens 18446744073709551615 --sessions 1", "the model's positions"),
        ("bench --tokens 1 --sessions 18446744073709551615", "MB of memory hold"),
    ] {
        let said = run(line, &[]);
        assert_ne!(said.status, Some(0), "{line}");
        assert!(said.err.contains(reason) && said.out.is_empty(), "{line}: {}", said.err);
        assert!(!said.err.contains("panicked"), "{line}: {}", said.err);
    }
}
