//! Ctrl-C and closed pipes.
#![cfg(unix)]

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use crate::{Said, mixtral, names};

/// Starts a command that would go on for long.
fn start(line: &str, values: &[&str]) -> Child {
    let mut command = mixtral(line, values);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    signal(child, "INT");
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
}

/// A generation of four thousand tokens on the slow backend.
const LONG: &str = "generate {} -n 4000 --seed 0 --ignore-eos --backend portable --threads 1";

#[test]
fn ctrl_c_ends_a_text_and_still_reports() {
    let mut child = start(LONG, &["Alice was"]);
    let mut begun = [0; 20];
    child.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    interrupt(&child);
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!(said.status, Some(130), "{}", said.err);
    assert!(begun.starts_with(b"Alice was ") && said.out.ends_with('\n'));
    assert!(
        said.err.starts_with("prompt: 3 tokens at ") && said.err.ends_with("; interrupted\n"),
        "{}",
        said.err
    );
}

#[test]
fn ctrl_c_while_a_prompt_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("trace");
    let ids = vec!["7"; 4000].join(",");
    let mut child =
        start("logits --backend portable --threads 1 --ids {} --out {}", &[&ids, out.to_str().unwrap()]);
    interrupt_until_ended(&mut child);
    let output = child.wait_with_output().unwrap();
    // The first signal may come before there is a handler.
    assert!(output.status.code() == Some(130) || output.status.signal() == Some(2), "{output:?}");
    assert_eq!((output.stdout, names(dir.path())), (Vec::new(), Vec::new()));
}

#[test]
fn ctrl_c_ends_a_perplexity() {
    let text = crate::demo().join("heldout.txt");
    let line = "perplexity --backend portable --threads 1 --window 256 --json --text {}";
    let mut child = start(line, &[text.to_str().unwrap()]);
    interrupt_until_ended(&mut child);
    let output = child.wait_with_output().unwrap();
    // The first signal may come before there is a handler, the second before what was scored is told.
    assert!(output.status.code() == Some(130) || output.status.signal() == Some(2), "{output:?}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn ctrl_c_ends_a_chat_that_waits() {
    let mut child = start("chat -n 2", &[]);
    // The answer shows that there is a handler by now.
    child.stdin.as_mut().unwrap().write_all(b"Who are you?\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    interrupt_until_ended(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// SIGTERM and SIGHUP end the chat and not the answer alone, however many lines are left to answer.
#[test]
fn a_signal_ends_a_chat_that_answers() {
    for (name, status) in [("TERM", 143), ("HUP", 129)] {
        let mut child = start("chat -n 400 -t 0 --backend portable --threads 1", &[]);
        child.stdin.take().unwrap().write_all("Who are you?\n".repeat(400).as_bytes()).unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        signal(&child, name);
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!(said.status, Some(status), "{name}: {}", said.err);
        assert!(said.out.lines().count() < 10, "{name}: {}", said.out);
    }
}

fn interrupt_until_ended(child: &mut Child) {
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(200));
        interrupt(child);
    }
}

/// What of a model that is being written is left by signals that come as soon as there is something.
#[test]
fn no_signal_leaves_a_part_of_a_file() {
    for (signals, status) in [
        (&["INT"][..], 130),
        (&["INT", "INT"], 130),
        (&["TERM"], 143),
        (&["HUP", "TERM"], 143),
        (&["QUIT"], 131),
    ] {
        for line in ["quantize --dtype q3_k -j 1 --out {}", "convert --dtype f32 -j 1 --out {}"] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out.gguf");
            let child = start(line, &[out.to_str().unwrap()]);
            while names(dir.path()).is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            signals.iter().for_each(|name| {
                // It may have ended by now.
                let _ = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).output();
            });
            let said = Said::from(child.wait_with_output().unwrap());
            match said.status {
                Some(0) => assert_eq!(names(dir.path()), ["out.gguf"]),
                other => {
                    assert!(other == Some(status) || signals[0] == "HUP" && other == Some(129), "{said:?}");
                    let left = names(dir.path());
                    // The second signal may come when the file has its name.
                    assert!(left.is_empty() || left == ["out.gguf"], "{signals:?}: {left:?}");
                }
            }
        }
    }
}

