//! `mixtral lab`, and `--router` and `--gates` where a model runs.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{demo, mixtral, output, run, run_with_input};

/// The beginning of the held-out text, in a file.
pub(crate) fn text(dir: &tempfile::TempDir, bytes: usize) -> String {
    let path = dir.path().join("text");
    fs::write(&path, &fs::read_to_string(demo().join("heldout.txt")).unwrap()[..bytes]).unwrap();
    path.to_str().unwrap().to_owned()
}

pub(crate) fn parse(text: &str) -> Value {
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
fn gates_of_a_file() {
    let ids = "1,500,600,700,800";
    let own = demo().join("model.safetensors");
    let logits = |gates: &str| run(&format!("logits --ids {ids} --gates {{}}"), &[gates]);
    let said = logits(own.to_str().unwrap());
    assert_eq!(said.out, output(&format!("logits --ids {ids}"), &[]));
    assert!(said.err.starts_with("gates of 4 of 4 layers from "), "{}", said.err);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gates.safetensors");
    let write = |experts: usize| {
        let bytes: Vec<u8> =
            (0..experts * 256).flat_map(|i| ((i * 37 % 101) as f32 * 0.01).to_le_bytes()).collect();
        let tensor =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![experts, 256], &bytes)
                .unwrap();
        let name = "model.layers.2.block_sparse_moe.gate.weight";
        fs::write(&path, safetensors::serialize([(name, tensor)], None).unwrap()).unwrap();
    };
    write(8);
    let other = logits(path.to_str().unwrap());
    assert!(other.err.starts_with("gates of 1 of 4 layers from "), "{}", other.err);
    assert_ne!(other.out, said.out);
    write(7);
    let refused = logits(path.to_str().unwrap());
    assert_eq!((refused.status, &*refused.out), (Some(1), ""));
    assert!(
        refused.err.contains("layers.2.block_sparse_moe.gate.weight: expected shape [8, 256]"),
        "{}",
        refused.err
    );
    let none = logits("README.md");
    assert_eq!(none.status, Some(1), "{}", none.err);
}

/// The page needs no other file, and is the same bytes whatever computes it; the picture of the project's own page is what the command draws.
#[test]
fn a_report() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let verse = root.join("docs/texts/verse.txt");
    let report = |out: &str, rest: &str| {
        let line = format!("lab report --text {{}} --out {{}}{rest}");
        let said = run(&line, &[verse.to_str().unwrap(), &path(out)]);
        assert_eq!((said.status, &*said.out), (Some(0), ""), "{}", said.err);
        assert!(said.err.ends_with("index.html, and 6 pictures\n"), "{}", said.err);
    };
    report("one", " --shown 66 -j 1 --router capped(top-k:k=2):factor=0.7");
    report("two", " --shown 66 -j 3 --router capped(top-k:k=2):factor=0.7 --backend portable");
    let read = |at: &str| fs::read_to_string(path(at)).unwrap();
    let pictures = ["agreement", "load", "perplexity", "text", "together", "transitions"];
    let page = read("one/index.html");
    for name in pictures {
        let svg = read(&format!("one/{name}.svg"));
        assert!(svg == read(&format!("two/{name}.svg")), "{name}");
        assert!(page.contains(&svg), "{name}");
    }
    let shown = fs::read_to_string(root.join("docs/routing.svg")).unwrap();
    assert!(read("one/text.svg") == shown, "docs/routing.svg is another picture");
    let anywhere = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!anywhere.contains("http") && !anywhere.contains("<script") && !anywhere.contains("<link"));
    for said in [
        "<td>top-k:k=8</td>",
        "<td>capped(top-k:k=2):factor=0.7</td>",
        "&#x27;capped(top-k:k=2):factor=0.7&#x27;",
        "not causal",
    ] {
        assert!(page.contains(said), "{said}");
    }
    // The table is that of `compare`.
    let csv = output("lab compare --text {} --csv --router top-k:k=1", &[verse.to_str().unwrap()]);
    let nll = csv.lines().nth(2).unwrap().split(',').nth(3).unwrap().parse::<f64>().unwrap();
    assert!(page.contains(&format!("<td>top-k:k=1</td><td>{nll:.3}</td>")), "{nll}");
    let refused = run("lab report --text {} --out {}", &[verse.to_str().unwrap(), verse.to_str().unwrap()]);
    assert_eq!(refused.status, Some(1), "{}", refused.err);
}
