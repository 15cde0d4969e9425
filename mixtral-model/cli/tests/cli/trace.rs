//! `mixtral trace`.

use std::fs;

use serde_json::Value;

use crate::lab::{parse, text};
use crate::{output, run};

/// Recording, what is in a trace, and routing by it.
#[test]
fn traces() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir, 4000);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let record = |name: &str, rest: &str| {
        let line = format!("trace record --text {{}} --out {{}} --window 128{rest}");
        let said = run(&line, &[&file, &path(name)]);
        assert_eq!((said.status, &*said.out), (Some(0), ""), "{}", said.err);
        said.err
    };
    let said = record("own", "");
    let found = parse(&output("perplexity --text {} --window 128 --json", &[&file]));
    let perplexity = format!("{:.4}", found["perplexity"].as_f64().unwrap());
    assert!(said.ends_with(&format!("perplexity {perplexity}\n")), "{said}");

    let stats = parse(&output("trace stats {} --json", &[&path("own")]));
    let tokens = found["predicted_tokens"].as_u64().unwrap();
    assert_eq!((&stats["tokens"], &stats["prefill_tokens"]), (&tokens.into(), &tokens.into()));
    assert_eq!((&stats["model"], &stats["router"]), (&"built-in demo".into(), &Value::Null));
    assert_eq!(stats["checkpoint"].as_str().unwrap().len(), 64);
    for layer in stats["layers"].as_array().unwrap() {
        assert_eq!((&layer["experts"], &layer["pairs"]), (&8.into(), &(2 * tokens).into()));
        let load: u64 = layer["load"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(load, 2 * tokens);
    }
    assert!(output("trace stats {}", &[&path("own")]).contains("layer  experts/token  dropped"));

    record("one", " --router 2@top-k:k=1");
    let diff = parse(&output("trace diff {} {} --json", &[&path("own"), &path("one")]));
    assert_eq!(diff["first_difference"]["layer"], 2);
    assert_eq!(diff["layers"][0]["same_experts"], diff["layers"][0]["tokens"]);
    assert_eq!(diff["layers"][2]["same_experts"], 0);
    let same = output("trace diff {} {}", &[&path("own"), &path("own")]);
    assert!(same.starts_with("every token has the same experts in every layer\n"), "{same}");

    let replayed = output("trace replay {} --text {} --window 128", &[&path("own"), &file]);
    assert!(replayed.starts_with(&format!("perplexity {perplexity}, ")), "{replayed}");
    let live =
        output("trace replay {} --text {} --window 128 --weights live --chunk 1", &[&path("own"), &file]);
    assert!(live.starts_with(&format!("perplexity {perplexity}, ")), "{live}");
    fs::write(path("other"), fs::read_to_string(&file).unwrap().replace("Catherine", "Isabella")).unwrap();
    let other = run("trace replay {} --text {} --window 128", &[&path("own"), &path("other")]);
    assert!(other.err.contains("as it was recorded, found token "), "{}", other.err);
    let elsewhere = run("trace replay {} --text {} --window 200", &[&path("own"), &file]);
    assert_eq!(elsewhere.status, Some(1));
    assert!(
        elsewhere.err.contains("expected position 127 of sequence 0 in layer 0, found no such token"),
        "{}",
        elsewhere.err
    );

    record("decoded", " --chunk 1");
    let simulated = parse(&output(
        "trace simulate {} --ranks 4 --policy lru --policy lru-per-layer --policy lfu --policy lfu-per-layer --policy least-stale --json",
        &[&path("decoded")],
    ));
    let caches = simulated["caches"].as_array().unwrap();
    assert_eq!(caches.len(), 15, "five policies of three sizes");
    for cache in caches {
        assert_eq!(cache["requests"].as_u64().unwrap(), 2 * 4 * tokens);
        let share = cache["share_of_bound"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share), "{cache}");
    }
    assert_eq!(simulated["placements"].as_array().unwrap().len(), 3);
    let table = output("trace simulate {} --cache 8,16 --policy lru", &[&path("decoded")]);
    assert_eq!(table.lines().count(), 3, "{table}");
    // What a capacity would turn away is what it turns away.
    let swept = parse(&output("trace simulate {} --capacity 0.5,8 --json", &[&path("own")]));
    record("capped", " --router capped(top-k:k=2):factor=0.5");
    let capped = parse(&output("trace stats {} --json", &[&path("capped")]));
    assert_eq!(swept["capacities"][1]["dropped"], 0);
    assert_eq!(swept["capacities"][0]["requested"], 2 * 4 * tokens);
    let first = &capped["layers"][0];
    assert!(
        first["refused"].as_u64().unwrap() > 0
            && swept["capacities"][0]["dropped"].as_u64() > first["refused"].as_u64()
    );
    let none = run("trace simulate {} --capacity 0", &[&path("own")]);
    assert!(none.err.contains("expected a number above 0"), "{}", none.err);

    let mut bytes = fs::read(path("own")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path("damaged"), bytes).unwrap();
    for line in
        ["trace stats {}", "trace replay {} --text README.md", "trace simulate {}", "trace diff {} {}"]
    {
        let values = vec![path("damaged"); line.matches("{}").count()];
        let said = run(line, &values.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(said.status, Some(1), "{line}");
        assert!(
            said.err.contains("damaged: byte ") && said.err.contains("with the sum"),
            "{line}: {}",
            said.err
        );
    }
    let no_trace = run("trace stats {}", &[&file]);
    assert!(no_trace.err.contains("byte 0: expected a route trace, found"), "{}", no_trace.err);
}

