//! Which experts stay in memory when not all of them fit.
//!
//! A model larger than memory reads most of its experts from a disk again and again. [`ExpertCache`] decides which of them are
//! **resident** under a budget of bytes: it knows [keys](ExpertKey) (layer, expert) and their [sizes](ExpertSizes), and holds no
//! weights. An engine asks it before it reads, and [`simulate()`] asks it about a recorded trace of routes; both run the same code,
//! so what the simulator foretells is what the engine does.
//!
//! A **step** is one forward pass, of any number of tokens. Its layers come in order, and each names the distinct experts of its
//! plan before it asks for them one by one:
//!
//! ```
//! use moe_core::expert_cache::{Answer, CachePolicy, ExpertCache, ExpertSizes};
//!
//! // Two layers of four experts of 10 bytes; 30 bytes of memory.
//! let sizes = ExpertSizes::equal(2, 4, 10)?;
//! let mut cache = ExpertCache::new(sizes, 30, "lru".parse()?)?;
//! let mut evicted = Vec::new();
//! let mut read = 0;
//! for step in [[1, 2], [1, 3]] {
//!     cache.begin_step();
//!     for layer in 0..2 {
//!         cache.begin_layer(layer, step)?; // or plan.active_experts()
//!         for expert in step {
//!             match cache.request(expert, &mut evicted)? {
//!                 Answer::Hit => {}
//!                 // Let go of what was evicted, read this one, and keep it or not.
//!                 Answer::Load | Answer::Stream => read += 1,
//!             }
//!         }
//!     }
//! }
//! assert_eq!((read, cache.resident_bytes()), (8, 30));
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! # The plan at hand
//!
//! The resident experts of the plan at hand are **pinned** from [`begin_layer`](ExpertCache::begin_layer) to the next one: none of
//! them is evicted for another of the same plan. If the budget holds the whole plan, all of it is resident at the end. If not, an
//! expert that finds no room beside the pinned ones is **streamed**: [`Answer::Stream`] says that it is to be read, used and not
//! kept, and nothing is evicted for it. The same goes for an expert larger than the budget. A streamed expert lies outside of the
//! budget while it is used.
//!
//! # Policies
//!
//! | text | evicts first | budget |
//! |---|---|---|
//! | `lru` | the least recently used | one |
//! | `lru-per-layer` | the least recently used of the layer | shared out |
//! | `lfu` | the least often used; of equals, the least recently used | one |
//! | `lfu-per-layer:age=N` | the same within the layer, all counts being halved every N steps | shared out |
//! | `least-stale` | what this step has not used, then what it has; of either, the layer whose turn is farthest | one |
//!
//! A use is a request, hit or miss; uses are counted whether the expert is resident or not, and outlive its eviction. The order of
//! requests is total, so no policy leaves anything to chance, and nothing depends on an address or a hash.
//!
//! A budget that is **shared out** is dealt in rounds: in each, every layer in ascending order gets room for its largest expert, or
//! for what it lacks to hold all of its own, as long as what remains has it. A layer's share is its own: it neither lends nor borrows.
//!
//! **The cliff.** A decoder asks for the experts of layer 0, 1, 2, … and then for those of layer 0 again. With a budget that is
//! smaller than the experts of one step by those of one layer, a global LRU evicts each of them before its turn comes and
//! hits nothing, however often tokens repeat their experts. Policies per layer and `least-stale` do not fall off it; `lfu` does while
//! counts are equal.
//!
//! **Least-Stale** is the name and the idea of SpecMD, [2602.03921]: experts of a model are asked for in the order of its layers, so what
//! was used last is not what is used next; an expert that the current pass did not use is *stale* and goes first.
//! The order within the two classes is this crate's own, and implementations elsewhere that bear the name differ: the
//! layer at hand itself comes first, then the layers done in this step from the latest to the first (their turn is a whole round
//! away), then those yet to come from the last to the next; within a layer, the least recently used first. What it does is close
//! to `lru-per-layer`, with shares that go where the misses are.
//!
//! # Bounds
//!
//! [`belady()`] knows the future, and [`CacheReport::share_of`] says how much of its hits a policy got: it tells a bad policy from a
//! working set that is too large. For experts of one size nothing can hit more often; for sizes that differ it is a heuristic.
//!
//! [2602.03921]: https://arxiv.org/abs/2602.03921

mod belady;
mod cache;
mod heaps;
mod policy;
mod simulate;
mod sizes;
mod turns;
mod uses;

pub use belady::belady;
pub use cache::{Answer, ExpertCache};
pub use policy::CachePolicy;
pub use simulate::{CacheReport, LayerAccess, LayerHits, simulate};
pub use sizes::{ExpertKey, ExpertSizes};
