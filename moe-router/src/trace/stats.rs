//! What is in a trace.

use std::io::Read;

use moe_core::memory;

use super::{Phase, TokenRoute, TraceError, TraceReader};
use crate::metrics::ExpertLoad;

/// Counts of a trace, added up while it is read.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TraceStats {
    /// Of each layer.
    pub layers: Vec<LayerTrace>,
    /// Forward passes, those without tokens included.
    pub steps: u64,
    /// Tokens that were read, counted in the layer that comes first.
    pub tokens: u64,
    /// Those of them that were read among several of their sequence.
    pub prefill_tokens: u64,
}

/// Counts of one layer.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LayerTrace {
    /// Kept pairs of each expert, `[E]`.
    pub load: ExpertLoad,
    /// Sum of their combination weights, `[E]`.
    pub importance: Vec<f64>,
    /// Tokens routed.
    pub tokens: u64,
    /// Pairs refused.
    pub refused: u64,
    /// Pairs that another expert took.
    pub rerouted: u64,
    /// Passes that routed tokens in the layer.
    pub steps: u64,
    /// Distinct experts of a pass, added up over passes.
    pub distinct: u64,
    /// Experts of the pass at hand.
    seen: Vec<bool>,
    last: Option<u32>,
}

impl TraceStats {
    /// Reads the rest of a trace.
    ///
    /// # Errors
    ///
    /// Those of [`TraceReader::next`].
    pub fn read(reader: &mut TraceReader<impl Read>) -> Result<Self, TraceError> {
        let mut stats = Self::default();
        for &experts in &reader.header().experts {
            let experts = usize::from(experts);
            let (mut layer, mut load) = (LayerTrace::default(), Vec::new());
            memory::refill(&mut load, experts, 0, "load")?;
            layer.load = ExpertLoad::from_counts(load);
            memory::refill(&mut layer.importance, experts, 0.0, "importance")?;
            memory::refill(&mut layer.seen, experts, false, "experts of a pass")?;
            stats.layers.push(layer);
        }
        let (mut route, mut first) = (TokenRoute::default(), None);
        while reader.next(&mut route)? {
            stats.steps = u64::from(route.step) + 1;
            stats.layers[usize::from(route.layer)].add(&route);
            if route.layer == *first.get_or_insert(route.layer) {
                stats.tokens += 1;
                stats.prefill_tokens += u64::from(route.phase == Phase::Prefill);
            }
        }
        Ok(stats)
    }
}

impl LayerTrace {
    fn add(&mut self, route: &TokenRoute) {
        if self.last != Some(route.step) {
            self.last = Some(route.step);
            self.steps += 1;
            self.seen.fill(false);
        }
        self.tokens += 1;
        self.refused += route.refused.len() as u64;
        for pair in &route.kept {
            let expert = usize::from(pair.expert);
            self.load.add_tokens(expert, 1);
            self.importance[expert] += f64::from(pair.weight);
            self.rerouted += u64::from(pair.requested != pair.expert);
            self.distinct += u64::from(!std::mem::replace(&mut self.seen[expert], true));
        }
    }

    /// Kept pairs.
    pub fn pairs(&self) -> u64 {
        self.load.counts().iter().sum()
    }

    /// Share of the pairs asked for that were refused; 0 where none was asked for.
    pub fn drop_rate(&self) -> f64 {
        match self.pairs() + self.refused {
            0 => 0.0,
            all => self.refused as f64 / all as f64,
        }
    }

    /// Distinct experts of a pass, on average.
    pub fn distinct_experts(&self) -> f64 {
        self.distinct as f64 / self.steps as f64
    }
}
