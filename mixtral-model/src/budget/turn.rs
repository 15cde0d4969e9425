//! Passes take turns: each has the experts of its model for itself.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use moe_core::{Error, Result, ScratchValue, memory};

use super::store::ExpertStore;

/// Lets one pass in at a time.
#[derive(Debug, Default)]
pub(super) struct Turnstile {
    taken: Mutex<bool>,
    given_back: Condvar,
}

impl Turnstile {
    fn take(&self, may_wait: bool) -> Result<()> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            if !may_wait {
                return Err(Error::Busy { what: "experts under a budget of memory" });
            }
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
        Ok(())
    }

    fn give_back(&self) {
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.given_back.notify_one();
    }
}

/// That a pass has a store for itself, until this goes.
#[derive(Debug)]
pub(super) struct Turn {
    store: Arc<ExpertStore>,
    begun: Instant,
    compared: bool,
}

impl Turn {
    /// Has a pass of so many tokens wait for its turn, or fail where it may not wait.
    pub(super) fn new(store: &Arc<ExpertStore>, tokens: usize, may_wait: bool) -> Result<Self> {
        store.turnstile.take(may_wait)?;
        let compared = store.begin_pass(tokens);
        Ok(Self { store: store.clone(), begun: Instant::now(), compared })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.store.end_pass(self.begun.elapsed(), self.compared);
        self.store.turnstile.give_back();
    }
}

/// The turns that a pass has, in whatever stores.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Turn>);

impl ScratchValue for Turns {
    fn bytes(&self) -> usize {
        memory::held(&self.0)
    }
}

impl Turns {
    /// Whether the pass has its turn in a store.
    pub(super) fn has(&self, store: &Arc<ExpertStore>) -> bool {
        self.0.iter().any(|turn| Arc::ptr_eq(&turn.store, store))
    }

    pub(super) fn add(&mut self, turn: Turn) {
        self.0.push(turn);
    }

    /// Gives back the turn in a store.
    pub(super) fn end(&mut self, store: &Arc<ExpertStore>) {
        self.0.retain(|turn| !Arc::ptr_eq(&turn.store, store));
    }
}
