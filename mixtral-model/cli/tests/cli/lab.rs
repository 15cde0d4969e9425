//! `mixtral lab`, `mixtral trace`, and `--router` where a model runs.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{demo, mixtral, output, run, run_with_input};

/// The beginning of the held-out text, in a file.
fn text(dir: &tempfile::TempDir, bytes: usize) -> String {
    let path = dir.path().join("text");
    fs::write(&path, &fs::read_to_string(demo().join("heldout.txt")).unwrap()[..bytes]).unwrap();
    path.to_str().unwrap().to_owned()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn routers_in_a_model() {
    let ids = "1,500,600,700,800";
    let own = output(&format!("generate --ids {ids} --print-ids -n 12 -t 0"), &[]);
    let with =
        |router: &str| output(&format!("generate --ids {ids} --print-ids -n 12 -t 0 --router {router}"), &[]);
    assert_eq!(with("top-k:k=2"), own, "the model's own routing by name");
    assert_eq!(with("0-3@top-k:k=2"), own);
    assert_ne!(with("top-k:k=1"), own);
    assert_ne!(with("0@top-k:k=1;1-3@dense"), with("top-k:k=1"));
    let logits = |router: &str| output(&format!("logits --ids {ids}{router}"), &[]);
    assert_eq!(logits(" --router top-k:k=2"), logits(""));
    assert_ne!(logits(" --router top-k:k=1"), logits(""));
    let noisy = |seed: u64| logits(&format!(" --router gaussian-noise(top-k:k=2):std=2.0 --seed {seed}"));
    assert_eq!(noisy(5), noisy(5));
    assert_ne!(noisy(5), noisy(6));
    for (line, said) in [
        ("logits --ids 1,2 --router 4@top-k:k=1", "error: layer: expected a number below 4, found 4\n"),
        ("logits --ids 1,2 --router top-k:k=9", "error: layer 0, router: "),
        ("generate x --router no-such", "error: router, byte 0: expected one of top-k, "),
        (
            "logits --ids 1,2 --seed 3",
            "error: the following required arguments were not provided:\n  --router <SPEC>",
        ),
    ] {
        let found = run(line, &[]);
        assert!(found.err.starts_with(said), "{line}: {}", found.err);
        assert_ne!(found.status, Some(0));
    }
    let warned =
        run(&format!("generate --ids {ids} --print-ids -n 2 -t 0 --router expert-choice:capacity=1.0"), &[]);
    assert!(
        warned.err.starts_with("warning: --router: a token's experts depend on other tokens"),
        "{}",
        warned.err
    );
    let chat = run_with_input(mixtral("chat -t 0 -n 5 --router top-k:k=1", &[]), b"Hello\n");
    assert_eq!(chat.status, Some(0), "{}", chat.err);
    let plain = run_with_input(mixtral("chat -t 0 -n 5", &[]), b"Hello\n");
    assert_ne!(chat.out, plain.out);
}

#[test]
fn one_text_under_several_routers() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir, 3000);
    let specs = "--router top-k:k=2 --router top-k:k=1 --router expert-choice:capacity=1.0 --router 1@dense";
    let line = format!("lab compare --text {{}} --window 128 {specs}");
    let json = parse(&output(&format!("{line} --json"), &[&file]));
    let alone = parse(&output("perplexity --text {} --window 128 --json", &[&file]));
    let rows = json["routers"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    assert_eq!((&json["tokens"], &json["predicted_tokens"]), (&alone["tokens"], &alone["predicted_tokens"]));
    assert_eq!((&json["windows"], &json["interrupted"]), (&json["windows_read"], &Value::Bool(false)));
    assert_eq!((&rows[0]["router"], &rows[1]["router"]), (&Value::Null, &"top-k:k=2".into()));
    let number = |row: &Value, name: &str| row[name].as_f64().unwrap();
    for row in &rows[..2] {
        for name in ["perplexity", "perplexity_low", "perplexity_high"] {
            assert!((number(row, name) / number(&alone, name) - 1.0).abs() < 1e-12, "{name}");
        }
        assert_eq!((number(row, "kl"), number(row, "same_top"), number(row, "drop_rate")), (0.0, 1.0, 0.0));
        assert_eq!(number(row, "experts_per_token"), 2.0);
    }
    let k1 = parse(&output("perplexity --text {} --window 128 --json --router top-k:k=1", &[&file]));
    assert!((number(&rows[2], "perplexity") / number(&k1, "perplexity") - 1.0).abs() < 1e-12);
    assert!(number(&rows[2], "kl") > 0.0 && number(&rows[2], "nll_difference") > 0.0);
    assert_eq!((&rows[3]["locality"], &rows[2]["locality"]), (&"batch".into(), &"token".into()));
    assert!(rows[3]["note"].as_str().unwrap().starts_with("not causal: "));
    // Eight experts of one layer, two of the three others.
    assert_eq!(number(&rows[4], "experts_per_token"), 3.5);

    let csv = output(&format!("{line} --csv"), &[&file]);
    let lines: Vec<_> = csv.lines().collect();
    let names: Vec<_> = rows[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[0].split(',').collect::<Vec<_>>(), names);
    assert!(lines[2].starts_with("\"top-k:k=2\",token,\"\","), "{}", lines[2]);

    let table = output(&line, &[&file]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 8, "{table}");
    assert!(lines[1].starts_with("router ") && lines[1].ends_with("  causal"), "{table}");
    assert!(lines[2].starts_with("the model's own ") && lines[2].ends_with("  yes"), "{table}");
    assert!(lines[5].starts_with("expert-choice:capacity=1.0 ") && lines[5].ends_with("  no"), "{table}");
    assert!(lines[7].starts_with("expert-choice:capacity=1.0: not causal: "), "{table}");
}

