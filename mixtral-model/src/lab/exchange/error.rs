//! What can go wrong with a foreign trace.

use std::fmt;
use std::io;

use moe_core::OutOfMemory;
use moe_router::trace::TraceError;

/// Where in a foreign trace something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line, from 1.
    Line(u64),
    /// A byte, from 0.
    Byte(u64),
    /// A number of an array that stands in a response; both from 0.
    Entry {
        /// Which response of the file.
        response: u64,
        /// Which number of its array.
        entry: u64,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Byte(byte) => write!(f, "byte {byte}"),
            Self::Entry { response, entry } => write!(f, "response {response}, number {entry}"),
        }
    }
}

/// An error of turning a trace into another format, or back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Our own trace cannot be read or written.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The foreign trace is damaged, or of another format.
    #[error("{place}: expected {expected}, found {found}")]
    Malformed {
        /// Where.
        place: Place,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The format does not say something, and neither did the caller.
    #[error("{what}: expected to be given, for {why}")]
    Wanting {
        /// The field of [`ImportOptions`](super::ImportOptions).
        what: &'static str,
        /// Why it is needed.
        why: &'static str,
    },
    /// The trace has something that the format cannot hold, or that does not fit what the caller said.
    #[error("{what}: expected {expected}, found {found}")]
    Unfit {
        /// What it is.
        what: &'static str,
        /// What can be held.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Memory for the trace is not to be had.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl ExchangeError {
    pub(super) fn malformed(place: Place, expected: impl Into<String>, found: impl fmt::Display) -> Self {
        Self::Malformed { place, expected: expected.into(), found: shown(found) }
    }

    pub(super) fn unfit(what: &'static str, expected: impl Into<String>, found: impl fmt::Display) -> Self {
        Self::Unfit { what, expected: expected.into(), found: shown(found) }
    }
}

/// What a file says may be long, and not made for terminals.
fn shown(found: impl fmt::Display) -> String {
    found.to_string().chars().take(200).flat_map(char::escape_debug).collect()
}
