//! What is wrong with a spec, and where.

use std::fmt;

/// A text that is no [`RouterSpec`](crate::RouterSpec).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    at: usize,
    expected: String,
    found: String,
}

impl SpecError {
    pub(super) fn new(at: usize, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { at, expected: expected.into(), found: found.into() }
    }

    /// Where the part at fault begins, in bytes; the length of the text if something is missing at its end.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What would be right there.
    pub fn expected(&self) -> &str {
        &self.expected
    }

    /// What is there: in quotation marks if it is a piece of the text, shortened if it is long.
    pub fn found(&self) -> &str {
        &self.found
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "router, byte {}: expected {}, found {}", self.at, self.expected, self.found)
    }
}

impl std::error::Error for SpecError {}
