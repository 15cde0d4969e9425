//! Texts that end a generation, what it came to as JSON, and seeds.

use serde_json::Value;

use crate::{commas, mixtral, output, run, run_with_input, tiny};

fn report(line: &str, values: &[&str]) -> Value {
    let text = output(line, values);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn numbers(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap().try_into().unwrap()).collect()
}

#[test]
fn a_text_ends_wherever_it_comes() {
    let prompt = "Alice was";
    let all = output("generate {} -t 0 -n 40 --no-echo", &[prompt]);
    let text = all.strip_suffix('\n').unwrap();
    // Texts within a token and across some, and the end of one.
    let middle = text.char_indices().nth(20).unwrap().0;
    for length in [1, 2, 7, 15] {
        let stop: String = text[middle..].chars().take(length).collect();
        let expected = &text[..text.find(&stop).unwrap()];
        let line = "generate {} -t 0 -n 40 --no-echo --stop {} --stop {}";
        let said = run(line, &[prompt, "never to come", &stop]);
        assert_eq!((said.out, said.status), (format!("{expected}\n"), Some(0)), "{stop:?}");
        assert!(said.err.ends_with(&format!("; ended by {stop:?}\n")), "{}", said.err);
        let found = report("generate {} -t 0 -n 40 --json --stop {}", &[prompt, &stop]);
        assert_eq!(found["text"], expected);
        assert_eq!((&found["ended"], &found["stop_text"]), (&"stop_text".into(), &stop.into()));
        // No token is drawn behind the one that completes it.
        let ids = numbers(&found["ids"]);
        let drawn = output("generate {} -t 0 -n 40 --print-ids", &[prompt]);
        assert!(drawn.starts_with(&commas(&ids)) && ids.len() < 40, "{ids:?} of {drawn}");
    }
    // What becomes no stop text is shown in the end, and the prompt ends nothing.
    let last = text.chars().last().unwrap();
    let tail = format!("{last}{last} and no more");
    assert_eq!(output("generate {} -t 0 -n 40 --no-echo --stop {}", &[prompt, &tail]), all);
    assert!(output("generate {} -t 0 -n 3 --stop Alice", &[prompt]).starts_with("Alice was "));
    // Tokens and ids are told as they come.
    let found = report("generate {} -t 0 -n 40 --json --stop {}", &[prompt, &text[..5]]);
    let ids = output("generate {} -t 0 -n 40 --print-ids --stop {}", &[prompt, &text[..5]]);
    assert_eq!(ids.trim(), commas(&numbers(&found["ids"])));
    let listed = output("generate {} -t 0 -n 40 --show-routing=tokens --stop {}", &[prompt, &text[..5]]);
    assert_eq!(listed.lines().count(), 3 + numbers(&found["ids"]).len());
}

#[test]
fn a_text_ends_an_answer_and_is_no_part_of_it() {
    let whole = run_with_input(mixtral("chat -t 0 -n 12", &[]), b"Who are you?\n");
    let text = whole.out.strip_suffix('\n').unwrap();
    let stop: String = text.chars().skip(3).take(2).collect();
    let before = &text[..text.find(&stop).unwrap()];
    let said = run_with_input(mixtral("chat -t 0 -n 12 --stop {}", &[&stop]), b"Who are you?\nAnd who?\n");
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.out.starts_with(&format!("{before}\n")), "{:?} of {text:?} by {stop:?}", said.out);
    assert_eq!(said.out.matches(&stop).count(), 0, "{}", said.out);
    let said = run_with_input(mixtral("chat -t 0 -n 12 --stop {}", &[&stop]), b"Who are you?\n");
    assert_eq!((said.out, &*said.err), (format!("{before}\n"), ""));
}

#[test]
fn json_has_all_of_a_generation() {
    let found = report("generate {} -n 5 --seed 7 --json", &["Alice was"]);
    let keys: Vec<_> = found.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "prompt_ids",
        "ids",
        "text",
        "ended",
        "end_token",
        "stop_text",
        "seed",
        "prompt_tokens",
        "generated_tokens",
        "passes",
        "prompt_seconds",
        "generation_seconds",
    ];
    assert_eq!(keys, expected);
    // The help describes each.
    let help = output("generate --help", &[]);
    for key in expected {
        assert!(help.contains(&format!("\"{key}\"")), "{key}");
    }
    assert_eq!(numbers(&found["prompt_ids"]).len(), 3);
    let text = output("generate {} -n 5 --seed 7 --no-echo", &["Alice was"]);
    assert_eq!(found["text"], text.strip_suffix('\n').unwrap());
    assert_eq!((&found["seed"], &found["ended"]), (&7.into(), &"max_tokens".into()));
    assert_eq!((&found["generated_tokens"], &found["passes"]), (&5.into(), &4.into()));
    assert!(found["prompt_seconds"].as_f64().unwrap() > 0.0 && found["end_token"].is_null());

    let greedy = report("generate {} -n 5 -t 0 --json", &["Alice was"]);
    assert!(greedy["seed"].is_null());
    let context = report("generate {} --seed 0 --context 6 --json", &["Alice was"]);
    assert_eq!(context["ended"], "context");

    let said = run("generate --model {} --ids 1,5 -n 3 --json", &[&tiny("f32-single")]);
    let found: Value = serde_json::from_str(&said.out).unwrap();
    assert!(found["text"].is_null() && said.err.starts_with("warning: no text: "), "{}", said.err);
    assert_eq!(numbers(&found["ids"]).len(), 3);
}

/// The seed that the closing line tells.
fn seed(err: &str) -> Option<String> {
    Some(err.split("seed ").nth(1)?.chars().take_while(char::is_ascii_digit).collect())
}

#[test]
fn a_random_seed_is_told_and_repeats() {
    let said = run("generate {} -n 40", &["Alice was"]);
    let told = seed(&said.err).unwrap();
    assert_eq!(output("generate {} -n 40 --seed {}", &["Alice was", &told]), said.out);
    let other = run("generate {} -n 40", &["Alice was"]);
    assert_ne!(seed(&other.err), Some(told));
    assert_eq!(seed(&run("generate {} -n 4 -t 0", &["Alice was"]).err), None);

    let said = run_with_input(mixtral("chat -n 9", &[]), b"Who?\n");
    let told = seed(&said.err).unwrap();
    let again = run_with_input(mixtral("chat -n 9 --seed {}", &[&told]), b"Who?\n");
    assert_eq!(again.out, said.out);
    let speeds = run_with_input(mixtral("chat -n 9 --speed -t 0", &[]), b"Who?\n");
    assert!(speeds.err.starts_with("(prompt: "), "{}", speeds.err);
}

#[test]
fn a_line_too_long_is_refused() {
    let mut child = mixtral("chat", &[]);
    child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = child.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let part = vec![b'x'; 1 << 20];
        // The command ends before it is all read.
        (0..64).try_for_each(|_| std::io::Write::write_all(&mut stdin, &part))
    });
    let said = crate::Said::from(child.wait_with_output().unwrap());
    assert!(writer.join().unwrap().is_err());
    assert_eq!(said.status, Some(1));
    assert_eq!(said.err, "error: standard input: expected at most 16777216 bytes in a line, found more\n");
}
