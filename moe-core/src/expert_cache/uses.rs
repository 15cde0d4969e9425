//! When each expert was used last, and how often.

use std::num::NonZeroU32;

use crate::OutOfMemory;
use crate::memory::refill;

use super::CachePolicy;

/// A count's unit is halved this often before all counts are written anew: far from where an f64 ends either way.
const HALVINGS: i32 = 512;

/// The uses of all keys, by which a heap is ordered.
///
/// Ageing halves no count: it doubles what a use adds, which leaves all orders the same.
#[derive(Clone, Debug)]
pub(super) struct Uses {
    counts: bool,
    age: Option<NonZeroU32>,
    /// Steps since counts were halved.
    young: u32,
    /// What a use adds.
    unit: f64,
    halvings: i32,
    count: Vec<f64>,
    /// When each was used last: no two at a time, 0 for never.
    last: Vec<u64>,
    clock: u64,
}

impl Uses {
    pub(super) fn new(keys: usize, policy: CachePolicy) -> Result<Self, OutOfMemory> {
        let age = match policy {
            CachePolicy::LfuPerLayer { age } => Some(age),
            _ => None,
        };
        let (mut count, mut last) = (vec![], vec![]);
        refill(&mut count, keys, 0.0, "expert cache")?;
        refill(&mut last, keys, 0, "expert cache")?;
        Ok(Self { counts: policy.counts(), age, young: 0, unit: 1.0, halvings: 0, count, last, clock: 0 })
    }

    /// A use of a key.
    pub(super) fn touch(&mut self, key: u32) {
        self.clock += 1;
        self.last[key as usize] = self.clock;
        if self.counts {
            self.count[key as usize] += self.unit;
        }
    }

    /// Uses from before the first step. Keys are seeded in ascending order of what they are worth.
    pub(super) fn seed(&mut self, key: u32, uses: f64) {
        self.clock += 1;
        self.last[key as usize] = self.clock;
        if self.counts {
            self.count[key as usize] = uses;
        }
    }

    /// The end of a step; whether heaps must be rebuilt.
    pub(super) fn end_step(&mut self) -> bool {
        let Some(age) = self.age else { return false };
        self.young += 1;
        if self.young < age.get() {
            return false;
        }
        self.young = 0;
        self.unit *= 2.0;
        self.halvings += 1;
        if self.halvings < HALVINGS {
            return false;
        }
        // Counts that differ may be equal now, if they are as good as 0.
        self.count.iter_mut().for_each(|count| *count /= self.unit);
        (self.unit, self.halvings) = (1.0, 0);
        true
    }

    /// The time of the latest use.
    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    /// The time of a key's latest use.
    pub(super) fn last(&self, key: u32) -> u64 {
        self.last[key as usize]
    }

    /// Whether `a` is evicted before `b`.
    pub(super) fn before(&self, a: u32, b: u32) -> bool {
        let (a, b) = (a as usize, b as usize);
        self.count[a].total_cmp(&self.count[b]).then(self.last[a].cmp(&self.last[b])).is_lt()
    }
}
