//! The bank of one layer's experts, most of which may lie on the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use memmap2::MmapMut;
use moe_core::{
    Dispatch, Error as CoreError, Expected, Experts, Reserve, Result as CoreResult, RowWork, Scratch,
};
use moe_kernels::{Error as KernelError, SwiGlu, SwiGluView, over_rows};
use ndarray::{ArrayViewMut2, Axis, Slice};

use super::fetch::Fetch;
use super::place::{ExpertPlace, Loaded};
use super::store::{Action, Begun, ExpertStore, STREAMED, memory_for};
use super::turn::{Turn, Turns};
use crate::{Compute, Result};

/// The experts of a layer under a budget: what has rows is in memory or is read, computed as it comes, and kept as long as there is room.
/// The same bits as a bank that holds all of them.
#[derive(Debug)]
pub(super) struct CachedExperts {
    store: Arc<ExpertStore>,
    layer: usize,
    /// For passes whose experts are all in memory.
    bank: SwiGlu,
    /// Each expert by itself, to be computed as soon as it is there.
    single: Vec<SwiGlu>,
}

impl CachedExperts {
    pub(super) fn new(
        store: Arc<ExpertStore>,
        layer: usize,
        dim: usize,
        hidden: usize,
        compute: Compute,
    ) -> Result<Self> {
        let formats: Vec<_> = store.places(layer).iter().map(|place| place.formats()).collect();
        let Compute { backend, activations } = compute;
        let of = |formats: &[_]| SwiGlu::new(dim, hidden, formats.iter().copied(), activations, backend);
        let bank = of(&formats)?;
        let single = formats.chunks(1).map(of).collect::<moe_kernels::Result<_>>()?;
        Ok(Self { store, layer, bank, single })
    }

    /// How the layer is computed.
    pub(super) fn bank(&self) -> &SwiGlu {
        &self.bank
    }

    fn view<'a>(&self, expert: usize, loaded: &'a Loaded) -> CoreResult<SwiGluView<'a>> {
        let view = self.store.places(self.layer)[expert].view(loaded).map_err(CoreError::experts)?;
        // Once a time that it is read.
        if !loaded.is_checked.load(Ordering::Relaxed) {
            self.bank.check(expert, view).map_err(CoreError::experts)?;
            loaded.is_checked.store(true, Ordering::Relaxed);
        }
        Ok(view)
    }

    /// Computes the rows of one expert.
    fn compute(
        &self,
        expert: usize,
        loaded: &Loaded,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        out: &mut ArrayViewMut2<'_, f32>,
    ) -> CoreResult<()> {
        let view = self.view(expert, loaded)?;
        let rows = dispatch.rows_of(expert);
        let out = out.slice_axis_mut(Axis(0), Slice::from(rows.clone()));
        let alone = dispatch.of_experts(expert..expert + 1);
        let computed = self.single[expert].forward(|_| view, alone, scratch, out);
        computed.map_err(|error| match error {
            // Of the rows of all experts.
            KernelError::InputNotFinite { row } => {
                CoreError::experts(KernelError::InputNotFinite { row: rows.start + row })
            }
            other => other.in_layer(CoreError::experts),
        })
    }

    /// Computes all experts in the order in which their weights are there.
    fn compute_as_they_come(
        &self,
        experts: &[usize],
        Begun { actions, mut promised, mut fetch }: Begun<'_>,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        out: &mut ArrayViewMut2<'_, f32>,
    ) -> CoreResult<()> {
        let (places, store) = (self.store.places(self.layer), &*self.store);
        let (mut have, mut passing, mut coming) = (Vec::new(), Vec::new(), 0);
        for (action, &expert) in actions.into_iter().zip(experts) {
            match action {
                Action::Have(loaded) => have.push((expert, loaded)),
                Action::Coming => coming += usize::from(!promised.has(expert)),
                Action::Keep(memory) => fetch.ask(expert, &places[expert], memory),
                Action::Pass => passing.push(expert),
            }
        }
        // What passes through is asked for when there is memory for it.
        let mut left = if passing.is_empty() { Vec::new() } else { store.spare(&mut fetch) };
        let (mut passing, mut through, mut result) = (passing.into_iter(), coming, Ok(()));
        while result.is_ok() && through < STREAMED {
            match ask_next(&mut fetch, &mut passing, places, &mut left) {
                Ok(true) => through += 1,
                Ok(false) => break,
                Err(error) => result = Err(error),
            }
        }
        drop(left);
        store.read_ahead(self.layer, through + fetch.abandoned(), &mut Vec::new());
        for (expert, loaded) in &have {
            if result.is_ok() {
                result = self.compute(*expert, loaded, dispatch, scratch, out);
            }
        }
        // All that was asked for comes back, whatever became of the others.
        let (mut reads, mut bytes) = (0, 0);
        while let Some((expert, read)) = fetch.next() {
            let keeps = promised.has(expert);
            let loaded = match read {
                Ok(loaded) => Arc::new(loaded),
                Err(error) => {
                    result = result.and(Err(store.failed(self.layer, expert, error)));
                    continue;
                }
            };
            reads += 1;
            bytes += places[expert].bytes();
            if keeps {
                promised.keep(expert, loaded.clone());
            }
            if result.is_ok() {
                result = self.compute(expert, &loaded, dispatch, scratch, out);
            }
            if !keeps && result.is_ok() {
                let loaded = Arc::into_inner(loaded).map(Loaded::into_memory);
                let mut left = loaded.into_iter().flatten().collect();
                match ask_next(&mut fetch, &mut passing, places, &mut left) {
                    Ok(true) => {}
                    Ok(false) => {
                        through -= 1;
                        store.read_ahead(self.layer, through + fetch.abandoned(), &mut left);
                    }
                    Err(error) => result = Err(error),
                }
            }
        }
        store.count(reads, bytes, fetch.waited);
        result
    }
}