/// A spec names a trace, in `route` as in a model; foreign lists of experts come that way too.
#[test]
fn a_trace_as_a_router() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir, 1500);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run("trace record --text {} --out {} --window 64 --router top-k:k=1", &[&file, &path("one")]);
    let perplexity =
        |rest: &str| output(&format!("perplexity --text {{}} --window 64 --json{rest}"), &[&file]);
    let value = |text: &str| parse(text)["perplexity"].as_f64().unwrap();
    let replay = format!(" --router replay:trace={}", path("one"));
    assert_eq!(value(&perplexity(&replay)), value(&perplexity(" --router top-k:k=1")));
    // Half of the layers as recorded, the others the model's own.
    let half = format!(" --router 0-1@replay:trace={}", path("one"));
    assert_eq!(value(&perplexity(&half)), value(&perplexity(" --router 0-1@top-k:k=1")));
    let missing = run("perplexity --text {} --router replay:trace=none", &[&file]);
    assert!(missing.err.contains("expected a route trace that can be read, found none: "), "{}", missing.err);

    // A path with all that ends something elsewhere.
    let odd = path("a;b@c,d (1).trace");
    fs::copy(path("one"), &odd).unwrap();
    for router in [format!("replay:trace=\"{odd}\""), format!("0-1@replay:trace=\"{odd}\";2-3@top-k:k=1")] {
        let found = output("perplexity --text {} --window 64 --json --router {}", &[&file, &router]);
        assert_eq!(value(&found), value(&perplexity(" --router top-k:k=1")), "{router}");
    }
    // What a replay is worth depends on what was recorded.
    let table = output(
        &format!("lab compare --text {{}} --window 64{replay} --router expert-choice:capacity=1.0"),
        &[&file],
    );
    assert!(
        table.contains("routed by a trace: the figure is as causal as the router that was recorded"),
        "{table}"
    );
    let empty = run("perplexity --text {} --router {}", &[&file, "0-1@top-k:k=1;"]);
    assert!(empty.err.ends_with("found nothing\n"), "{}", empty.err);

    // Given experts, [T, layers, k] = [[[2, 0]]], with weights from the logits at hand.
    fs::write(path("ids.csv"), "0,2\n0,0\n").unwrap();
    let convert = "trace convert {} --out {} --from llama.cpp --experts 3 --layers 1 --choices 2";
    let said = run(convert, &[&path("ids.csv"), &path("ids.trace")]);
    assert_eq!((said.status, &*said.out), (Some(0), ""), "{}", said.err);
    assert!(said.err.contains("weights=none"), "{}", said.err);
    fs::write(path("logits.json"), "{\"logits\": [[2.0, 1.0, 0.5]]}").unwrap();
    let route = |weights: &str| {
        let router = format!("replay:trace={}{weights}", path("ids.trace"));
        run("route --logits {} --router {} --json", &[&path("logits.json"), &router])
    };
    let found = parse(&route(",weights=live").out);
    let choices = found["assignments"].as_array().unwrap();
    let experts: Vec<_> = choices.iter().map(|choice| choice["expert"].as_u64().unwrap()).collect();
    let weights: Vec<_> = choices.iter().map(|choice| choice["weight"].as_f64().unwrap()).collect();
    assert_eq!(experts, [2, 0]);
    assert!(
        (weights[0] - 0.18242552380635632).abs() < 1e-7 && (weights[1] - 0.8175744761936437).abs() < 1e-7
    );
    let recorded = route("");
    assert_eq!(recorded.status, Some(1));
    assert!(recorded.err.contains("weights"), "{}", recorded.err);
}

