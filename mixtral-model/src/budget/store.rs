//! The experts of all layers, of which some are in memory.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memmap2::MmapMut;
use moe_core::expert_cache::{Answer, ExpertCache, ExpertKey, ExpertSizes};
use moe_core::{Error as CoreError, Result as CoreResult, memory};

use super::ahead::{Ahead, ReadAhead};
use super::fetch::{Fetch, Readers};
use super::history::History;
use super::place::{ExpertPlace, Loaded, places};
use super::trial::Trial;
use super::turn::Turnstile;
use super::{CacheUse, MemoryPlan};
use crate::{Checkpoint, Config, Error, ExpertMatrix, Result};

/// Experts that are read, used and let go at the same time: one computes while the next one is read.
pub(super) const STREAMED: usize = 2;

/// Tokens of a pass whose layers want some of their experts only.
const FEW: usize = 8;

/// All experts of a model: where they lie, which of them are in memory, and whose turn it is.
#[derive(Debug)]
pub(super) struct ExpertStore {
    /// By layer and expert.
    places: Vec<Vec<ExpertPlace>>,
    sizes: ExpertSizes,
    budget: u64,
    readers: Readers,
    read_ahead: ReadAhead,
    pub(super) turnstile: Turnstile,
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
    history: History,
    ahead: Ahead,
    trial: Trial,
    /// Whether the pass at hand reads ahead.
    reads_ahead: bool,
}

/// What is to be done for an expert of a layer.
pub(super) enum Action {
    /// It is in memory.
    Have(Arc<Loaded>),
    /// It is on its way already, and kept if it is promised.
    Coming,
    /// It is to be read into this memory, and kept.
    Keep([MmapMut; 3]),
    /// It is to be read, used and let go.
    Pass,
}

/// What a layer begins with.
pub(super) struct Begun<'s> {
    /// For each of its experts.
    pub(super) actions: Vec<Action>,
    pub(super) promised: Promised<'s>,
    /// What is on its way already.
    pub(super) fetch: Fetch,
}

/// The experts of a layer for which the cache has made room, and which are not there yet. What is not by the time that this goes, an
/// error or a panic in between, is no resident.
#[derive(Debug)]
pub(super) struct Promised<'s> {
    store: &'s ExpertStore,
    layer: usize,
    experts: Vec<usize>,
}

impl ExpertStore {
    /// All experts of a checkpoint, of which those in memory may take so many bytes.
    pub(super) fn new(checkpoint: &Checkpoint, config: &Config, plan: &MemoryPlan) -> Result<Self> {
        let &MemoryPlan { experts: budget, read_ahead, disk_reads, .. } = plan;
        let places = places(checkpoint, config)?;
        let cache = cache(&places, config, plan)?;
        let sizes = cache.sizes().clone();
        let failed = |source| Error::Io { path: checkpoint.root().into(), source };
        let direct = disk_reads.choose(&places).map_err(failed)?;
        let readers = Readers::new().map_err(failed)?;
        let loaded = places.iter().map(|layer| layer.iter().map(|_| None).collect()).collect();
        let counts = CacheUse { budget, direct, ..CacheUse::default() };
        let (history, ahead, trial) = (History::default(), Ahead::default(), Trial::default());
        let state =
            State { cache, loaded, layer: None, step: 0, counts, history, ahead, trial, reads_ahead: false };
        let store = Self {
            places,
            sizes,
            budget,
            readers,
            read_ahead,
            turnstile: Turnstile::default(),
            state: Mutex::new(state),
        };
        store.read_residents()?;
        Ok(store)
    }

    /// Reads what the cache begins with.
    fn read_residents(&self) -> Result<()> {
        let residents: Vec<_> = self.state().cache.residents().collect();
        let mut fetch = self.readers.fetch();
        for (n, key) in residents.iter().enumerate() {
            let place = &self.places[key.layer][key.expert];
            let memory = memory_for(place, &mut Vec::new());
            fetch.ask(n, place, memory.map_err(|error| Error::moe(key.layer, error, |row| row))?);
        }
        while let Some((n, read)) = fetch.next() {
            let ExpertKey { layer, expert, .. } = residents[n];
            let read = read.map_err(|error| self.failed(layer, expert, error));
            let loaded = Arc::new(read.map_err(|error| Error::moe(layer, error, |row| row))?);
            self.state().loaded[layer][expert] = Some(loaded);
        }
        let state = &mut *self.state();
        state.history.begins_with(&residents);
        state.counts.resident = state.cache.resident_bytes();
        state.counts.peak = state.counts.resident;
        Ok(())
    }