#[test]
fn predictions_of_another_engine() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir, 6000);
    let base = dir.path().join("base");
    let base = base.to_str().unwrap();
    let saved = run("perplexity --text {} --window 128 --save-logits {} --json", &[&file, base]);
    assert_eq!(saved.status, Some(0), "{}", saved.err);
    let plain = output("perplexity --text {} --window 128 --llama-cpp --json", &[&file]);
    assert_eq!(saved.out, plain);
    let bytes = fs::read(base).unwrap();
    assert_eq!(&bytes[..8], b"_logits_");
    let itself = parse(&output("perplexity --against {} --json", &[base]));
    assert_eq!(itself["nll_sum"], parse(&plain)["nll_sum"]);
    assert!(itself["against"]["kl"].as_f64().unwrap().abs() < 1e-4);
    let other = output("perplexity --against {} --router top-k:k=1", &[base]);
    for name in [
        "perplexity of the file ",
        "ln of the ratio ",
        "KL divergence, nats ",
        "99.9 % ",
        "same top token, % ",
    ] {
        assert!(other.contains(name), "{other}");
    }
    fs::write(base, &bytes[..bytes.len() - 1]).unwrap();
    let cut = run("perplexity --against {}", &[base]);
    assert_eq!(cut.status, Some(1));
    assert!(cut.err.contains(&format!("expected {} bytes, found", bytes.len())), "{}", cut.err);
}

