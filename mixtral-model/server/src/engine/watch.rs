//! What a pass does with experts, as an observer of it sees.

use std::ops::Range;

use mixtral_model::{Observed, Observer};
use moe_core::Routed;

/// The experts of a token: of each layer, best first, with their weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TokenRouting {
    pub(crate) layers: Vec<Vec<(usize, f32)>>,
}

/// Counts the experts that a pass uses, and keeps those of some of its tokens.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Pairs of layer and expert with at least one token.
    pub(crate) touched: u64,
    /// The rows whose routing is wanted, by step.
    wanted: Vec<(usize, Range<usize>)>,
    /// The routing of these rows, one after the other.
    kept: Vec<TokenRouting>,
}

impl Watch {
    /// Keeps the routing of the rows of a step.
    pub(crate) fn keep(&mut self, step: usize, rows: Range<usize>) {
        self.kept.extend(rows.clone().map(|_| TokenRouting::default()));
        self.wanted.push((step, rows));
    }

    /// The routing of each step that was kept.
    pub(crate) fn into_steps(self) -> impl Iterator<Item = (usize, Vec<TokenRouting>)> {
        let mut kept = self.kept.into_iter();
        self.wanted.into_iter().map(move |(step, rows)| (step, kept.by_ref().take(rows.len()).collect()))
    }
}

impl Observer for Watch {
    fn wants_all_rows(&self) -> bool {
        !self.wanted.is_empty()
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        self.touched += routed.plan.active_experts().count() as u64;
        let rows = self.wanted.iter().flat_map(|(_, rows)| rows.clone());
        for (row, kept) in rows.zip(&mut self.kept) {
            let choices = routed.plan.choices(row).map(|choice| (choice.expert, choice.weight));
            kept.layers.push(choices.collect());
        }
        Ok(())
    }
}
