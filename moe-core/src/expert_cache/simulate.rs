//! A trace of routes through a cache.

use crate::Result;
use crate::memory::refill;

use super::{Answer, ExpertCache, ExpertSizes};

/// The distinct experts that one layer asks for in one step, in the order in which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerAccess<'a> {
    /// The forward pass. One that differs from the access before begins a new one.
    pub step: u64,
    /// The layer.
    pub layer: usize,
    /// The experts.
    pub experts: &'a [u32],
}

/// What a cache did for one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerHits {
    /// Experts asked for.
    pub requests: u64,
    /// Those that were resident.
    pub hits: u64,
    /// Bytes of those that were not.
    pub bytes_read: u64,
}

/// What a cache did for a trace: sums of whole numbers, for each layer and for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheReport {
    /// Each layer, `[layers]`.
    pub layers: Vec<LayerHits>,
    /// Forward passes.
    pub steps: u64,
    /// Experts read that found no room to stay.
    pub streamed: u64,
    /// Experts let go.
    pub evictions: u64,
}

impl CacheReport {
    /// Of so many layers, and nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(layers: usize) -> Result<Self> {
        let mut report = Self::default();
        refill(&mut report.layers, layers, LayerHits::default(), "cache report")?;
        Ok(report)
    }

    /// Counts the answer to a request for an expert of so many bytes, and how many were evicted for it. A layer that is not
    /// there counts nowhere.
    pub fn count(&mut self, layer: usize, bytes: u64, answer: Answer, evicted: usize) {
        let Some(of_layer) = self.layers.get_mut(layer) else { return };
        of_layer.requests += 1;
        match answer {
            Answer::Hit => of_layer.hits += 1,
            Answer::Load | Answer::Stream => of_layer.bytes_read += bytes,
        }
        self.streamed += u64::from(answer == Answer::Stream);
        self.evictions += evicted as u64;
    }

    /// All layers together.
    pub fn total(&self) -> LayerHits {
        self.layers.iter().fold(LayerHits::default(), |sum, of_layer| LayerHits {
            requests: sum.requests + of_layer.requests,
            hits: sum.hits + of_layer.hits,
            bytes_read: sum.bytes_read + of_layer.bytes_read,
        })
    }

    /// The hits as a share of those of `bound`, such as [`belady`](super::belady())'s: 1 if neither has any.
    pub fn share_of(&self, bound: &Self) -> f64 {
        match (self.total().hits, bound.total().hits) {
            (0, 0) => 1.0,
            (hits, most) => hits as f64 / most as f64,
        }
    }
}

impl LayerHits {
    /// Requests that were no hits.
    pub fn misses(&self) -> u64 {
        self.requests - self.hits
    }

    /// The share of requests that were hits; 0 without requests.
    pub fn hit_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.hits as f64 / self.requests as f64 }
    }
}

/// Runs a trace through a cache, which stays as the trace leaves it.
///
/// ```
/// use moe_core::expert_cache::{CachePolicy, ExpertCache, ExpertSizes, LayerAccess, belady, simulate};
///
/// // One layer, whose tokens go round three experts, with room for two.
/// let (sizes, budget) = (ExpertSizes::equal(1, 3, 10)?, 20);
/// let trace = || (0..30).map(|step| LayerAccess { step, layer: 0, experts: &[[0], [1], [2]][step as usize % 3] });
///
/// let lru = simulate(&mut ExpertCache::new(sizes.clone(), budget, CachePolicy::Lru)?, trace())?;
/// let best = belady(&sizes, budget, [], trace())?;
/// assert_eq!((lru.total().hits, best.total().hits), (0, 18));
/// assert_eq!(lru.share_of(&best), 0.0);
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Residency`](crate::Error::Residency) if the trace has a layer or an expert that the sizes do not, or an expert twice in
/// one access; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub fn simulate<'a>(
    cache: &mut ExpertCache,
    trace: impl IntoIterator<Item = LayerAccess<'a>>,
) -> Result<CacheReport> {
    let mut report = CacheReport::new(cache.sizes().layers())?;
    let mut evicted = Vec::new();
    let mut step = None;
    for access in trace {
        if step != Some(access.step) {
            step = Some(access.step);
            report.steps += 1;
            cache.begin_step();
        }
        cache.begin_layer(access.layer, access.experts.iter().map(|&expert| expert as usize))?;
        for &expert in access.experts {
            let answer = cache.request(expert as usize, &mut evicted)?;
            report.count(access.layer, bytes(cache.sizes(), access.layer, expert), answer, evicted.len());
        }
    }
    Ok(report)
}

fn bytes(sizes: &ExpertSizes, layer: usize, expert: u32) -> u64 {
    sizes.of_layer(layer)[expert as usize]
}
