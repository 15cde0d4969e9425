//! Chat formats against what others' code computes, and under damage.

#![allow(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

mod cases;
mod conversation;
mod mistral;
#[path = "../common/report.rs"]
mod report;
mod templates;
mod vocabulary;

use std::path::{Path, PathBuf};

use report::Report;
use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
