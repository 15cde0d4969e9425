//! `mixtral generate`.

use std::fs;

use moe_kernels::Backend;

use crate::{commas, demo, fixtures, ids, json, mixtral, output, run, run_with_input, tiny};

#[test]
fn greedy_texts_are_the_goldens() {
    let goldens = json(&fixtures().join("demo/goldens.json"));
    for facts in goldens["prompts"].as_array().unwrap() {
        let prompt = facts["prompt"].as_str().unwrap();
        let expected = format!("{prompt} {}\n", facts["greedy_text"].as_str().unwrap());
        let tokens = facts["greedy_tokens"].to_string();
        let found = output("generate {} --temperature 0 --ignore-eos -n {}", &[prompt, &tokens]);
        assert_eq!(found, expected);
        let apart = output("generate {} -t 0 --ignore-eos -n {} --no-echo", &[prompt, &tokens]);
        assert_eq!(format!("{prompt}{apart}"), expected);
    }
}

#[test]
fn the_same_seed_gives_the_same_text_everywhere() {
    let demo = demo();
    let expected = output("generate {} -n 40 --seed 0", &["Alice was"]);
    assert!(expected.starts_with("Alice was "), "{expected:?}");
    for line in [
        "generate {} -n 40 --seed 0 --threads 1",
        "--threads 2 generate {} -n 40 --seed 0",
        "generate {} -n 40 --seed 0 --temperature 0.8 --top-p 0.95 --top-k 0 --min-p 0 --repetition-penalty 1",
    ] {
        assert_eq!(output(line, &["Alice was"]), expected, "{line}");
    }
    for backend in Backend::available() {
        for threads in ["1", "2"] {
            let values = ["Alice was", backend.name(), threads];
            assert_eq!(
                output("generate {} -n 40 --seed 0 --backend {} --threads {}", &values),
                expected,
                "{values:?}"
            );
        }
    }
    for line in [
        "generate {} -n 40 --seed 0 --model {}",
        "generate {} -n 40 --seed 0 --read --model {}",
        "generate {} -n 40 --seed 0 --prefault --model {}",
    ] {
        assert_eq!(output(line, &["Alice was", demo.to_str().unwrap()]), expected, "{line}");
    }
    let mut portable = mixtral("generate {} -n 40 --seed 0", &["Alice was"]);
    portable.env("MIXTRAL_BACKEND", "portable");
    assert_eq!(run_with_input(portable, b"").out, expected);
    assert_ne!(output("generate {} -n 40 --seed 1", &["Alice was"]), expected);
}

