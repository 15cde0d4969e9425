//! What was asked for, to compare with what foreknowledge would have had in memory.

use moe_core::expert_cache::{ExpertKey, ExpertSizes, LayerAccess, belady};
use moe_core::{Result, memory};

/// Accesses that are remembered, at most.
const REMEMBERED: usize = 1 << 19;

/// What passes asked for, as long as that is not too much.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    /// Pass, layer, and where its experts end.
    layers: Vec<(u64, usize, usize)>,
    experts: Vec<u32>,
    /// What was in memory before the first of them.
    initial: Vec<ExpertKey>,
    /// Whether there were more than are remembered.
    is_full: bool,
}

impl History {
    /// Takes up what is in memory before the first access.
    pub(super) fn begins_with(&mut self, residents: &[ExpertKey]) {
        self.initial = residents.to_vec();
    }

    /// Takes up what a layer of a pass asks for.
    pub(super) fn remember(&mut self, pass: u64, layer: usize, experts: &[usize]) -> Result<()> {
        self.is_full |= self.experts.len() + experts.len() > REMEMBERED;
        if self.is_full {
            // A part of it is no bound.
            (self.layers, self.experts) = (Vec::new(), Vec::new());
            return Ok(());
        }
        memory::reserve(&mut self.experts, experts.len(), "accesses to experts")?;
        self.experts.extend(experts.iter().map(|&expert| expert as u32));
        Ok(memory::push(&mut self.layers, (pass, layer, self.experts.len()), "accesses to experts")?)
    }

    /// Hits of Belady's policy, if all is remembered.
    pub(super) fn bound(&self, sizes: &ExpertSizes, budget: u64) -> Option<u64> {
        let mut begin = 0;
        let all = self.layers.iter().map(|&(step, layer, end)| {
            let experts = &self.experts[std::mem::replace(&mut begin, end)..end];
            LayerAccess { step, layer, experts }
        });
        let found =
            if self.is_full { None } else { belady(sizes, budget, self.initial.iter().copied(), all).ok() };
        found.map(|found| found.total().hits)
    }
}
