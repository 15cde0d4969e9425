//! The experts of all layers, of which some are in memory.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memmap2::MmapMut;
use moe_core::expert_cache::{Answer, CachePolicy, ExpertCache, ExpertKey, ExpertSizes, LayerAccess, belady};
use moe_core::{Error as CoreError, Result as CoreResult, ScratchValue, memory};

use super::CacheUse;
use super::fetch::Readers;
use super::place::{ExpertPlace, Loaded};
use crate::{Checkpoint, Config, Error, ExpertMatrix, Manifest, Result};

/// Experts that are read, used and let go at the same time: one computes while the next one is read.
pub(super) const STREAMED: usize = 2;

/// Accesses that are remembered to compare with Belady's bound, at most.
const REMEMBERED: usize = 1 << 19;

/// All experts of a model: where they lie, which of them are in memory, and whose turn it is.
#[derive(Debug)]
pub(super) struct ExpertStore {
    /// By layer and expert.
    places: Vec<Vec<ExpertPlace>>,
    sizes: ExpertSizes,
    budget: u64,
    readers: Readers,
    taken: Mutex<bool>,
    given_back: Condvar,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cache: ExpertCache,
    /// By layer and expert.
    loaded: Vec<Vec<Option<Arc<Loaded>>>>,
    /// The layer that was at work last.
    layer: Option<usize>,
    step: u64,
    counts: CacheUse,
    /// Pass, layer, and where its experts end.
    accesses: Vec<(u64, usize, usize)>,
    accessed: Vec<u32>,
    /// Whether all accesses so far are there.
    remembers: bool,
}

/// What is to be done for an expert of a layer.
pub(super) enum Action {
    /// It is in memory.
    Have(Arc<Loaded>),
    /// It is to be read into this memory, and kept.
    Keep([MmapMut; 3]),
    /// It is to be read, used and let go.
    Pass,
}

/// The experts of a layer for which the cache has made room, and which are not there yet. What is not by the time that this goes, an
/// error or a panic in between, is no resident.
#[derive(Debug)]
pub(super) struct Promised<'s> {
    store: &'s ExpertStore,
    layer: usize,
    experts: Vec<usize>,
}

/// That a pass has the store for itself, until this goes.
#[derive(Debug)]
pub(super) struct Turn(Arc<ExpertStore>);

/// The turns that a pass has, in whatever stores.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Turn>);

impl ScratchValue for Turns {
    fn bytes(&self) -> usize {
        memory::held(&self.0)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.given_back.notify_one();
    }
}

impl Turns {
    /// Whether the pass has its turn in a store.
    pub(super) fn has(&self, store: &Arc<ExpertStore>) -> bool {
        self.0.iter().any(|turn| Arc::ptr_eq(&turn.0, store))
    }

    pub(super) fn add(&mut self, turn: Turn) {
        self.0.push(turn);
    }

    /// Gives back the turn in a store.
    pub(super) fn end(&mut self, store: &Arc<ExpertStore>) {
        self.0.retain(|turn| !Arc::ptr_eq(&turn.0, store));
    }
}

impl ExpertStore {
    /// All experts of a checkpoint, of which those in memory may take so many bytes.
    pub(super) fn new(
        checkpoint: &Checkpoint,
        config: &Config,
        budget: u64,
        policy: CachePolicy,
    ) -> Result<Self> {
        let (manifest, mut places, mut rooms) = (Manifest::new(config), Vec::new(), Vec::new());
        let most = config.experts.most();
        for layer in 0..config.layers {
            let manifest = manifest.layer(layer);
            let of_expert = |e| ExpertPlace::of(checkpoint, config, &manifest, e);
            let of_layer = (0..config.experts.of(layer)).map(of_expert).collect::<Result<Vec<_>>>()?;
            rooms.extend((0..most).map(|e| of_layer.get(e).map_or(0, ExpertPlace::room)));
            places.push(of_layer);
        }
        let of_cache = |source: CoreError| Error::Setting {
            setting: "expert cache",
            expected: "experts of a model".to_owned(),
            found: source.to_string(),
        };
        let sizes = ExpertSizes::new(config.layers, most, &rooms).map_err(of_cache)?;
        let cache = ExpertCache::new(sizes.clone(), budget, policy).map_err(of_cache)?;
        let loaded = places.iter().map(|layer| layer.iter().map(|_| None).collect()).collect();
        let counts = CacheUse { budget, ..CacheUse::default() };
        let (accesses, accessed) = (Vec::new(), Vec::new());
        let remembers = true;
        let state = State { cache, loaded, layer: None, step: 0, counts, accesses, accessed, remembers };
        Ok(Self {
            places,
            sizes,
            budget,
            readers: Readers::new().map_err(|source| Error::Io { path: checkpoint.root().into(), source })?,
            taken: Mutex::new(false),
            given_back: Condvar::new(),
            state: Mutex::new(state),
        })
    }