#[test]
fn ids_need_no_tokenizer() {
    let dir = tiny("f32-single");
    let goldens = fs::read(fixtures().join("models/f32-single/goldens.safetensors")).unwrap();
    let (prompt, greedy) = (ids(&goldens, "input_ids"), ids(&goldens, "greedy_ids"));
    let count = greedy.len().to_string();
    let values = [&dir, &commas(&prompt[..8]), &*count];
    let found = output("generate --model {} --ids {} --print-ids --ignore-eos -n {}", &values);
    assert_eq!(found, commas(&greedy) + "\n");

    let found = run("generate --model {} --ids {} -n {}", &values);
    assert_eq!(found.status, Some(1));
    assert!(found.err.starts_with("error: --ids without --print-ids: "), "{}", found.err);
    assert!(found.err.contains("expected tokenizer.model, tokenizer.json or tekken.json"), "{}", found.err);
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let expected = output("generate {} -n 5 -t 0", &["Alice was"]);
    for (line, input) in [
        ("generate -n 5 -t 0", "Alice was"),
        ("generate - -n 5 -t 0", "Alice was\n"),
        ("generate -n 5 -t 0", "Alice was\r\n"),
        ("generate -n 5 -t 0 -f -", "Alice was\n"),
    ] {
        let said = run_with_input(mixtral(line, &[]), input.as_bytes());
        assert_eq!((said.out.as_str(), said.status), (expected.as_str(), Some(0)), "{line} {input:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    fs::write(&file, "Alice was\n").unwrap();
    assert_eq!(output("generate --prompt-file {} -n 5 -t 0", &[file.to_str().unwrap()]), expected);
    // One newline, and no more.
    fs::write(&file, "Alice was\n\n").unwrap();
    let longer = output("generate --prompt-file {} -n 5 -t 0", &[file.to_str().unwrap()]);
    assert!(longer.starts_with("Alice was\n"), "{longer:?}");
}

#[test]
fn the_closing_line_says_why() {
    for (line, reason) in [
        ("generate {} --seed 0 -n 3", "generated: 3 tokens at "),
        ("generate {} --seed 0 -n 3", "stopped at --max-tokens\n"),
        ("generate {} --seed 0 --context 6", "stopped at the context's limit of 6 positions\n"),
        ("generate {} -n 0", "prompt: 3 tokens at "),
        ("generate {} -n 0", "generated: 0 tokens; stopped at --max-tokens\n"),
    ] {
        let said = run(line, &["Alice was"]);
        assert_eq!(said.status, Some(0), "{line}: {}", said.err);
        assert!(said.err.contains(reason) && !said.err.contains('\x1b'), "{line}: {}", said.err);
    }
    assert_eq!(output("generate {} -n 0", &["Alice was"]), "Alice was\n");
}

#[test]
fn warnings() {
    let said = run("generate {} -n 1 -t 0 --top-k 3", &["Alice was"]);
    assert!(said.err.starts_with("warning: greedy choice: "), "{}", said.err);

    // A copy of a tiny model with two tensors more.
    let dir = tempfile::tempdir().unwrap();
    let model = fixtures().join("models/f32-single");
    fs::copy(model.join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = weights.tensors();
    let (_, any) = tensors.pop().unwrap();
    let extra = ["adapter.a", "adapter.b"].map(|name| (name.to_owned(), any.clone()));
    let all = weights.tensors().into_iter().chain(extra);
    safetensors::serialize_to_file(all, None, &dir.path().join("model.safetensors")).unwrap();
    let said = run("generate --model {} --ids 1 --print-ids -n 1", &[dir.path().to_str().unwrap()]);
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.err.starts_with("warning: 2 tensors are not used, adapter."), "{}", said.err);
}

/// A copy of a tiny model with this `generation_config.json`.
fn wishing(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join("models/f32-single").join(name), dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("generation_config.json"), text).unwrap();
    dir
}

#[test]
fn the_model_wishes_and_the_command_line_decides() {
    let plain = output("generate --model {} --ids 1,5 --print-ids -n 9", &[&tiny("f32-single")]);
    let first = plain.split(',').next().unwrap();
    let drawn = |line: &str, text: &str| {
        let dir = wishing(text);
        output(
            &format!("generate --model {{}} --ids 1,5 --print-ids {line}"),
            &[dir.path().to_str().unwrap()],
        )
    };
    assert_eq!(drawn("--seed 0", r#"{"max_new_tokens": 9}"#), plain);
    assert_eq!(drawn("--seed 0", r#"{"max_length": 11}"#), plain);
    assert_eq!(drawn("-n 9", r#"{"max_length": 1, "max_new_tokens": 0}"#), plain);
    assert_eq!(drawn("-n 9 -t 0", r#"{"do_sample": true, "temperature": "hot", "top_p": 2}"#), plain);
    let bad = r#"{"do_sample": true, "temperature": 1e300, "top_p": 2, "top_k": "x", "min_p": 9, "repetition_penalty": 0}"#;
    let flags = "-n 9 -t 1e-30 --top-p 1 --top-k 0 --min-p 0 --repetition-penalty 1";
    assert_eq!(drawn(flags, bad), plain);
    let without = drawn("-n 9", &format!("{{\"suppress_tokens\": [{first}]}}"));
    assert!(!without.trim().split(',').any(|id| id == first), "{without}");
    let ends = drawn("-n 9", &format!("{{\"eos_token_id\": {first}}}"));
    assert_eq!(ends, "\n");
    assert_eq!(drawn("-n 9 --ignore-eos", &format!("{{\"eos_token_id\": {first}}}")), plain);

    for (text, message) in [
        (
            r#"{"max_length": 2}"#,
            "error: max_length: expected more than the 2 tokens of the prompt, found 2\n",
        ),
        (
            r#"{"do_sample": true, "top_p": 2}"#,
            "/generation_config.json: top_p: expected more than 0, at most 1, found 2\n",
        ),
        (r#"{"bad_words_ids": [[199]]}"#, "error: bad words: expected token ids less than 199, found 199\n"),
    ] {
        let dir = wishing(text);
        let said = run("generate --model {} --ids 1,5 --print-ids", &[dir.path().to_str().unwrap()]);
        assert_eq!(said.status, Some(1), "{text}: {}", said.err);
        assert!(said.err.starts_with("error: ") && said.err.ends_with(message), "{text}: {}", said.err);
    }
    let dir = wishing(r#"{"num_beams": 4, "odd": 1, "max_new_tokens": 9}"#);
    let said = run("generate --model {} --ids 1,5 --print-ids", &[dir.path().to_str().unwrap()]);
    assert_eq!((said.out, said.status), (plain, Some(0)));
    let lines: Vec<_> = said.err.lines().take(2).collect();
    assert!(
        lines[0].starts_with("warning: ") && lines[0].ends_with(": num_beams 4: beam search is not done"),
        "{lines:?}"
    );
    assert!(lines[1].ends_with(": key \"odd\" is not known and not used"), "{lines:?}");
}

#[test]
fn routing_is_that_of_the_goldens() {
    let goldens = fs::read(fixtures().join("demo/goldens.safetensors")).unwrap();
    let prompt = ids(&goldens, "0.input_ids");
    let found = output("generate {} -t 0 -n 2 --show-routing", &["Alice was"]);
    let lines: Vec<Vec<&str>> = found.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), prompt.len() + 2);
    for (t, (line, id)) in lines.iter().zip(&prompt).enumerate() {
        let experts = (0..4).map(|n| commas(&ids(&goldens, &format!("0.experts.{n}"))[2 * t..2 * t + 2]));
        assert_eq!(line[..2], [t.to_string(), id.to_string()]);
        assert_eq!(line[3..], experts.collect::<Vec<_>>());
    }
    assert_eq!(lines[1][2], "▁Alice");
    // The model has not read the token that it drew last.
    assert_eq!(lines.last().unwrap()[3..], ["-", "-", "-", "-"]);

    let plain = output("generate {} -t 0 -n 9", &["Alice was"]);
    let said = run("generate {} -t 0 -n 9 --show-routing=text --routing-layer 3", &["Alice was"]);
    assert_eq!((said.out, said.status), (plain, Some(0)));
    assert!(said.err.contains("coloured by first expert in layer 3:  ■ 0 ■ 1"), "{}", said.err);
    assert!(said.err.contains("\nlayer 3 "), "{}", said.err);

    let dir = tiny("top3-of-6");
    let found = output("generate --model {} --ids 3,4 --print-ids -n 1 --show-routing=tokens", &[&dir]);
    let first: Vec<&str> = found.lines().next().unwrap().split_whitespace().collect();
    assert!(first[..2] == ["0", "3"] && first[2..].iter().all(|e| e.len() == 5), "{first:?}");
    let found = output("generate --model {} --ids 3,4 --print-ids -n 3 --show-routing=text", &[&dir]);
    assert_eq!(found, output("generate --model {} --ids 3,4 --print-ids -n 3", &[&dir]));
}

/// Block-quantised weights are multiplied exactly unless asked otherwise, and the closing line says what that costs.
#[test]
fn what_would_be_faster_is_said() {
    let path = fixtures().join("gguf/Q4_0.gguf");
    let path = path.to_str().unwrap();
    let line = "generate -m {} --ids 1,300 --print-ids -n 2 -t 0";
    let exact = run(line, &[path]);
    let last = exact.err.lines().last().unwrap().to_owned();
    assert!(last.starts_with("products: exact; --activations int8 rounds what 33 of 35 matrices"), "{last}");
    let int8 = run(&format!("{line} --activations int8"), &[path]);
    assert_eq!(int8.err.lines().last().unwrap(), "products: 33 matrices with int8 activations, 2 exact");
    assert!(!run("generate x -n 1 -t 0", &[]).err.contains("int8"), "the demo's weights are bf16");
}
