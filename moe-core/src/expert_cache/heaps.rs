//! Priority queues of keys on storage of a fixed size.

use crate::OutOfMemory;
use crate::memory::refill;

/// Where a key that is in no heap has its place.
const NOWHERE: u32 = u32::MAX;

/// Binary heaps of keys, one for each group of consecutive keys; a key is in its group's heap or in none.
///
/// The order is the caller's: `before(a, b)` whether key `a` comes out before key `b`, a strict total order. It may change for keys
/// that are in no heap; for others, only if the order among those in one heap stays, or with a [rebuild](Self::rebuild).
#[derive(Clone, Debug)]
pub(super) struct Heaps {
    /// Keys of a group.
    width: usize,
    /// Group g has its heap at `g * width`; `[keys]`.
    slots: Vec<u32>,
    /// Length of each heap; `[groups]`.
    lengths: Vec<u32>,
    /// Place of each key in its heap; `[keys]`.
    places: Vec<u32>,
}

impl Heaps {
    /// Empty heaps for `groups` of `width` keys, whose product is below `u32::MAX`.
    pub(super) fn new(groups: usize, width: usize) -> Result<Self, OutOfMemory> {
        let mut heaps = Self { width, slots: vec![], lengths: vec![], places: vec![] };
        refill(&mut heaps.slots, groups * width, NOWHERE, "expert cache")?;
        refill(&mut heaps.places, groups * width, NOWHERE, "expert cache")?;
        refill(&mut heaps.lengths, groups, 0, "expert cache")?;
        Ok(heaps)
    }

    pub(super) fn group(&self, key: u32) -> usize {
        key as usize / self.width
    }

    pub(super) fn contains(&self, key: u32) -> bool {
        self.places[key as usize] != NOWHERE
    }

    /// The key of a group that comes out first.
    pub(super) fn first(&self, group: usize) -> Option<u32> {
        (self.lengths[group] > 0).then(|| self.slots[group * self.width])
    }

    /// Puts in a key that is in no heap.
    pub(super) fn push(&mut self, key: u32, before: impl Fn(u32, u32) -> bool) {
        let group = self.group(key);
        let at = self.lengths[group] as usize;
        self.lengths[group] += 1;
        self.set(group, at, key);
        self.rise(group, at, before);
    }

    /// Takes out a key, if it is in its heap.
    pub(super) fn remove(&mut self, key: u32, before: impl Fn(u32, u32) -> bool) {
        if !self.contains(key) {
            return;
        }
        let (group, at) = (self.group(key), self.places[key as usize] as usize);
        self.lengths[group] -= 1;
        self.places[key as usize] = NOWHERE;
        let last = self.lengths[group] as usize;
        if at < last {
            self.set(group, at, self.slots[group * self.width + last]);
            self.rise(group, at, &before);
            self.sink(group, at, &before);
        }
    }

    /// Puts all heaps in order anew.
    pub(super) fn rebuild(&mut self, before: impl Fn(u32, u32) -> bool) {
        for group in 0..self.lengths.len() {
            for at in (0..self.lengths[group] as usize / 2).rev() {
                self.sink(group, at, &before);
            }
        }
    }

    fn set(&mut self, group: usize, at: usize, key: u32) {
        self.slots[group * self.width + at] = key;
        self.places[key as usize] = at as u32;
    }

    fn rise(&mut self, group: usize, mut at: usize, before: impl Fn(u32, u32) -> bool) {
        let first = group * self.width;
        while at > 0 {
            let above = (at - 1) / 2;
            let (key, parent) = (self.slots[first + at], self.slots[first + above]);
            if !before(key, parent) {
                break;
            }
            self.set(group, above, key);
            self.set(group, at, parent);
            at = above;
        }
    }

    fn sink(&mut self, group: usize, mut at: usize, before: impl Fn(u32, u32) -> bool) {
        let (first, length) = (group * self.width, self.lengths[group] as usize);
        loop {
            let mut below = 2 * at + 1;
            if below >= length {
                break;
            }
            if below + 1 < length && before(self.slots[first + below + 1], self.slots[first + below]) {
                below += 1;
            }
            let (key, child) = (self.slots[first + at], self.slots[first + below]);
            if !before(child, key) {
                break;
            }
            self.set(group, at, child);
            self.set(group, below, key);
            at = below;
        }
    }
}