/// What llama.cpp's own tool printed of the demo with one expert a token, beside predictions that it had written: every digit, but for
/// the last ones of single precision.
#[test]
fn divergences_are_those_of_llama_perplexity() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-perplexity");
    let printed = fs::read_to_string(fixtures.join("one-expert.txt")).unwrap();
    let base = fixtures.join("base.kld");
    let found =
        parse(&output("perplexity --against {} --router top-k:k=1 --json", &[base.to_str().unwrap()]));
    let against = &found["against"];
    let number = |text: &str| text.trim_matches(['±', '%', ' ']).parse::<f64>().unwrap();
    let line = |name: &str| {
        let line = printed.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit_once(": ").unwrap().1.split('±').map(number).collect::<Vec<_>>()
    };
    let near = |name: &str, found: &Value, golden: f64, tolerance: f64| {
        let found = found.as_f64().unwrap();
        assert!((found - golden).abs() <= tolerance, "{name}: {found}, {golden}");
    };
    near("perplexity", &found["perplexity"], line("Mean PPL(Q)  ")[0], 1e-4);
    near("base", &against["perplexity"], line("Mean PPL(base)  ")[0], 1e-6);
    let ratio = line("Mean ln(PPL(Q)/PPL(base))");
    near("ratio", &against["ln_ratio"], ratio[0], 2e-6);
    near("its error", &against["ln_ratio_error"], ratio[1], 2e-6);
    near("correlation", &against["correlation"], line("Cor(")[0] / 100.0, 6e-5);
    let kl = line("Mean    KLD");
    near("kl", &against["kl"], kl[0], 1e-6);
    near("its error", &against["kl_error"], kl[1], 1e-6);
    for (percent, name) in [
        ("100", "Maximum"),
        ("99.9", "99.9%  "),
        ("99", "99.0%  "),
        ("95", "95.0%  "),
        ("90", "90.0%  "),
        ("50", "Median "),
        ("10", "10.0%  "),
        ("5", " 5.0%  "),
        ("1", " 1.0%  "),
        ("0.1", " 0.1%  "),
        ("0", "Minimum"),
    ] {
        near(percent, &against["kl_percentiles"][percent], line(&format!("{name} KLD"))[0], 1e-5);
        let golden = line(&format!("{name} Δp"))[0] / 100.0;
        near(percent, &against["p_difference_percentiles"][percent], golden, 1e-5);
    }
    let same = line("Same top p");
    near("same top", &against["same_top"], same[0] / 100.0, 6e-6);
    near("its error", &against["same_top_error"], same[1] / 100.0, 6e-6);
    let (p, rms) = (line("Mean    Δp"), line("RMS Δp"));
    near("p", &against["p_difference"], p[0] / 100.0, 6e-6);
    near("its error", &against["p_difference_error"], p[1] / 100.0, 6e-6);
    near("rms", &against["p_difference_rms"], rms[0] / 100.0, 6e-6);
    near("its error", &against["p_difference_rms_error"], rms[1] / 100.0, 6e-6);
    // Its own predictions are those of its file.
    let itself = parse(&output("perplexity --against {} --json", &[base.to_str().unwrap()]));
    assert!(itself["against"]["kl"].as_f64().unwrap().abs() < 1e-4);
    assert_eq!(itself["against"]["same_top"], 1.0);
}

#[test]
fn experts_taken_away_and_tried() {
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir, 700);
    let ablated = parse(&output("lab ablate --text {} --window 64 --json", &[&file]));
    let experts = ablated["experts"].as_array().unwrap();
    assert_eq!((experts.len(), &ablated["router"]), (32, &"top-k:k=2".into()));
    let compared = parse(&output(
        "lab compare --text {} --window 64 --json --router 2@steered(top-k:k=2):off=[5]",
        &[&file],
    ));
    let (of_one, of_row) = (&experts[2 * 8 + 5], &compared["routers"][1]);
    for name in ["nll_difference", "kl", "same_top"] {
        assert_eq!(of_one[name], of_row[name], "{name}");
    }
    let table = output("lab ablate --text {} --window 64", &[&file]);
    assert_eq!(table.lines().count(), 6, "{table}");

    let tried = parse(&output("lab regret --text {} --layer 1 --every 40 --json", &[&file]));
    let regrets = tried["regrets"].as_array().unwrap();
    assert!(!regrets.is_empty() && regrets.iter().all(|one| one["regret"].as_f64().unwrap() >= 0.0));
    assert_eq!(regrets.len() as u64, tried["tokens"].as_u64().unwrap());
    let lines = output("lab regret --text {} --layer 1 --every 40", &[&file]);
    assert_eq!(lines.lines().count(), regrets.len() + 2, "{lines}");
    for (line, said) in [
        ("lab regret --text {} --layer 4", "error: layer: expected a number below 4, found 4\n"),
        (
            "lab regret --text {} --layer 1 --every 9999",
            "error: text: expected at least 10000 tokens, found ",
        ),
        (
            "lab ablate --text {} --router 0@top-k:k=1",
            "error: invalid value '0@top-k:k=1' for '--router <SPEC>'",
        ),
        ("perplexity --text {} --llama-cpp", "error: text: expected at least 2048 tokens, found "),
        ("perplexity --text {} --llama-cpp --window 2", "error: window: expected 3 to "),
        ("lab compare --text {} --router top-k:k=2 --window 1", "error: window: expected 2 to "),
    ] {
        let said_by = run(line, &[&file]);
        assert!(said_by.err.starts_with(said), "{line}: {}", said_by.err);
        assert_ne!(said_by.status, Some(0), "{line}");
    }
}

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
    let simulated = parse(&output("trace simulate {} --ranks 4 --json", &[&path("decoded")]));
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