#[test]
fn other_formats() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir, 1500);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run("trace record --text {} --out {} --window 64", &[&file, &path("own")]);
    let list = output("trace convert --list", &[]);
    for format in [
        "megatron",
        "npy",
        "prime-rl",
        "sglang",
        "vllm",
        "bigmoeonedge",
        "lattice",
        "moe-balance",
        "llama.cpp",
    ] {
        assert!(list.contains(&format!("{format}: ")), "{format}");
    }
    let to = run("trace convert {} --out {} --to moe-balance", &[&path("own"), &path("lines")]);
    assert_eq!((to.status, &*to.out), (Some(0), ""), "{}", to.err);
    assert!(to.err.contains("lost:\n") && to.err.contains("Token ids."), "{}", to.err);
    let first = fs::read_to_string(path("lines")).unwrap();
    assert!(parse(first.lines().next().unwrap())["topk_weights"].is_array(), "{first}");
    let back = run(
        "trace convert {} --out {} --from moe-balance --experts 8 --layers 4",
        &[&path("lines"), &path("back")],
    );
    assert_eq!(back.status, Some(0), "{}", back.err);
    let load = |trace: &str| {
        let stats = parse(&output("trace stats {} --json", &[&path(trace)]));
        stats["layers"].as_array().unwrap().iter().map(|layer| layer["load"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(load("back"), load("own"));
    // Token ids are lost on the way: that is no difference.
    let first = path("first");
    fs::write(&first, &fs::read_to_string(&file).unwrap()[..60]).unwrap();
    run("trace record --text {} --out {} --window 64", &[&first, &path("short")]);
    run("trace convert {} --out {} --to prime-rl", &[&path("short"), &path("ids")]);
    run("trace convert {} --out {} --from prime-rl --experts 8", &[&path("ids"), &path("again")]);
    let same = output("trace diff {} {}", &[&path("short"), &path("again")]);
    assert!(same.starts_with("every token has the same experts in every layer\n"), "{same}");
    let one = run("trace convert {} --out {} --to npy --sequence 1", &[&path("own"), &path("one.npy")]);
    assert_eq!(one.status, Some(0), "{}", one.err);
    assert!(fs::read(path("one.npy")).unwrap().starts_with(b"\x93NUMPY"));
    for (line, said) in [
        ("trace convert {} --out {} --to npy", "sequences: expected one, or one to be named, found several"),
        ("trace convert {} --out {}", "--from <FORMAT>"),
        (
            "trace convert {} --out {} --from megatron --experts 8",
            "line 1: expected a line of a router trace",
        ),
        ("trace convert {} --out {} --to trees", "format: expected one of megatron, npy, "),
        ("trace convert {} --out {} --to npy --experts 8", "cannot be used with"),
    ] {
        let refused = run(line, &[&path("own"), &path("none")]);
        assert_ne!(refused.status, Some(0), "{line}");
        assert!(refused.err.contains(said), "{line}: {}", refused.err);
        assert!(!dir.path().join("none").exists(), "{line}");
    }
}
