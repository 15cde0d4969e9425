//! A model under a budget of memory: everything but the experts stays in memory, and experts come from the disk when they are wanted, into
//! as much memory as is left. The same bits as without.
//!
//! [`MemoryPlan`] says from headers alone what takes how much, and refuses a budget that is too small; [`Loader::within`](crate::Loader::within)
//! loads a model by it. [`Model::expert_cache`](crate::Model::expert_cache) says afterwards what happened.
//!
//! A pass has the experts of its model for itself: passes that other threads begin meanwhile wait before they enter a thread pool, or are told
//! [busy](crate::Error::Busy). Sessions are decoded together in one pass instead. No lock is held while a disk reads.
//!
//! In a layer, all experts that have rows and are not in memory are asked for at once, several reads at a time; those that are in memory
//! compute meanwhile, and each of the others as soon as it is whole. What the cache has no room for passes through memory of two experts. So
//! a chunk of a prompt reads every expert at most once. While a layer computes and nothing else is to be read, experts that the next one is
//! likely to want may be [read ahead](ReadAhead).

mod ahead;
mod bank;
mod disk;
mod fetch;
mod forecast;
mod foretell;
mod history;
mod place;
mod plan;
mod prior;
mod store;
#[cfg(test)]
mod tests;
mod trial;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use moe_core::MoeLayer;
use moe_core::expert_cache::CachePolicy;

use crate::load::MoeParts;
use crate::{Checkpoint, Config, Error, Result};
pub use ahead::ReadAhead;
use bank::CachedExperts;
pub use disk::DiskReads;
pub use forecast::{AtHitRate, Forecast};
pub use foretell::Foretold;
pub use plan::{MemoryPlan, MemoryUse};
pub use prior::ExpertPrior;
use store::ExpertStore;

/// What is evicted first, unless something else is asked for: of all policies it hit most in traces of decoding, and does not fall off the
/// cliff where memory holds less than a token's experts ([`moe_core::expert_cache`]).
pub const DEFAULT_POLICY: CachePolicy = CachePolicy::LfuPerLayer { age: CachePolicy::DEFAULT_AGE };

/// What happened to the experts of a model under a budget.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct CacheUse {
    /// What is evicted first.
    pub policy: String,
    /// Bytes that experts in memory may take, without the two that pass through.
    pub budget: u64,
    /// Bytes that they take.
    pub resident: u64,
    /// The most that they took.
    pub peak: u64,
    /// Times that a pass wanted an expert of a layer.
    pub requests: u64,
    /// Times that it was in memory.
    pub hits: u64,
    /// Experts read for them.
    pub reads: u64,
    /// Bytes of their weights.
    pub bytes_read: u64,
    /// Experts that were asked for before the router had spoken.
    pub ahead: u64,
    /// Those of them that it then wanted.
    pub ahead_wanted: u64,
    /// Whether passes were faster with that, as far as it was [measured](ReadAhead::Measured).
    pub ahead_pays: Option<bool>,
    /// Whether files are read past the page cache; none for weights that are no file.
    pub direct: Option<bool>,
    /// Bytes that came from the disk, with what was in memory from the start, what was read ahead in vain and what lies beside weights in the disk's blocks.
    pub disk_bytes: u64,
    /// Time that passes took.
    pub passing: Duration,
    /// Time in which something was being read.
    pub reading: Duration,
    /// Time that passes waited for the disk with nothing else to do.
    pub waited: Duration,
    /// Hits that Belady's policy, which knows the future, would have had; none where there were more requests than are remembered.
    pub bound: Option<u64>,
}

impl CacheUse {
    /// Hits over requests; 0 without requests.
    pub fn hit_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.hits as f64 / self.requests as f64 }
    }
}

/// The experts of a model under a budget, as its layers are made.
#[derive(Clone, Debug)]
pub(crate) struct Budgeted {
    store: Arc<ExpertStore>,
}

/// What a model knows of its experts under a budget.
#[derive(Clone, Debug)]
pub(crate) struct CacheOf(Arc<ExpertStore>);

impl Budgeted {
    /// The experts of a checkpoint, of which those in memory may take so many bytes.
    pub(crate) fn new(checkpoint: &Checkpoint, config: &Config, plan: &MemoryPlan) -> Result<Self> {
        Ok(Self { store: Arc::new(ExpertStore::new(checkpoint, config, plan)?) })
    }

    /// Those that another model has.
    pub(crate) fn of(cache: &CacheOf, checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        if cache.0.is_of(checkpoint, config)? {
            return Ok(Self { store: cache.0.clone() });
        }
        let (expected, found) = ("a checkpoint of the same files".to_owned(), "others".to_owned());
        Err(Error::Setting { setting: "shared experts", expected, found })
    }

    /// A layer over them.
    pub(crate) fn layer(&self, parts: &MoeParts<'_>) -> Result<MoeLayer> {
        let (layer, config) = (parts.index(), parts.config());
        let (dim, hidden) = (config.hidden_size, config.intermediate_size);
        let bank = CachedExperts::new(self.store.clone(), layer, dim, hidden, parts.compute())?;
        parts.count(bank.bank(), self.store.places(layer).iter().flat_map(|place| place.formats()));
        let (gate, router) = (Box::new(parts.gate()?), Box::new(parts.router()?));
        MoeLayer::new(gate, router, Box::new(bank)).map_err(|source| Error::Layer { layer, source })
    }

    pub(crate) fn cache(&self) -> CacheOf {
        CacheOf(self.store.clone())
    }
}

impl CacheOf {
    pub(crate) fn counts(&self) -> CacheUse {
        self.0.counts()
    }

    /// Whether the pass at hand reads experts ahead of its routers.
    pub(crate) fn reads_ahead(&self) -> bool {
        self.0.reads_ahead()
    }
}
