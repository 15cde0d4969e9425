//! Chat formats against what others' code computes, and under damage.

#![allow(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

mod cases;
mod conversation;
mod mistral;
mod templates;
mod vocabulary;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Collects the cases that fail, so that one run shows them all.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn check<T: PartialEq + Debug>(&mut self, case: impl FnOnce() -> String, found: T, expected: T) {
        if found != expected {
            self.0.push(format!("{}\n  expected {expected:?}\n     found {found:?}", case()));
        }
    }

    #[track_caller]
    fn finish(self) {
        assert!(self.0.is_empty(), "{} cases fail:\n{}", self.0.len(), self.0.join("\n"));
    }
}
