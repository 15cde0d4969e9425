//! `mixtral logits`.

use std::fs;

use crate::{commas, fixtures, floats, ids, json, mixtral, names, output, run, run_with_input, tensor, tiny};

/// The reference's own rounding, ours, and some room for the largest of many.
const ROUNDINGS: f64 = 3.0;

#[test]
fn files_hold_what_the_reference_computes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("trace.safetensors");
    for name in ["f32-single", "mha-top1", "top3-of-6", "window-8", "bf16-3-shards"] {
        let model = fixtures().join("models").join(name);
        let goldens = fs::read(model.join("goldens.safetensors")).unwrap();
        let rounding = &json(&model.join("goldens.json"))["f32_vs_f64_max_abs"];
        let text = commas(&ids(&goldens, "input_ids"));
        let values = [&*tiny(name), &text, out.to_str().unwrap()];
        assert_eq!(output("logits --model {} --ids {} --out {}", &values), "");
        let file = fs::read(&out).unwrap();
        let layers = json(&model.join("config.json"))["num_hidden_layers"].as_u64().unwrap();
        let mut near = vec!["logits".to_owned()];
        for n in 0..layers {
            near.extend(["hidden", "router_logits", "weights"].map(|kind| format!("{kind}.{n}")));
            let experts = format!("experts.{n}");
            assert_eq!(tensor(&file, &experts), tensor(&goldens, &experts), "{name} {experts}");
        }
        for what in near {
            assert_eq!(tensor(&file, &what).0, tensor(&goldens, &what).0, "{name} {what}");
            let tolerance = ROUNDINGS * rounding[&what].as_f64().unwrap();
            let far = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) > tolerance;
            let (found, expected) = (floats(&file, &what), floats(&goldens, &what));
            assert!(!found.iter().zip(&expected).any(far), "{name} {what}");
        }

        for prefill in ["1", "5", "1000000"] {
            for rest in ["--threads 1", "--threads 2 --backend portable", "--read"] {
                let line = format!("logits --model {{}} --ids {{}} --out {{}} --prefill {prefill} {rest}");
                output(&line, &values);
                assert!(fs::read(&out).unwrap() == file, "{name}: {line}");
            }
        }
    }
    assert_eq!(names(dir.path()), ["trace.safetensors"]);
}

#[test]
fn a_summary_without_a_file() {
    let found = output("logits --ids 1,1498,315", &[]);
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!((lines[0], lines.len()), ("next after 3 tokens", 12));
    // "Alice was": greedy goes on with "beginning", and the last token's experts are those of the goldens.
    assert!(lines[2].ends_with("▁begin"), "{found}");
    let goldens = fs::read(fixtures().join("demo/goldens.safetensors")).unwrap();
    for n in 0..4 {
        let experts = ids(&goldens, &format!("0.experts.{n}"));
        let line: Vec<&str> = lines[8 + n].split_whitespace().collect();
        assert_eq!([line[2], line[4]].join(","), commas(&experts[4..6]), "{found}");
    }
    let found = output("logits --model {} --ids 1", &[&tiny("f32-single")]);
    assert!(found.starts_with("next after 1 tokens\n"), "{found}");
}

#[test]
fn nothing_is_left_where_writing_fails() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("taken")).unwrap();
    for (name, message) in [
        ("taken", "taken: expected a regular file or nothing"),
        ("no/trace", "no: expected a directory, found none"),
    ] {
        let out = dir.path().join(name);
        let said = run("logits --ids 1,2 --out {}", &[out.to_str().unwrap()]);
        assert_eq!((&*said.out, said.status), ("", Some(1)), "{}", said.err);
        assert!(said.err.contains(message), "{}", said.err);
    }
    assert_eq!(names(dir.path()), ["taken"]);
    assert_eq!(names(&dir.path().join("taken")), Vec::<String>::new());

    // A file that was there stays as it was if the run fails.
    let out = dir.path().join("kept");
    fs::write(&out, "before").unwrap();
    let said = run("logits --ids 1,99999 --out {}", &[out.to_str().unwrap()]);
    assert_eq!(said.status, Some(1));
    assert_eq!(fs::read(&out).unwrap(), b"before");
    assert_eq!(names(dir.path()), ["kept", "taken"]);
}

#[test]
#[cfg(unix)]
fn a_full_disk_leaves_nothing() {
    // A limit on the size of files stands in for a full disk; `sh` sets it, and ignores the signal that comes with it.
    let dir = tempfile::tempdir().unwrap();
    let inner = mixtral("logits --ids 1,2,3,4,5,6,7,8 --out {}", &[dir.path().join("t").to_str().unwrap()]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$@\"", "sh"]);
    command.arg(inner.get_program()).args(inner.get_args());
    let said = run_with_input(command, b"");
    assert_eq!(said.status, Some(1), "{}", said.err);
    assert!(said.err.contains("File too large"), "{}", said.err);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}