/// Asks for the next expert that passes through, into memory that was left over or new; `false` if there is none.
fn ask_next(
    fetch: &mut Fetch,
    passing: &mut impl Iterator<Item = usize>,
    places: &[ExpertPlace],
    left: &mut Vec<MmapMut>,
) -> CoreResult<bool> {
    let Some(expert) = passing.next() else { return Ok(false) };
    let place = &places[expert];
    let memory = memory_for(place, left)?;
    fetch.ask(expert, place, memory);
    Ok(true)
}

impl Experts for CachedExperts {
    fn experts(&self) -> usize {
        self.bank.experts()
    }

    fn dim(&self) -> usize {
        self.bank.dim()
    }

    fn forward(
        &self,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> CoreResult<()> {
        dispatch.check(self, &out)?;
        // A layer that is used alone reserves nothing: it has its turn for this call, if it is free.
        let _turn = match scratch.of::<Turns>().has(&self.store) {
            true => None,
            false => Some(Turn::new(&self.store, dispatch.rows(), false)?),
        };
        let experts: Vec<_> = (0..self.experts()).filter(|&e| !dispatch.rows_of(e).is_empty()).collect();
        let begun = self.store.begin(self.layer, &experts)?;
        let mut views = vec![None; self.experts()];
        for (action, &expert) in begun.actions.iter().zip(&experts) {
            if let Action::Have(loaded) = action {
                views[expert] = Some(self.view(expert, loaded)?);
            }
        }
        if views.iter().flatten().count() == experts.len() {
            self.store.read_ahead(self.layer, begun.fetch.abandoned(), &mut Vec::new());
            let view =
                |e: usize| views[e].unwrap_or_else(|| unreachable!("only experts with rows are asked for"));
            let computed = self.bank.forward(view, dispatch, scratch, out);
            return computed.map_err(|error| error.in_layer(CoreError::experts));
        }
        drop(views);
        self.compute_as_they_come(&experts, begun, dispatch, scratch, &mut out)
    }

    fn expect(&self, layer: usize, experts: &[Expected]) {
        // What is certain is wanted at once, and asked for then.
        let mut guessed: Vec<_> = experts.iter().filter(|expected| expected.certainty < 1.0).collect();
        if layer == self.layer && !guessed.is_empty() {
            guessed.sort_by(|a, b| b.certainty.total_cmp(&a.certainty));
            let known = guessed.iter().map(|expected| expected.expert).filter(|&e| e < self.experts());
            self.store.expect(layer, known.collect());
        }
    }

    fn reserve(&self, request: &Reserve, scratch: &mut Scratch) -> CoreResult<()> {
        if !scratch.of::<Turns>().has(&self.store) {
            let turn = Turn::new(&self.store, request.tokens, request.may_wait)?;
            scratch.of::<Turns>().add(turn);
        }
        Ok(())
    }

    fn release(&self, scratch: &mut Scratch) {
        scratch.of::<Turns>().end(&self.store);
    }

    fn over_rows(&self, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> CoreResult<()> {
        over_rows(rows, work)
    }
}
