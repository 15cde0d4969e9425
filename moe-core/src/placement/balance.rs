//! Placements that even out a known load.

use crate::memory::{refill, refill_from};
use crate::{Error, Result};

use super::{Placement, WHAT};

impl Placement {
    /// By load: `load[layer * experts + expert]` is how often each expert is chosen, and `copies` how many more than one of each
    /// a layer holds in all, for the experts that are chosen most.
    ///
    /// Each layer for itself, since its ranks wait for each other before the next one begins:
    ///
    /// 1. Each further copy goes to the expert with the greatest load a copy that is not on all ranks yet; ties to the lower expert.
    /// 2. In descending order of load a copy (ties to the lower expert), each copy goes to the rank with the least load so far that
    ///    does not hold the expert and has room, at most `⌈(experts + copies) / ranks⌉` of them (ties: fewer
    ///    experts, then the lower rank). Where no rank has both, room counts no more.
    ///
    /// It is the greedy of longest processing time first with replicas, as in DeepSeek's expert-parallel load balancer
    /// ([EPLB]); the greatest load of a rank is not always the least that is possible.
    ///
    /// # Errors
    ///
    /// As [`from_holders`](Self::from_holders), and if the load has another length, or there are more copies than
    /// `experts · (ranks - 1)`.
    ///
    /// [EPLB]: https://github.com/deepseek-ai/EPLB
    pub fn by_load(layers: usize, experts: usize, ranks: usize, load: &[u64], copies: usize) -> Result<Self> {
        let mut placement = Self::empty(layers, experts, ranks)?;
        if load.len() != layers * experts {
            let expected = format!("{} numbers", layers * experts);
            return Err(Error::residency("placement, load", expected, load.len()));
        }
        let most = experts.saturating_mul(ranks - 1);
        if copies > most {
            return Err(Error::residency("placement, copies", format!("at most {most}"), copies));
        }
        let mut balance = Balance::default();
        for load in load.chunks_exact(experts) {
            balance.replicate(load, ranks, copies)?;
            balance.place(load, ranks, copies)?;
            for expert in 0..experts {
                for &(_, rank) in balance.placed.iter().filter(|(e, _)| *e as usize == expert) {
                    placement.hold(rank)?;
                }
                placement.seal_expert()?;
            }
        }
        Ok(placement)
    }
}

/// One layer's experts on their way to ranks.
#[derive(Default)]
struct Balance {
    /// Copies of each expert.
    copies: Vec<u32>,
    /// The experts in descending order of load a copy.
    order: Vec<u32>,
    /// Load and number of experts of each rank so far.
    ranks: Vec<(f64, usize)>,
    /// Which expert is on which rank.
    placed: Vec<(u32, u32)>,
}

impl Balance {
    /// Decides on the number of copies.
    fn replicate(&mut self, load: &[u64], ranks: usize, copies: usize) -> Result<()> {
        refill(&mut self.copies, load.len(), 1, WHAT)?;
        for _ in 0..copies {
            let free = (0..load.len()).filter(|&e| (self.copies[e] as usize) < ranks);
            let heaviest = free.reduce(|a, b| {
                // load[b] / copies[b] > load[a] / copies[a], exactly.
                let cross = |e: usize, other: usize| load[e] as u128 * u128::from(self.copies[other]);
                if cross(b, a) > cross(a, b) { b } else { a }
            });
            if let Some(expert) = heaviest {
                self.copies[expert] += 1;
            }
        }
        Ok(())
    }

    /// Decides on the ranks.
    fn place(&mut self, load: &[u64], ranks: usize, copies: usize) -> Result<()> {
        let room = (load.len() + copies).div_ceil(ranks);
        let share = |e: u32, copies: &[u32]| load[e as usize] as f64 / f64::from(copies[e as usize]);
        refill_from(&mut self.order, load.len(), 0..load.len() as u32, WHAT)?;
        self.order.sort_unstable_by(|&a, &b| {
            share(b, &self.copies).total_cmp(&share(a, &self.copies)).then(a.cmp(&b))
        });
        refill(&mut self.ranks, ranks, (0.0, 0), WHAT)?;
        refill(&mut self.placed, load.len() + copies, (0, 0), WHAT)?;
        self.placed.clear();
        for &expert in &self.order {
            for _ in 0..self.copies[expert as usize] {
                // An expert's copies are placed one after the other.
                let copies = self.placed.iter().rev().take_while(|(e, _)| *e == expert);
                let holds = |rank: usize| copies.clone().any(|(_, r)| *r as usize == rank);
                let key = |&rank: &usize| (self.ranks[rank].1 >= room, self.ranks[rank], rank);
                let least = (0..ranks).filter(|&rank| !holds(rank)).min_by(|a, b| {
                    let ((full_a, (load_a, held_a), a), (full_b, (load_b, held_b), b)) = (key(a), key(b));
                    full_a.cmp(&full_b).then(load_a.total_cmp(&load_b)).then((held_a, a).cmp(&(held_b, b)))
                });
                if let Some(rank) = least {
                    self.ranks[rank].0 += share(expert, &self.copies);
                    self.ranks[rank].1 += 1;
                    self.placed.push((expert, rank as u32));
                }
            }
        }
        Ok(())
    }
}
