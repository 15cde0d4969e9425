//! What a placement sends between ranks, and how even the work is.

use crate::memory::refill;
use crate::{Error, Result};

use super::Placement;

/// A token's experts in one layer, and the rank that has the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRoute<'a> {
    /// The token, by which one of several holders is chosen.
    pub token: usize,
    /// Its home.
    pub home: u32,
    /// Its distinct experts, in any order.
    pub experts: &'a [u32],
}

/// What travels between ranks, and what they work on, added up over layers and steps.
///
/// A row is a vector of the model's width, whether a token's hidden row or an expert's output of it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Traffic {
    /// Tokens, once a layer.
    pub tokens: u64,
    /// Hidden rows sent from their home: one to each other rank that serves a token, however many of its experts are there.
    pub rows_sent: u64,
    /// Outputs sent home: one for each expert of a token that another rank serves. They come one by one where a token's experts
    /// are to be added in one order, which fixes its bits; were each rank to add up a token's outputs first, as many rows would come
    /// home as were sent.
    pub rows_returned: u64,
    /// Rows that each rank works on; `[ranks]`.
    rows: Vec<u64>,
    /// The rows of the busiest rank, summed over calls.
    busiest: u64,
    /// Those of the call at hand.
    of_call: Vec<u64>,
    /// For each rank, the route of this call that it was sent last, from 1.
    sent: Vec<u64>,
}

impl Traffic {
    /// Between so many ranks, and nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn new(ranks: usize) -> Result<Self> {
        let mut traffic = Self::default();
        for list in [&mut traffic.rows, &mut traffic.of_call, &mut traffic.sent] {
            refill(list, ranks, 0, "traffic of ranks")?;
        }
        Ok(traffic)
    }

    /// Adds what one layer of one step does: all of it goes at a time, and the ranks wait for each other after it.
    ///
    /// # Errors
    ///
    /// [`Error::Residency`] if the placement is for another number of ranks, or a layer, home or expert is out of range. What came
    /// before it in the call is counted then.
    pub fn add<'a>(
        &mut self,
        placement: &Placement,
        layer: usize,
        routes: impl IntoIterator<Item = TokenRoute<'a>>,
    ) -> Result<()> {
        let ranks = self.rows.len();
        let check = |what: &'static str, found: usize, below: usize| match found < below {
            true => Ok(()),
            false => Err(Error::residency(what, format!("a number below {below}"), found)),
        };
        if placement.ranks() != ranks {
            return Err(Error::residency("traffic, placement", format!("{ranks} ranks"), placement.ranks()));
        }
        check("traffic, layer", layer, placement.layers())?;
        self.of_call.fill(0);
        self.sent.fill(0);
        for (i, route) in (1..).zip(routes) {
            check("traffic, home", route.home as usize, ranks)?;
            self.tokens += 1;
            for &expert in route.experts {
                check("traffic, expert", expert as usize, placement.experts())?;
                let rank = placement.serving_rank(layer, expert as usize, route.token, route.home);
                self.rows[rank as usize] += 1;
                self.of_call[rank as usize] += 1;
                if rank != route.home {
                    self.rows_returned += 1;
                    let sent = &mut self.sent[rank as usize];
                    if *sent != i {
                        *sent = i;
                        self.rows_sent += 1;
                    }
                }
            }
        }
        self.busiest += self.of_call.iter().copied().max().unwrap_or(0);
        Ok(())
    }

    /// The rows that each rank worked on, `[ranks]`.
    pub fn rows_worked(&self) -> &[u64] {
        &self.rows
    }

    /// Bytes sent out and bytes sent home, row by row, for rows of so many bytes.
    pub fn bytes(&self, row_bytes: u64) -> (u128, u128) {
        let bytes = |rows: u64| u128::from(rows) * u128::from(row_bytes);
        (bytes(self.rows_sent), bytes(self.rows_returned))
    }

    /// The rows of the busiest rank over the mean, of all calls together: 1 is even, the number of ranks is one with all. 0 without
    /// rows.
    pub fn imbalance(&self) -> f64 {
        self.over_mean(self.rows.iter().copied().max().unwrap_or(0))
    }

    /// The rows of the busiest rank of each call, summed, over the mean rows of a rank: how much longer the ranks take than if each
    /// call were even. At least [`imbalance`](Self::imbalance), which calls that are uneven in turn even out. 0 without rows.
    pub fn waiting(&self) -> f64 {
        self.over_mean(self.busiest)
    }

    fn over_mean(&self, rows: u64) -> f64 {
        match self.rows.iter().sum::<u64>() {
            0 => 0.0,
            all => rows as f64 * self.rows.len() as f64 / all as f64,
        }
    }
}
