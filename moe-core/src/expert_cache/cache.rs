//! The cache itself.

use std::cmp::Ordering;

use crate::memory::{refill, refill_from, reserve};
use crate::{Error, Result};

use super::heaps::Heaps;
use super::turns::Turns;
use super::uses::Uses;
use super::{CachePolicy, ExpertKey, ExpertSizes};

/// What to do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The expert is resident.
    Hit,
    /// Read it and keep it: it is resident from now on.
    Load,
    /// Read it, use it and let it go: there is no room to keep it.
    Stream,
}

/// Decides which experts are resident under a budget of bytes; see [the module](super).
///
/// A request takes O(log n) for n experts that compete, and a word per 64 layers; all memory is taken at construction, about 40
/// bytes an expert of the model.
#[derive(Clone, Debug)]
pub struct ExpertCache {
    sizes: ExpertSizes,
    policy: CachePolicy,
    /// What may be resident: one number, or one a layer.
    budgets: Vec<u64>,
    /// What is; as `budgets`.
    used: Vec<u64>,
    resident: Vec<bool>,
    /// The residents that may be evicted.
    heaps: Heaps,
    uses: Uses,
    turns: Turns,
    /// The time when the step began.
    step_start: u64,
    stepping: bool,
    /// The layer at hand.
    layer: Option<usize>,
    /// The experts of its plan; none of those that are resident is in a heap.
    plan: Vec<u32>,
    /// The visit in which each key was in a plan last; 0 for never.
    planned: Vec<u64>,
    /// Number of plans so far.
    visit: u64,
    /// Bytes of the plan's residents.
    pinned: u64,
}

