//! Reading experts before a router has spoken.
//!
//! While a layer computes, the disk may have nothing to do. Which experts the next layer will want is guessed then
//! ([`guess`](crate::guess)), and those that are not in memory are asked for, after all that is known to be wanted. The router decides what
//! becomes of them: those that it wants are waited for as all others are, the others are abandoned at the next piece. They have the memory
//! of the two experts that pass through, and are not read where that is needed.

use std::collections::VecDeque;
use std::str::FromStr;

use memmap2::MmapMut;

use super::fetch::{Fetch, Readers};
use super::place::ExpertPlace;
use super::store::{STREAMED, memory_for};

/// Whether experts are read before a router has spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadAhead {
    /// Where it pays: passes with it and without it are compared while the model runs.
    #[default]
    Measured,
    /// Always.
    On,
    /// Never.
    Off,
}

impl FromStr for ReadAhead {
    type Err = String;

    /// Of `measured`, `on` or `off`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "measured" => Ok(Self::Measured),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err("expected measured, on or off".to_owned()),
        }
    }
}

/// Experts that a layer may want.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// The layer, and its experts, the likeliest first.
    guess: Option<(usize, VecDeque<usize>)>,
    /// What is on its way for a layer.
    fetch: Option<(usize, Fetch)>,
    /// Memory of experts that were let go.
    spare: Vec<MmapMut>,
}

impl Ahead {
    /// Hears what a layer may want.
    pub(super) fn expect(&mut self, layer: usize, experts: VecDeque<usize>) {
        self.guess = Some((layer, experts));
    }

    /// What is on its way for a layer, or for another one by mistake.
    pub(super) fn take(&mut self) -> Option<(usize, Fetch)> {
        self.fetch.take()
    }

    /// Forgets all at the end of a pass, and gives what is on its way.
    pub(super) fn end(&mut self) -> Option<(usize, Fetch)> {
        self.guess = None;
        self.spare.clear();
        self.fetch.take()
    }

    /// Keeps the memory of an expert that was let go in place of one that is on its way.
    pub(super) fn keep(&mut self, memory: &mut Vec<MmapMut>) {
        self.spare.append(memory);
    }

    /// Memory that was kept.
    pub(super) fn spare(&mut self) -> Vec<MmapMut> {
        std::mem::take(&mut self.spare)
    }

    /// Asks for experts that a layer may want and that are not in memory, as many as there is room for beside so many others. Says how many.
    pub(super) fn ask(
        &mut self,
        layer: usize,
        beside: usize,
        readers: &Readers,
        places: &[ExpertPlace],
        is_loaded: impl Fn(usize) -> bool,
    ) -> usize {
        let mut asked = 0;
        if let Some((_, guess)) = self.guess.as_mut().filter(|(of, _)| *of == layer) {
            // What is on its way for a layer that was passed over is of no use.
            self.fetch.take_if(|(of, _)| *of != layer);
            let (_, fetch) = self.fetch.get_or_insert_with(|| (layer, readers.fetch()));
            while beside + fetch.len() < STREAMED
                && let Some(expert) = guess.pop_front()
            {
                // Whoever guesses may name one twice.
                if is_loaded(expert) || fetch.has(expert) {
                    continue;
                }
                // Without memory for it, nothing is read that may be in vain.
                let Ok(memory) = memory_for(&places[expert], &mut self.spare) else { break };
                fetch.ask(expert, &places[expert], memory);
                asked += 1;
            }
        }
        self.spare.clear();
        asked
    }
}
