//! Which ranks hold which experts.
//!
//! Under expert parallelism each **rank** (a process, a socket, a machine) holds some of the experts, and a token's hidden row travels
//! from its **home**, the rank that has the token, to those that hold its experts. A [`Placement`] says who holds what, and
//! which of several holders serves a token; [`Traffic`] counts what travels and how even the work is, on a recorded trace as in
//! an engine.
//!
//! ```
//! use moe_core::placement::{Placement, TokenRoute, Traffic};
//!
//! // One layer of four experts on two ranks: 0 and 1 on the first, 2 and 3 on the second.
//! let placement = Placement::blocks(1, 4, 2)?;
//! let mut traffic = Traffic::new(2)?;
//! traffic.add(&placement, 0, [
//!     TokenRoute { token: 0, home: 0, experts: &[0, 1] },
//!     TokenRoute { token: 1, home: 0, experts: &[2, 3] },
//! ])?;
//! // The second token travels once, for two experts, and two rows come back.
//! assert_eq!((traffic.rows_sent, traffic.rows_returned), (1, 2));
//! assert_eq!(traffic.rows_worked(), [2, 2]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! # Who serves
//!
//! Of the ranks that hold an expert, the token's home serves it if it is one of them; else the one at `token mod holders` in ascending
//! order of ranks. So every rank knows by itself who serves whom, and no count of what went before is needed.
//!
//! # As text
//!
//! A line of the three numbers, then a line for each layer with the holders of each expert; several are joined with commas:
//!
//! ```text
//! placement layers=2 experts=4 ranks=2
//! 0 0 1 1
//! 0 0,1 1 0
//! ```

mod balance;
mod text;
mod traffic;

pub use traffic::{TokenRoute, Traffic};

use crate::memory::{refill, reserve};
use crate::{Error, OutOfMemory, Result};

/// Which ranks hold each expert of each layer: at least one, and each that does holds it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    layers: usize,
    experts: usize,
    ranks: usize,
    /// Expert e of layer l is held by `holders[offsets[i]..offsets[i + 1]]`, i being `l * experts + e`; `[layers * experts + 1]`.
    offsets: Vec<usize>,
    /// Ascending within an expert.
    holders: Vec<u32>,
}

impl Placement {
    /// Consecutive experts together: expert e on rank `⌊e · ranks / experts⌋`, in every layer.
    ///
    /// # Errors
    ///
    /// As [`from_holders`](Self::from_holders).
    pub fn blocks(layers: usize, experts: usize, ranks: usize) -> Result<Self> {
        let rank = |e: usize| e as u128 * ranks as u128 / experts.max(1) as u128;
        Self::from_holders(layers, experts, ranks, |_, e| [rank(e) as u32])
    }

    /// Consecutive experts apart: expert e on rank `e mod ranks`, in every layer.
    ///
    /// # Errors
    ///
    /// As [`from_holders`](Self::from_holders).
    pub fn round_robin(layers: usize, experts: usize, ranks: usize) -> Result<Self> {
        Self::from_holders(layers, experts, ranks, |_, e| [(e % ranks.max(1)) as u32])
    }

    /// The ranks that a function of layer and expert gives, in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Residency`] if there are no layers, experts or ranks, a rank is out of range, or an expert is on no rank, or on one
    /// twice; [`Error::TooLarge`] beyond 32-bit ranks; [`Error::OutOfMemory`].
    pub fn from_holders<H: IntoIterator<Item = u32>>(
        layers: usize,
        experts: usize,
        ranks: usize,
        mut holders: impl FnMut(usize, usize) -> H,
    ) -> Result<Self> {
        let mut placement = Self::empty(layers, experts, ranks)?;
        for layer in 0..layers {
            for expert in 0..experts {
                for rank in holders(layer, expert) {
                    placement.hold(rank)?;
                }
                placement.seal_expert()?;
            }
        }
        Ok(placement)
    }

    /// One to which experts are added in order.
    fn empty(layers: usize, experts: usize, ranks: usize) -> Result<Self> {
        if layers == 0 || experts == 0 || ranks == 0 {
            let found = format!("{layers} layers, {experts} experts, {ranks} ranks");
            return Err(Error::residency(WHAT, "at least one layer, expert and rank", found));
        }
        if u32::try_from(ranks).is_err() {
            return Err(Error::TooLarge { what: "ranks", found: ranks });
        }
        if layers.checked_mul(experts).is_none() {
            return Err(OutOfMemory::of::<usize>(WHAT, usize::MAX).into());
        }
        let mut offsets = Vec::new();
        refill(&mut offsets, 1, 0, WHAT)?;
        Ok(Self { layers, experts, ranks, offsets, holders: Vec::new() })
    }

    /// Adds a holder of the next expert.
    fn hold(&mut self, rank: u32) -> Result<()> {
        if rank as usize >= self.ranks {
            return Err(Error::residency(self.place(), format!("a rank below {}", self.ranks), rank));
        }
        if self.holders[self.offsets[self.offsets.len() - 1]..].contains(&rank) {
            return Err(Error::residency(self.place(), "each rank once", format!("rank {rank} twice")));
        }
        reserve(&mut self.holders, 1, WHAT)?;
        self.holders.push(rank);
        Ok(())
    }

    /// Ends the holders of the next expert.
    fn seal_expert(&mut self) -> Result<()> {
        let first = self.offsets[self.offsets.len() - 1];
        if first == self.holders.len() {
            return Err(Error::residency(self.place(), "at least one rank", "none"));
        }
        self.holders[first..].sort_unstable();
        reserve(&mut self.offsets, 1, WHAT)?;
        self.offsets.push(self.holders.len());
        Ok(())
    }

    /// The expert to which holders are added, for errors.
    fn place(&self) -> String {
        let i = self.offsets.len() - 1;
        format!("placement, layer {}, expert {}", i / self.experts, i % self.experts)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Number of experts of a layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The ranks that hold an expert, ascending.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn holders(&self, layer: usize, expert: usize) -> &[u32] {
        assert!(layer < self.layers && expert < self.experts, "no expert {expert} of layer {layer}");
        let i = layer * self.experts + expert;
        &self.holders[self.offsets[i]..self.offsets[i + 1]]
    }

    /// Whether a rank holds an expert.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn is_held(&self, layer: usize, expert: usize, rank: u32) -> bool {
        self.holders(layer, expert).binary_search(&rank).is_ok()
    }

    /// The experts of a layer that a rank holds, ascending.
    ///
    /// # Panics
    ///
    /// If there is no such layer.
    #[track_caller]
    pub fn held_by(&self, layer: usize, rank: u32) -> impl Iterator<Item = usize> + '_ {
        assert!(layer < self.layers, "no layer {layer}");
        (0..self.experts).filter(move |&expert| self.is_held(layer, expert, rank))
    }

    /// The rank that [serves](self#who-serves) a token's choice of an expert.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn serving_rank(&self, layer: usize, expert: usize, token: usize, home: u32) -> u32 {
        let holders = self.holders(layer, expert);
        match holders.binary_search(&home) {
            Ok(_) => home,
            Err(_) => holders[token % holders.len()],
        }
    }
}

const WHAT: &str = "placement";