    /// Whether a checkpoint has these experts.
    pub(super) fn is_of(&self, checkpoint: &Checkpoint, config: &Config) -> Result<bool> {
        let other = places(checkpoint, config)?;
        let same = |(one, other): (&Vec<ExpertPlace>, &Vec<ExpertPlace>)| {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.is(other))
        };
        Ok(self.places.len() == other.len() && self.places.iter().zip(&other).all(same))
    }

    /// Where the experts of a layer lie.
    pub(super) fn places(&self, layer: usize) -> &[ExpertPlace] {
        self.places.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Begins a pass of so many tokens, which has its turn. Says whether passes like it are compared with each other.
    pub(super) fn begin_pass(&self, tokens: usize) -> bool {
        // Of many tokens, a layer wants nearly all experts: what is guessed is right.
        let compared = tokens <= FEW && self.read_ahead == ReadAhead::Measured;
        let state = &mut *self.state();
        state.reads_ahead = match self.read_ahead {
            ReadAhead::Measured if compared => state.trial.next(),
            ReadAhead::Measured | ReadAhead::On => true,
            ReadAhead::Off => false,
        };
        compared
    }

    /// Ends a pass, which took so long. Nothing is read any more when this is done.
    pub(super) fn end_pass(&self, took: Duration, compared: bool) {
        let mut state = self.state();
        state.counts.passing += took;
        if compared {
            state.trial.passed(took);
        }
        let on_its_way = state.ahead.end();
        drop(state);
        drop(on_its_way);
    }

    /// Whether the pass at hand reads experts ahead of its routers.
    pub(super) fn reads_ahead(&self) -> bool {
        self.state().reads_ahead
    }

    /// Hears which experts of a layer are likely to be wanted, the likeliest first.
    pub(super) fn expect(&self, layer: usize, experts: VecDeque<usize>) {
        self.state().ahead.expect(layer, experts);
    }

    /// The memory that experts were to be read ahead into, once nothing reads into it.
    pub(super) fn spare(&self, fetch: &mut Fetch) -> Vec<MmapMut> {
        let mut spare = fetch.settle();
        spare.append(&mut self.state().ahead.spare());
        spare
    }

    /// Begins to read what the layer after this one is likely to want, beside so many experts that are not in the cache; into memory that was
    /// left over, first.
    pub(super) fn read_ahead(&self, layer: usize, beside: usize, left: &mut Vec<MmapMut>) {
        let State { ahead, loaded, counts, reads_ahead: true, .. } = &mut *self.state() else { return };
        ahead.keep(left);
        let next = layer + 1;
        let (Some(places), Some(loaded)) = (self.places.get(next), loaded.get(next)) else { return };
        let asked = ahead.ask(next, beside, &self.readers, places, |expert| loaded[expert].is_some());
        counts.ahead += asked as u64;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is to be done for each of these experts of a layer, in their order. What has to make room for them is let go.
    pub(super) fn begin(&self, layer: usize, experts: &[usize]) -> CoreResult<Begun<'_>> {
        let mut promised = Promised { store: self, layer, experts: Vec::new() };
        memory::reserve(&mut promised.experts, experts.len(), "experts of a pass")?;
        let on_its_way = self.state().ahead.take();
        // What is on its way for another layer is of a pass that failed.
        let fetch = on_its_way.filter(|(of, _)| *of == layer).map(|(_, fetch)| fetch);
        let fetch = fetch.unwrap_or_else(|| self.readers.fetch());
        fetch.abandon_but(experts);
        let actions = self.decide(layer, experts, &fetch, &mut promised.experts)?;
        Ok(Begun { actions, promised, fetch })
    }

    fn decide(
        &self,
        layer: usize,
        experts: &[usize],
        fetch: &Fetch,
        promised: &mut Vec<usize>,
    ) -> CoreResult<Vec<Action>> {
        let state = &mut *self.state();
        if state.layer.is_none_or(|before| layer <= before) {
            state.cache.begin_step();
            state.step += 1;
        }
        state.layer = Some(layer);
        state.history.remember(state.step, layer, experts)?;
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
                (Answer::Stream, _) if fetch.has(expert) => Action::Coming,
                (Answer::Stream, _) => Action::Pass,
                (Answer::Hit | Answer::Load, _) => {
                    promised.push(expert);
                    if fetch.has(expert) {
                        state.ahead.keep(&mut left);
                        Action::Coming
                    } else {
                        Action::Keep(memory_for(&self.places[layer][expert], &mut left)?)
                    }
                }
            });
            state.counts.ahead_wanted += u64::from(matches!(actions.last(), Some(Action::Coming)));
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
        counts.ahead_pays = state.trial.pays();
        let history = state.history.clone();
        drop(state);
        counts.bound = history.bound(&self.sizes, self.budget);
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
}

/// The cache of experts that a plan asks for, which knows where they lie.
pub(super) fn cache(places: &[Vec<ExpertPlace>], config: &Config, plan: &MemoryPlan) -> Result<ExpertCache> {
    let most = config.experts.most();
    let room = |layer: &Vec<ExpertPlace>, e| layer.get(e).map_or(0, ExpertPlace::room);
    let rooms: Vec<_> = places.iter().flat_map(|layer| (0..most).map(move |e| room(layer, e))).collect();
    let made = ExpertSizes::new(config.layers, most, &rooms)
        .and_then(|sizes| ExpertCache::new(sizes, plan.experts, plan.policy))
        .and_then(|cache| match &plan.prior {
            Some(prior) => cache.with_prior(&prior.worth(config, most)),
            None => Ok(cache),
        });
    made.map_err(|source| Error::Setting {
        setting: "expert cache",
        expected: "experts of a model".to_owned(),
        found: source.to_string(),
    })
}

/// Memory for an expert, of what was left over or new.
pub(super) fn memory_for(place: &ExpertPlace, left: &mut Vec<MmapMut>) -> CoreResult<[MmapMut; 3]> {
    let [w1, w2, w3] = place.0.each_ref().map(|matrix| matrix.memory(left));
    match (w1, w2, w3) {
        (Ok(w1), Ok(w2), Ok(w3)) => Ok([w1, w2, w3]),
        _ => Err(moe_core::OutOfMemory { what: "weights of an expert", bytes: place.room() as usize }.into()),
    }
}
