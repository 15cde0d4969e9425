//! `mixtral quantize` and `mixtral convert`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{demo, fixtures, json, mixtral, names, output, run, tiny};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_quantised_file_is_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let said = run("quantize --dtype q8_0 --dtype experts.w1@0-1=q4_0 --out {}", &[text(&file)]);
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.out.starts_with("part "), "{}", said.out);
    for part in ["experts.w1   q4_0       16", "experts.w1   q8_0       16", "gate         f32", "total"] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    // The demo has a window.
    assert!(said.err.contains("warning: the model has a sliding window"), "{}", said.err);
    assert_eq!(names(dir.path()), ["m.gguf"]);
    let generated = |model: &[&str]| {
        let line = if model.is_empty() { "generate" } else { "generate -m {}" };
        output(&format!("{line} -t 0 -n 6 The"), model)
    };
    assert!(generated(&[text(&file)]).starts_with("The "));
    // Without loss, the text is the same.
    output("convert --out {}", &[text(&file)]);
    assert_eq!(generated(&[text(&file)]), generated(&[]));
}

#[test]
fn the_summary_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    let said = output("quantize --dtype q4_k --json --out {}", &[text(&file)]);
    let summary: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(summary["file_bytes"], std::fs::metadata(&file).unwrap().len());
    let rows = summary["rows"].as_array().unwrap();
    let sum = |key: &str| rows.iter().map(|row| row[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("bytes"), sum("weights")), (summary["bytes"].as_u64().unwrap(), 4_860_160));
    let changed = summary["changed"].as_array().unwrap();
    assert_eq!(changed.len(), 4);
    assert_eq!(changed[0]["wanted"], "q4_k");
    assert_eq!(changed[0]["got"], "q5_0");
}

#[test]
fn a_directory_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (file, directory) = (dir.path().join("m.gguf"), dir.path().join("m"));
    output("convert -m {} --out {}", &[text(&demo()), text(&file)]);
    output("convert -m {} --out {}", &[text(&file), text(&directory)]);
    assert_eq!(
        names(&directory),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.model",
            "tokenizer_config.json"
        ]
    );
    let wishes = json(&directory.join("generation_config.json"));
    assert_eq!(wishes["temperature"].as_f64().map(|t| t as f32), Some(0.8));
    assert_eq!(json(&directory.join("config.json"))["torch_dtype"], "bfloat16");
    let line = "logits -m {} --ids 1,5,9";
    assert_eq!(output(line, &[text(&directory)]), output(line, &[text(&demo())]));
    // It is there now, and stays.
    let said = run("convert -m {} --out {}", &[text(&file), text(&directory)]);
    assert_eq!(said.status, Some(1));
    assert!(said.err.contains("expected an empty directory or nothing"), "{}", said.err);
    output("convert --dtype f16 --out {}", &[text(&dir.path().join("half"))]);
    assert_eq!(json(&dir.path().join("half/config.json"))["torch_dtype"], "float16");
}

#[test]
fn what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, directory) = (dir.path().join("m.gguf"), dir.path().join("m"));
    let (file, directory) = (text(&file), text(&directory));
    let quantised = fixtures().join("gguf/Q4_K_M.gguf");
    for (line, values, status, expected) in [
        ("quantize --out {}", &[file][..], 2, "--dtype"),
        ("quantize --dtype q9 --out {}", &[file], 2, "a mix (q2_k_mix, q3_k_s"),
        ("quantize --dtype gate=q8_0 --out {}", &[file], 2, "gate is never quantised"),
        (
            "quantize --dtype experts@4=q8_0 --out {}",
            &[file],
            1,
            "expected layers below 4, found experts@4=q8_0",
        ),
        ("quantize --dtype q8_0 --imatrix {} --out {}", &[text(&quantised), file], 1, "imatrix"),
        ("convert -m {} --out {}", &[text(&quantised), directory], 1, "choose one of them"),
        ("convert --dtype q8_0 --out {}", &[file], 2, "f32, f16, bf16"),
        ("convert --out {}", &["/"], 1, "error"),
    ] {
        let said = run(line, values);
        assert_eq!(said.status, Some(status), "{line}: {}", said.err);
        assert!(said.err.contains(expected), "{line}: {}", said.err);
        assert_eq!(names(dir.path()), Vec::<String>::new(), "{line}");
    }
    let said = run("convert -m {} --out {}", &[&tiny("f32-single"), file]);
    assert_eq!(said.status, Some(0), "{}", said.err);
    assert!(said.err.contains("no tokenizer"), "{}", said.err);
}

