//! What tests of many cases tell at their end.

use std::fmt::Debug;

/// Collects the cases that fail, so that one run shows them all.
#[derive(Default)]
pub(crate) struct Report(Vec<String>);

impl Report {
    pub(crate) fn check<T: PartialEq + Debug>(
        &mut self,
        case: impl FnOnce() -> String,
        found: T,
        expected: T,
    ) {
        if found != expected {
            self.0.push(format!("{}\n  expected {expected:?}\n     found {found:?}", case()));
        }
    }

    #[track_caller]
    pub(crate) fn finish(self) {
        assert!(self.0.is_empty(), "{} cases fail:\n{}", self.0.len(), self.0.join("\n"));
    }
}