/// A limit of a file's size is a disk that is full.
#[test]
fn no_limit_leaves_a_part_of_a_file() {
    for line in ["quantize --dtype q3_k -j 1 --out {}", "convert -j 1 --out {}", "logits --ids 1,2 --out {}"]
    {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join(if line.starts_with("logits") { "trace" } else { "out.gguf" });
        let path = out.to_str().unwrap();
        let command = mixtral(line, &[path]);
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "ulimit -f 8; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args());
        let said = Said::from(shell.output().unwrap());
        assert_eq!(said.status, Some(1), "{line}: {said:?}");
        assert!(said.err.contains(&format!("error: {path}: File too large")), "{line}: {}", said.err);
        assert_eq!(names(dir.path()), [""; 0], "{line}");
    }
}

#[test]
fn ctrl_c_ends_json_that_says_so() {
    let child = start(&format!("{LONG} --json"), &["Alice was"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    interrupt(&child);
    let said = Said::from(child.wait_with_output().unwrap());
    let found: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&found["ended"], said.status), (&"interrupted".into(), Some(130)));
    assert!(!found["ids"].as_array().unwrap().is_empty(), "{found}");
}

/// Shells start what runs behind a script so that it ignores Ctrl-C; a signal of its own is meant.
#[test]
fn a_signal_that_was_ignored_is_a_wish_too() {
    let command = mixtral("chat -n 2 -t 0", &[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' INT; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let mut child =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"Who are you?\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    interrupt_until_ended(&mut child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn what_nohup_wishes_is_done() {
    let command = mixtral("chat -n 2 -t 0", &[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    let mut child =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..2 {
        child.stdin.as_mut().unwrap().write_all(b"Who are you?\n").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        signal(&child, "HUP");
    }
    assert_eq!(Said::from(child.wait_with_output().unwrap()).status, Some(0));
}

#[test]
fn ctrl_c_keeps_what_a_bench_has_measured() {
    // Of the first case more rounds than anybody waits for, each a moment; then of a model.
    for line in [
        "bench --layer 48x80x4x2 --tokens 1,100000 --rounds 65000 -j 1",
        "bench --tokens 1,2048 --sessions 1 --rounds 65000 -j 1",
    ] {
        for options in [" --json", ""] {
            let child = start(&format!("{line}{options}"), &[]);
            std::thread::sleep(std::time::Duration::from_secs(3));
            interrupt(&child);
            let said = Said::from(child.wait_with_output().unwrap());
            assert_eq!((said.status, &*said.err), (Some(130), ""), "{line}");
            if options.is_empty() {
                let of = if line.contains("layer") { 2 } else { 3 };
                let end = format!("interrupted: 1 of {of} cases measured\n");
                assert!(said.out.ends_with(&end) && said.out.lines().count() > 3, "{}", said.out);
            } else {
                let cases: Vec<serde_json::Value> = serde_json::from_str(&said.out).unwrap();
                assert!(cases.len() == 1 && cases[0]["interrupted"] == true, "{}", said.out);
                assert!(cases[0]["seconds"].as_f64().unwrap() > 0.0);
            }
        }
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for line in
        [LONG, "generate {} -n 4000 --seed 0 --ignore-eos --show-routing --backend portable --threads 1"]
    {
        let mut child = start(line, &["Alice was"]);
        let mut begun = [0; 10];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut begun).unwrap();
        drop(stdout);
        let said = Said::from(child.wait_with_output().unwrap());
        assert_eq!((&*said.err, said.status), ("", Some(0)), "{line}");
    }
    let mut child = start("inspect --json", &[]);
    drop(child.stdout.take());
    let said = Said::from(child.wait_with_output().unwrap());
    assert_eq!((&*said.err, said.status), ("", Some(0)));
}
