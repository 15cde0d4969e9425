//! `--memory`: a budget for everything.

use crate::lab::{parse, text};
use crate::{demo, output, run};

#[test]
fn the_same_text_in_less_memory() {
    let demo = demo();
    let model = demo.to_str().unwrap();
    let own = output("generate Alice -n 20 -t 0 -m {}", &[model]);
    // The program takes most of it; experts have what is left.
    let least = least(model);
    for (memory, all) in [(format!("{}", least + (12 << 20)), false), ("1GiB".to_owned(), true)] {
        let said = run("generate Alice -n 20 -t 0 -m {} --memory {}", &[model, &memory]);
        assert_eq!((said.status, &said.out), (Some(0), &own), "{}", said.err);
        assert!(said.err.contains("experts in memory for ") && said.err.contains(" GB read"), "{}", said.err);
        assert!(!all || said.err.contains("lfu-per-layer:age=64"), "{}", said.err);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir, 1500);
    let perplexity = |rest: &str| {
        output(&format!("perplexity --text {{}} --window 64 --json -m {{}}{rest}"), &[&file, model])
    };
    assert_eq!(perplexity(" --memory 2GiB --cache-policy lfu"), perplexity(""));
    let compare = |rest: &str| {
        let csv = output(
            &format!("lab compare --text {{}} --window 64 --csv -m {{}} --router top-k:k=1{rest}"),
            &[&file, model],
        );
        csv.lines().map(|line| line.rsplit_once(',').unwrap().0.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(compare(" --memory 2GiB"), compare(""));
    // The demo that is part of the program has no file to read.
    assert_eq!(output("generate Alice -n 20 -t 0 --memory 1GiB", &[]), own);
}

/// The least budget for the demo, with room for the program to grow while it is tested.
fn least(model: &str) -> u64 {
    let report = parse(&output("inspect {} --memory 1GiB --json", &[model]));
    report["budget"]["least"].as_u64().unwrap()
}

#[test]
fn what_it_costs_is_foretold() {
    let demo = demo();
    let model = demo.to_str().unwrap();
    let report = parse(&output("inspect {} --memory 1GiB --context 512 --json", &[model]));
    let budget = &report["budget"];
    assert_eq!((&budget["budget"], &budget["works"]), (&(1u64 << 30).into(), &true.into()));
    assert_eq!((&budget["resident_experts"], &budget["experts_of_model"]), (&32.into(), &32.into()));
    assert_eq!((&budget["streamed"], &budget["experts"]), (&0.into(), &budget["all_experts"]));
    assert!(budget["disk_bytes_per_second"].as_f64().unwrap() > 0.0);
    let cold = &budget["tokens"][0];
    assert_eq!(
        (&cold["hit_rate"], cold["bytes_read"].as_f64()),
        (&0.0.into(), budget["experts_of_token"].as_f64())
    );
    assert!(report["parameters"].as_u64().unwrap() > 4_000_000);
    let plain = parse(&output("inspect {} --json", &[model]));
    assert!(plain.get("budget").is_none());

    let told = output("inspect {} --memory 1GiB", &[model]);
    for part in [
        "budget      1.07 GB\n",
        "  experts that stay",
        ": 32 of 32\n",
        "disk        ",
        "  0 % of experts in memory: a token reads",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // A trace that is recorded without a budget foretells what a run within one does.
    let dir = tempfile::tempdir().unwrap();
    let (file, trace) = (text(&dir, 600), dir.path().join("it.trace"));
    let (trace, memory) = (trace.to_str().unwrap(), (least(model) + (12 << 20)).to_string());
    output("trace record --text {} --chunk 1 --window 64 -m {} --out {}", &[&file, model, trace]);
    let of = parse(&output("inspect {} --memory {} --trace {} --json", &[model, &memory, trace]));
    let (requests, hits) = (&of["budget"]["trace"]["requests"], &of["budget"]["trace"]["hits"]);
    assert!(requests.as_u64() > hits.as_u64() && hits.as_u64() > Some(0), "{of}");
    let told = output("inspect {} --memory 1GiB --trace {}", &[model, trace]);
    assert!(told.contains(&format!("of {requests} requests")), "{told}");
    for wish in
        ["--cache-prior {} --disk-reads cached", "--cache-prior {} --disk-reads direct --read-ahead on"]
    {
        let line = format!("generate Alice -n 20 -t 0 -m {{}} --memory {{}} {wish}");
        assert_eq!(output(&line, &[model, &memory, trace]), output("generate Alice -n 20 -t 0", &[]));
    }
    let small = output("inspect {} --memory 20MB", &[model]);
    assert!(small.contains("  too small: ") && small.contains("  instead: --memory "), "{small}");
    for (line, said) in [
        ("generate Alice -m {} --memory 20MB", "error: memory: expected at least "),
        (
            "generate Alice -m {} --memory 1GiB --read",
            "error: the argument '--memory <BYTES>' cannot be used with '--read'",
        ),
        (
            "generate Alice -m {} --memory much",
            "error: invalid value 'much' for '--memory <BYTES>': expected a number of bytes",
        ),
        (
            "generate Alice -m {} --cache-policy lru",
            "error: the following required arguments were not provided:\n  --memory <BYTES>",
        ),
        ("generate Alice -m {} --memory 1GiB --cache-policy arc", "error: invalid value 'arc'"),
    ] {
        let refused = run(line, &[model]);
        assert!(refused.err.starts_with(said), "{line}: {}", refused.err);
        assert_eq!(refused.out, "", "{line}");
    }
}