    /// Where the experts of a layer lie.
    pub(super) fn places(&self, layer: usize) -> &[ExpertPlace] {
        self.places.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Who reads.
    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Has the pass wait for its turn, or fail where it may not wait.
    pub(super) fn turn(self: &Arc<Self>, may_wait: bool) -> CoreResult<Turn> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            if !may_wait {
                return Err(CoreError::Busy { what: "experts under a budget of memory" });
            }
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        Ok(Turn(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is to be done for each of these experts of a layer, in their order. What has to make room for them is let go.
    pub(super) fn begin(&self, layer: usize, experts: &[usize]) -> CoreResult<(Vec<Action>, Promised<'_>)> {
        let mut promised = Promised { store: self, layer, experts: Vec::new() };
        memory::reserve(&mut promised.experts, experts.len(), "experts of a pass")?;
        let actions = self.decide(layer, experts, &mut promised.experts)?;
        Ok((actions, promised))
    }

    fn decide(&self, layer: usize, experts: &[usize], promised: &mut Vec<usize>) -> CoreResult<Vec<Action>> {
        let state = &mut *self.state();
        if state.layer.is_none_or(|before| layer <= before) {
            state.cache.begin_step();
            state.step += 1;
        }
        state.layer = Some(layer);
        state.remember(layer, experts)?;
        state.cache.begin_layer(layer, experts.iter().copied())?;
        let (mut actions, mut evicted, mut left) = (Vec::new(), Vec::new(), Vec::new());
        memory::reserve(&mut actions, experts.len(), "experts of a pass")?;
        // As many as there are: no request then fails for the list of what it evicts.
        memory::reserve(&mut evicted, self.sizes.layers() * self.sizes.experts(), "experts of a pass")?;
        for &expert in experts {
            let answer = state.cache.request(expert, &mut evicted)?;
            for key in &evicted {
                left.extend(state.take(*key).into_iter().flatten());
            }
            state.counts.requests += 1;
            let have = state.loaded[layer][expert].clone();
            actions.push(match (answer, have) {
                (Answer::Hit, Some(loaded)) => {
                    state.counts.hits += 1;
                    Action::Have(loaded)
                }
                (Answer::Stream, _) => Action::Pass,
                (Answer::Hit | Answer::Load, _) => {
                    promised.push(expert);
                    Action::Keep(memory_for(&self.places[layer][expert], &mut left)?)
                }
            });
            // What fits nothing is given back before more is taken.
            left.clear();
        }
        state.counts.resident = state.cache.resident_bytes();
        state.counts.peak = state.counts.peak.max(state.counts.resident);
        Ok(actions)
    }

    /// Notes how many experts were read, of how many bytes, and how long the pass waited for them.
    pub(super) fn count(&self, experts: u64, bytes: u64, waited: Duration) {
        let counts = &mut self.state().counts;
        counts.reads += experts;
        counts.bytes_read += bytes;
        counts.waited += waited;
    }

    /// What happened so far.
    pub(super) fn counts(&self) -> CacheUse {
        let state = self.state();
        let mut counts = state.counts.clone();
        counts.policy = state.cache.policy().to_string();
        (counts.disk_bytes, counts.reading) = self.readers.read();
        let (accesses, accessed) = (state.accesses.clone(), state.accessed.clone());
        let whole = state.remembers;
        drop(state);
        let mut begin = 0;
        let all = accesses.iter().map(|&(step, layer, end)| {
            let experts = &accessed[std::mem::replace(&mut begin, end)..end];
            LayerAccess { step, layer, experts }
        });
        counts.bound = whole
            .then(|| belady(&self.sizes, self.budget, [], all).ok())
            .flatten()
            .map(|found| found.total().hits);
        counts
    }

    /// The error of a matrix that cannot be read.
    pub(super) fn failed(
        &self,
        layer: usize,
        expert: usize,
        (matrix, source): (usize, io::Error),
    ) -> CoreError {
        let path = self.places[layer][expert].0[matrix].path().to_path_buf();
        let what = format!("layer {layer}, expert {expert}, {}: {source}", ExpertMatrix::ALL[matrix].name());
        CoreError::experts(Error::Io { path, source: io::Error::new(source.kind(), what) })
    }
}

impl Promised<'_> {
    /// Whether the expert is to be kept.
    pub(super) fn has(&self, expert: usize) -> bool {
        self.experts.contains(&expert)
    }

    /// Keeps an expert that was read.
    pub(super) fn keep(&mut self, expert: usize, loaded: Arc<Loaded>) {
        self.experts.retain(|&promised| promised != expert);
        self.store.state().loaded[self.layer][expert] = Some(loaded);
    }
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        if !self.experts.is_empty() {
            let cache = &mut self.store.state().cache;
            for &expert in &self.experts {
                cache.forget(ExpertKey::new(self.layer, expert));
            }
        }
    }
}

impl State {
    /// Takes the memory of an expert that is let go. Nobody works with it: a pass has the store for itself.
    fn take(&mut self, key: ExpertKey) -> Option<[MmapMut; 3]> {
        let loaded = self.loaded.get_mut(key.layer)?.get_mut(key.expert)?.take()?;
        Arc::into_inner(loaded).map(Loaded::into_memory)
    }

    fn remember(&mut self, layer: usize, experts: &[usize]) -> CoreResult<()> {
        self.remembers &= self.accessed.len() + experts.len() <= REMEMBERED;
        if !self.remembers {
            // There is no bound to compare with any more.
            (self.accesses, self.accessed) = (Vec::new(), Vec::new());
            return Ok(());
        }
        memory::reserve(&mut self.accessed, experts.len(), "accesses to experts")?;
        self.accessed.extend(experts.iter().map(|&expert| expert as u32));
        Ok(memory::push(&mut self.accesses, (self.step, layer, self.accessed.len()), "accesses to experts")?)
    }
}

/// Memory for an expert, of what was left over or new.
pub(super) fn memory_for(place: &ExpertPlace, left: &mut Vec<MmapMut>) -> CoreResult<[MmapMut; 3]> {
    let [w1, w2, w3] = place.0.each_ref().map(|matrix| matrix.memory(left));
    match (w1, w2, w3) {
        (Ok(w1), Ok(w2), Ok(w3)) => Ok([w1, w2, w3]),
        _ => Err(moe_core::OutOfMemory { what: "weights of an expert", bytes: place.room() as usize }.into()),
    }
}
