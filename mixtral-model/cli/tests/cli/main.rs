//! The command as its users run it: what it prints, what it leaves, and how it ends.

#![allow(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

mod bench;
mod budget;
mod chat;
mod convert;
mod ends;
mod errors;
mod generate;
mod lab;
mod logits;
mod manual;
mod memory;
mod perplexity;
mod route;
mod route_cases;
mod route_forms;
mod serve;
mod sources;
mod stops;
mod terminal;
mod tokens;
mod trace;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The command with arguments given as one string; each `{}` in it is one of `values`. Nothing of the caller's environment
/// that the command looks at is left.
fn mixtral(line: &str, values: &[&str]) -> Command {
    let mut values = values.iter();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixtral"));
    command.args(line.split(' ').map(|word| if word == "{}" { values.next().unwrap() } else { word }));
    assert!(values.next().is_none(), "{line}: more values than places");
    for name in ["MIXTRAL_BACKEND", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RAYON_NUM_THREADS"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// What a finished command said.
#[derive(Debug, PartialEq)]
struct Said {
    out: String,
    err: String,
    status: Option<i32>,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            status: output.status.code(),
        }
    }
}

fn run(line: &str, values: &[&str]) -> Said {
    mixtral(line, values).output().unwrap().into()
}

/// The standard output of a command that must succeed.
#[track_caller]
fn output(line: &str, values: &[&str]) -> String {
    let said = run(line, values);
    assert_eq!(said.status, Some(0), "{line}: {}", said.err);
    said.out
}

/// The same with standard input.
fn run_with_input(mut command: Command, input: &[u8]) -> Said {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Input is short enough for a pipe to hold, and a command may end without reading it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap().into()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// The directory of one of the tiny models, which have no tokenizer.
fn tiny(name: &str) -> String {
    fixtures().join("models").join(name).to_str().unwrap().to_owned()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn commas(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A tensor of four-byte elements: its shape and words.
fn tensor(file: &[u8], name: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
    let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(name).unwrap_or_else(|_| panic!("no tensor {name}"));
    (tensor.shape().to_vec(), tensor.data().as_chunks().0.to_vec())
}

fn ids(file: &[u8], name: &str) -> Vec<u32> {
    tensor(file, name).1.into_iter().map(u32::from_le_bytes).collect()
}

fn floats(file: &[u8], name: &str) -> Vec<f32> {
    tensor(file, name).1.into_iter().map(f32::from_le_bytes).collect()
}