#[test]
fn importances_measured_on_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let [words, alike, weighted] =
        ["words.txt", "alike.gguf", "weighted.gguf"].map(|name| dir.path().join(name));
    let heldout = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    std::fs::write(&words, &heldout[..6000]).unwrap();
    output("quantize --dtype q4_0 --out {}", &[text(&alike)]);
    let values = [text(&words), text(&weighted)];
    let said = run("quantize --dtype q4_0 --calibrate {} --out {}", &values);
    assert_eq!(said.status, Some(0), "{}", said.err);
    let layers: Vec<_> = said.err.lines().filter(|line| line.contains("layer ")).collect();
    let counts = said.err.lines().find(|line| line.contains("measured on ")).unwrap();
    let tokens: u64 = counts.split(' ').find_map(|word| word.parse().ok()).unwrap();
    let of_layer = |line: &&str| -> u64 {
        let (_, counts) = line.split_once(": ").unwrap();
        counts.split(' ').map(|count| count.trim_end_matches("\u{1b}[0m").parse::<u64>().unwrap()).sum()
    };
    let sums: Vec<_> = layers.iter().filter(|line| line.starts_with("layer")).map(of_layer).collect();
    assert_eq!(sums, [2 * tokens; 4], "{}", said.err);
    assert!(!said.err.contains("there are no importances"), "{}", said.err);
    let [alike, weighted] = [alike, weighted].map(|path| std::fs::read(path).unwrap());
    assert_ne!(alike, weighted);
}

#[test]
fn the_help_has_every_type() {
    let help = output("help quantize", &[]);
    assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    let words: Vec<_> = help.split(|c: char| c.is_whitespace() || c == ',').collect();
    let types = moe_kernels::BlockType::ALL.iter().filter(|ty| ty.can_be_made()).map(|ty| ty.name());
    let mixes = mixtral_model::convert::Mix::ALL.iter().map(|mix| mix.name());
    for name in types.chain(mixes).chain(["f32", "f16", "bf16"]) {
        assert!(words.contains(&name), "{name}");
    }
}

/// A limit on the size of files stands for a disk that is full.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for out in ["m.gguf", "m"] {
        let mut command = Command::new("sh");
        let script = "trap '' XFSZ; ulimit -f 4000; exec \"$0\" convert --out \"$1\"";
        command.args(["-c", script, env!("CARGO_BIN_EXE_mixtral"), text(&dir.path().join(out))]);
        let said = crate::Said::from(command.output().unwrap());
        assert_eq!(said.status, Some(1), "{said:?}");
        assert!(said.err.contains("error: ") && said.err.contains(out), "{said:?}");
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }
}

/// Ctrl-C while a file is written.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    // The slowest type, on one thread.
    let mut command = mixtral("quantize -j 1 --dtype q2_k --out {}", &[text(&file)]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    while names(dir.path()).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let status = child.wait().unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(status.code(), Some(130), "{err}");
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn names_as_long_as_they_may_be() {
    for (line, end) in [
        ("convert --out {}", ".gguf"),
        ("convert --out {}", ""),
        ("quantize --dtype q8_0 --out {}", ".gguf"),
        ("logits --ids 1,2 --out {}", ""),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{}{end}", "n".repeat(255 - end.len()));
        output(line, &[dir.path().join(&name).to_str().unwrap()]);
        assert_eq!(names(dir.path()), [name], "{line}");
        let longer = dir.path().join("n".repeat(256));
        let said = run(line, &[longer.to_str().unwrap()]);
        assert_eq!(said.status, Some(1), "{line}");
        assert!(said.err.contains("File name too long"), "{line}: {}", said.err);
    }
}
