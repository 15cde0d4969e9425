//! What can go wrong with a trace.

use std::io;

use moe_core::OutOfMemory;

/// An error of reading or writing a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no trace, or a damaged one.
    #[error("byte {offset}: expected {expected}, found {found}")]
    Damaged {
        /// Where in the file, from 0.
        offset: u64,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Something that a trace cannot hold.
    #[error("{what}: expected {expected}, found {found}")]
    Unfit {
        /// What it is.
        what: &'static str,
        /// What can be held.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Memory for the tokens of a trace is not to be had.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl TraceError {
    pub(super) fn damaged(offset: u64, expected: impl Into<String>, found: impl ToString) -> Self {
        let found = found.to_string().chars().take(200).flat_map(char::escape_debug).collect();
        Self::Damaged { offset, expected: expected.into(), found }
    }

    pub(super) fn unfit(what: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Unfit { what, expected: expected.into(), found: found.to_string() }
    }
}