impl ExpertCache {
    /// An empty cache for experts of these sizes with a budget in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn new(sizes: ExpertSizes, budget: u64, policy: CachePolicy) -> Result<Self> {
        let (keys, layers, experts) = (sizes.keys(), sizes.layers(), sizes.experts());
        let mut cache = Self {
            policy,
            budgets: vec![],
            used: vec![],
            resident: vec![],
            heaps: match policy {
                CachePolicy::Lru | CachePolicy::Lfu => Heaps::new(1, keys)?,
                _ => Heaps::new(layers, experts)?,
            },
            uses: Uses::new(keys, policy)?,
            turns: Turns::new(layers)?,
            step_start: 0,
            stepping: false,
            layer: None,
            plan: vec![],
            planned: vec![],
            visit: 0,
            pinned: 0,
            sizes,
        };
        match policy.is_per_layer() {
            true => share_out(&cache.sizes, budget, &mut cache.budgets)?,
            false => refill(&mut cache.budgets, 1, budget, WHAT)?,
        }
        refill(&mut cache.used, cache.budgets.len(), 0, WHAT)?;
        refill(&mut cache.resident, keys, false, WHAT)?;
        refill(&mut cache.planned, keys, 0, WHAT)?;
        reserve(&mut cache.plan, experts, WHAT)?;
        Ok(cache)
    }

    /// The same, which knows from an earlier trace, or from the counts of a calibration, how much each expert is worth:
    /// `[layers, experts]`, by layer. Call it before the first step.
    ///
    /// Experts are resident from the start in descending order of worth, ties to the lower key, wherever there is room;
    /// those worth nothing are not. Policies that count take the worth for uses so far, so its scale says how long it
    /// weighs against uses to come; the others take the worthier for the more recently used.
    ///
    /// [`residents`](Self::residents) says what is to be read.
    ///
    /// # Errors
    ///
    /// [`Error::Residency`] if there was a step or a prior before, the list has another length, or a worth is not from 0 to 10¹⁵;
    /// [`Error::OutOfMemory`].
    pub fn with_prior(mut self, worth: &[f64]) -> Result<Self> {
        if self.stepping || self.uses.now() > 0 {
            return Err(Error::residency(
                "expert cache, prior",
                "one, before the first step",
                "another, or a later one",
            ));
        }
        if worth.len() != self.sizes.keys() {
            return Err(Error::residency(
                "expert cache, prior",
                format!("{} numbers", self.sizes.keys()),
                worth.len(),
            ));
        }
        if let Some(found) = worth.iter().find(|worth| !(0.0..=1e15).contains(*worth)) {
            return Err(Error::residency("expert cache, prior", "numbers from 0 to 1e15", found));
        }
        let mut order = Vec::new();
        refill_from(
            &mut order,
            worth.len(),
            (0..worth.len() as u32).filter(|&key| worth[key as usize] > 0.0),
            WHAT,
        )?;
        order.sort_unstable_by(|&a, &b| match worth[b as usize].total_cmp(&worth[a as usize]) {
            Ordering::Equal => a.cmp(&b),
            unequal => unequal,
        });
        for &key in &order {
            let (bytes, group) = (self.sizes.at(key as usize), self.budget_of(key));
            if bytes <= self.budgets[group] - self.used[group] {
                self.used[group] += bytes;
                self.resident[key as usize] = true;
            }
        }
        order.iter().rev().for_each(|&key| self.uses.seed(key, worth[key as usize]));
        order.retain(|&key| self.resident[key as usize]);
        order.into_iter().for_each(|key| self.release(key));
        Ok(self)
    }

    /// Begins a forward pass.
    pub fn begin_step(&mut self) {
        self.end_layer();
        if self.stepping && self.uses.end_step() {
            self.heaps.rebuild(|a, b| self.uses.before(a, b));
        }
        self.stepping = true;
        self.step_start = self.uses.now() + 1;
        self.turns.begin_step();
    }

    /// Begins a layer, whose plan has these distinct experts: those of them that are resident stay so until the next layer, or
    /// step, begins.
    ///
    /// Without a step before it, it begins one.
    ///
    /// # Errors
    ///
    /// [`Error::Residency`] if the layer or an expert is out of range, or an expert is there twice. No layer is at hand then.
    pub fn begin_layer(&mut self, layer: usize, experts: impl IntoIterator<Item = usize>) -> Result<()> {
        if !self.stepping {
            self.begin_step();
        }
        self.end_layer();
        self.visit += 1;
        self.sizes.checked_index(ExpertKey::new(layer, 0))?;
        self.layer = Some(layer);
        for expert in experts {
            if let Err(error) = self.announce(ExpertKey::new(layer, expert)) {
                self.end_layer();
                return Err(error);
            }
        }
        Ok(())
    }

    fn announce(&mut self, key: ExpertKey) -> Result<()> {
        let index = self.sizes.checked_index(key)?;
        if self.planned[index] == self.visit {
            let found = format!("layer {}, expert {} twice", key.layer, key.expert);
            return Err(Error::residency("expert cache, plan", "distinct experts", found));
        }
        self.planned[index] = self.visit;
        // Distinct experts are as many as there is room for.
        self.plan.push(index as u32);
        if self.resident[index] {
            self.heaps.remove(index as u32, |a, b| self.uses.before(a, b));
            self.pinned += self.sizes.at(index);
            self.note_turn(key.layer);
        }
        Ok(())
    }

    /// Leaves the plan at hand: its experts may be evicted.
    fn end_layer(&mut self) {
        for i in 0..self.plan.len() {
            let key = self.plan[i];
            if self.resident[key as usize] {
                self.release(key);
            }
        }
        self.plan.clear();
        self.pinned = 0;
        self.layer = None;
    }

    /// Puts a resident where it can be evicted.
    fn release(&mut self, key: u32) {
        self.heaps.push(key, |a, b| self.uses.before(a, b));
        self.note_turn(self.sizes.key(key as usize).layer);
    }

    /// Notes what a layer has for eviction, where the policy asks for the layer first.
    fn note_turn(&mut self, layer: usize) {
        if self.policy == CachePolicy::LeastStale {
            let first = self.heaps.first(layer);
            let stale = first.is_some_and(|key| self.uses.last(key) < self.step_start);
            self.turns.set(layer, first.is_some(), stale);
        }
    }

    /// Asks for an expert of the plan at hand, which counts as a use. What is to be let go for it is in `evicted`, which is
    /// overwritten and grows only if it must.
    ///
    /// Asked for again, an expert is a hit if it is resident, and streams again if not.
    ///
    /// # Errors
    ///
    /// [`Error::Residency`] if the expert is not of the plan at hand; [`Error::OutOfMemory`] for the list of what was evicted, in
    /// which case the expert is not resident, and what the list holds is not either.
    pub fn request(&mut self, expert: usize, evicted: &mut Vec<ExpertKey>) -> Result<Answer> {
        evicted.clear();
        let layer = self.layer.ok_or_else(|| {
            Error::residency(
                "expert cache",
                "a layer at hand",
                format!("expert {expert} asked for before one"),
            )
        })?;
        let key = ExpertKey::new(layer, expert);
        let index = self.sizes.checked_index(key)?;
        if self.planned[index] != self.visit {
            let found = format!("expert {expert}, which was not announced");
            return Err(Error::residency(
                "expert cache",
                format!("an expert of the plan of layer {layer}"),
                found,
            ));
        }
        self.uses.touch(index as u32);
        if self.resident[index] {
            return Ok(Answer::Hit);
        }
        let (bytes, group) = (self.sizes.at(index), self.budget_of(index as u32));
        // Whatever is resident and not pinned can make room.
        if bytes > self.budgets[group] - self.pinned {
            return Ok(Answer::Stream);
        }
        while bytes > self.budgets[group] - self.used[group] {
            reserve(evicted, 1, "evicted experts")?;
            let Some(victim) = self.victim(layer) else { return Ok(Answer::Stream) };
            self.drop_resident(victim);
            evicted.push(self.sizes.key(victim as usize));
        }
        self.resident[index] = true;
        self.used[group] += bytes;
        self.pinned += bytes;
        Ok(Answer::Load)
    }

    /// The expert to evict next.
    fn victim(&self, layer: usize) -> Option<u32> {
        let group = match self.policy {
            CachePolicy::Lru | CachePolicy::Lfu => 0,
            CachePolicy::LruPerLayer | CachePolicy::LfuPerLayer { .. } => layer,
            CachePolicy::LeastStale => self.turns.farthest(layer)?,
        };
        self.heaps.first(group)
    }

    fn drop_resident(&mut self, key: u32) {
        let group = self.budget_of(key);
        self.resident[key as usize] = false;
        self.used[group] -= self.sizes.at(key as usize);
        self.heaps.remove(key, |a, b| self.uses.before(a, b));
        self.note_turn(self.sizes.key(key as usize).layer);
    }

    /// Takes an expert off the residents, such as one whose reading failed; whether it was one. Its uses stay counted, and what
    /// was evicted for it does not come back.
    pub fn forget(&mut self, key: ExpertKey) -> bool {
        let Some(index) = self.sizes.index(key).filter(|&index| self.resident[index]) else { return false };
        if self.layer == Some(key.layer) && self.planned[index] == self.visit {
            self.pinned -= self.sizes.at(index);
        }
        self.drop_resident(index as u32);
        true
    }

    /// Which of the budgets counts a key.
    fn budget_of(&self, key: u32) -> usize {
        match self.policy.is_per_layer() {
            true => self.sizes.key(key as usize).layer,
            false => 0,
        }
    }

    /// Whether an expert is resident.
    pub fn is_resident(&self, key: ExpertKey) -> bool {
        self.sizes.index(key).is_some_and(|index| self.resident[index])
    }

    /// What is resident, by ascending key.
    pub fn residents(&self) -> impl Iterator<Item = ExpertKey> + '_ {
        (0..self.resident.len()).filter(|&i| self.resident[i]).map(|i| self.sizes.key(i))
    }

    /// Bytes of what is resident.
    pub fn resident_bytes(&self) -> u64 {
        self.used.iter().sum()
    }

    /// The bytes that a layer's experts may take: the layer's share, or the whole budget where layers share it.
    pub fn budget(&self, layer: usize) -> Option<u64> {
        let shared =
            self.budgets.first().filter(|_| !self.policy.is_per_layer() && layer < self.sizes.layers());
        shared.or(self.budgets.get(layer).filter(|_| self.policy.is_per_layer())).copied()
    }

    /// The policy.
    pub fn policy(&self) -> CachePolicy {
        self.policy
    }

    /// The sizes of the experts.
    pub fn sizes(&self) -> &ExpertSizes {
        &self.sizes
    }
}

const WHAT: &str = "expert cache";

/// Deals a budget out to the layers, in rounds.
fn share_out(sizes: &ExpertSizes, budget: u64, shares: &mut Vec<u64>) -> Result<()> {
    refill(shares, sizes.layers(), 0, WHAT)?;
    let (mut layers, mut left) = (Vec::new(), budget);
    let of_layer = |layer: &[u64]| (layer.iter().copied().max().unwrap_or(0), layer.iter().sum::<u64>());
    refill_from(&mut layers, sizes.layers(), (0..sizes.layers()).map(|n| of_layer(sizes.of_layer(n))), WHAT)?;
    loop {
        let before = left;
        for (share, &(largest, all)) in shares.iter_mut().zip(&layers) {
            let more = largest.min(all - *share);
            if more <= left {
                *share += more;
                left -= more;
            }
        }
        if left == before {
            return Ok(());
        }
    }
}
