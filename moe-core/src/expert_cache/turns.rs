//! The layers whose turn is farthest, for the policy that evicts by staleness.

use crate::OutOfMemory;
use crate::memory::refill;

/// The layers that have something to evict, and those of them that have something stale.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    some: Vec<u64>,
    stale: Vec<u64>,
}

impl Turns {
    pub(super) fn new(layers: usize) -> Result<Self, OutOfMemory> {
        let mut turns = Self { some: vec![], stale: vec![] };
        for set in [&mut turns.some, &mut turns.stale] {
            refill(set, layers.div_ceil(64), 0, "expert cache")?;
        }
        Ok(turns)
    }

    /// Notes what a layer has.
    pub(super) fn set(&mut self, layer: usize, some: bool, stale: bool) {
        let bit = 1 << (layer % 64);
        for (set, member) in [(&mut self.some, some), (&mut self.stale, stale)] {
            let word = &mut set[layer / 64];
            *word = if member { *word | bit } else { *word & !bit };
        }
    }

    /// A new step has used nothing yet: all that is there is stale.
    pub(super) fn begin_step(&mut self) {
        self.stale.copy_from_slice(&self.some);
    }

    /// The layer to evict from while `layer` is at hand. The turn of a layer comes after those in between, so the farthest is the
    /// layer itself, then the one before it, and so on down, and then from the last one down.
    pub(super) fn farthest(&self, layer: usize) -> Option<usize> {
        [&self.stale, &self.some]
            .into_iter()
            .find_map(|set| highest(set, layer).or_else(|| highest(set, usize::MAX)))
    }
}

/// The highest member that is not above `most`.
fn highest(set: &[u64], most: usize) -> Option<usize> {
    let top = (most / 64).min(set.len() - 1);
    (0..=top).rev().find_map(|i| {
        let below = if i == most / 64 { u64::MAX >> (63 - most % 64) } else { u64::MAX };
        let word = set[i] & below;
        (word != 0).then(|| i * 64 + 63 - word.leading_zeros() as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farthest_turn_first() {
        let mut turns = Turns::new(130).unwrap();
        assert_eq!(turns.farthest(5), None);
        for layer in [0, 63, 64, 129] {
            turns.set(layer, true, layer == 64);
        }
        // What is stale comes first, wherever it is.
        assert_eq!([0, 64, 129].map(|at| turns.farthest(at)), [Some(64); 3]);
        turns.set(64, true, false);
        let at = |layer| turns.farthest(layer);
        assert_eq!([0, 1, 62, 63, 64, 65, 128, 129].map(at), [0, 0, 0, 63, 64, 64, 64, 129].map(Some));
        turns.set(0, false, false);
        assert_eq!(turns.farthest(62), Some(129), "nothing done is left: the last of those to come");
        turns.begin_step();
        turns.set(129, true, false);
        assert_eq!(turns.farthest(62), Some(64));
    }
}
