//! The sealed plan of a batch: who works on what, by expert and by token.

use std::ops::Range;

use crate::memory::{held, refill, refill_from, reserve};
use crate::{Assignments, Error, PlanStats, Refusal, Result};

/// One term of a token's combination.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Row of the grouped rows.
    pub row: usize,
    /// What the row's output is multiplied by.
    pub weight: f32,
}

/// One choice of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The expert.
    pub expert: usize,
    /// The combination weight.
    pub weight: f32,
    /// How many of the token's choices came before this one, refused ones included.
    pub rank: usize,
    /// Row of the grouped rows.
    pub row: usize,
    /// The expert that the router asked for, where another one took the token.
    pub instead_of: Option<usize>,
}

/// A validated routing, readable by expert and by token.
///
/// Rows are grouped by expert, within an expert by ascending token: row r is one (token, expert) pair. Whoever holds a
/// plan may trust that tokens and experts are in range, that no token has an expert twice, and that weights are finite.
///
/// T tokens, E experts, R rows. A token may have any number of rows, none too.
#[derive(Debug, Default)]
pub struct RoutingPlan {
    /// Expert e has rows `expert_offsets[e]..expert_offsets[e + 1]`; `[E + 1]`.
    expert_offsets: Vec<usize>,
    row_token: Vec<u32>,
    row_expert: Vec<u32>,
    row_weight: Vec<f32>,
    row_rank: Vec<u32>,
    row_requested: Vec<u32>,
    /// Token t has entries `token_offsets[t]..token_offsets[t + 1]` of the two lists below; `[T + 1]`.
    token_offsets: Vec<usize>,
    /// Its rows by ascending expert.
    token_rows: Vec<u32>,
    /// Its rows by ascending rank.
    ranked_rows: Vec<u32>,
    refused: Vec<Refusal>,
    /// The places of refusals by ascending token, a token's by ascending rank.
    refused_by_token: Vec<u32>,
    /// Scratch of sealing: the pairs' indices by ascending token.
    by_token: Vec<u32>,
    cursor: Vec<usize>,
}

impl RoutingPlan {
    /// A plan of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Validates what a router wrote and sorts it both ways, in O(R + E + T); allocates only to grow.
    ///
    /// # Errors
    ///
    /// A token or expert out of range, an expert twice for a token, a weight that is not finite; [`Error::OutOfMemory`]. The plan
    /// is then empty.
    pub fn seal(&mut self, from: &Assignments) -> Result<()> {
        let sealed = self.try_seal(from);
        if sealed.is_err() {
            self.clear();
        }
        sealed
    }

    fn try_seal(&mut self, from: &Assignments) -> Result<()> {
        let (tokens, experts, pairs) = (from.tokens(), from.experts(), from.granted());
        for (what, found) in [("assignments", pairs.len()), ("refusals", from.refused().len())] {
            if u32::try_from(found).is_err() {
                return Err(Error::TooLarge { what, found });
            }
        }
        from.check_stored()?;
        self.clear();
        for (offsets, n) in [(&mut self.token_offsets, tokens), (&mut self.expert_offsets, experts)] {
            refill(offsets, n + 1, 0, "routing plan")?;
        }
        reserve(&mut self.cursor, tokens.max(experts) + 1, "routing plan")?;
        reserve(&mut self.refused, from.refused().len(), "routing plan")?;
        for p in pairs {
            check_range(p.token, p.expert, tokens, experts)?;
            check_range(p.token, p.requested, tokens, experts)?;
            if !p.weight.is_finite() {
                return Err(Error::WeightNotFinite { token: p.token, expert: p.expert, weight: p.weight });
            }
            self.token_offsets[p.token as usize + 1] += 1;
            self.expert_offsets[p.expert as usize + 1] += 1;
        }
        for r in from.refused() {
            check_range(r.token, r.expert, tokens, experts)?;
        }
        self.refused.extend_from_slice(from.refused());
        refill_from(
            &mut self.refused_by_token,
            self.refused.len(),
            0..self.refused.len() as u32,
            "routing plan",
        )?;
        let Self { refused, refused_by_token, .. } = &mut *self;
        refused_by_token.sort_unstable_by_key(|&i| (refused[i as usize].token, refused[i as usize].rank));
        accumulate(&mut self.token_offsets);
        accumulate(&mut self.expert_offsets);

        // A counting sort by token, then a stable one by expert, leaves each expert's rows in ascending token order.
        refill(&mut self.by_token, pairs.len(), 0, "routing plan")?;
        restart(&mut self.cursor, &self.token_offsets);
        for (i, p) in pairs.iter().enumerate() {
            let at = &mut self.cursor[p.token as usize];
            self.by_token[*at] = i as u32;
            *at += 1;
        }
        let Self { row_token, row_expert, row_rank, row_requested, token_rows, .. } = self;
        for list in [row_token, row_expert, row_rank, row_requested, token_rows] {
            refill(list, pairs.len(), 0, "routing plan")?;
        }
        refill(&mut self.row_weight, pairs.len(), 0.0, "routing plan")?;
        reserve(&mut self.ranked_rows, pairs.len(), "routing plan")?;
        restart(&mut self.cursor, &self.expert_offsets);
        for &i in &self.by_token {
            let p = pairs[i as usize];
            let row = self.cursor[p.expert as usize];
            self.cursor[p.expert as usize] += 1;
            if row > self.expert_offsets[p.expert as usize] && self.row_token[row - 1] == p.token {
                return Err(Error::DuplicateAssignment { token: p.token, expert: p.expert });
            }
            self.row_token[row] = p.token;
            self.row_expert[row] = p.expert;
            self.row_weight[row] = p.weight;
            self.row_rank[row] = p.rank;
            self.row_requested[row] = p.requested;
        }

        // Rows come by ascending expert, so dealing them out to their tokens leaves each token's in that order.
        restart(&mut self.cursor, &self.token_offsets);
        for (row, &token) in self.row_token.iter().enumerate() {
            let at = &mut self.cursor[token as usize];
            self.token_rows[*at] = row as u32;
            *at += 1;
        }
        self.ranked_rows.extend_from_slice(&self.token_rows);
        let rank = &self.row_rank;
        for t in 0..tokens {
            self.ranked_rows[self.token_offsets[t]..self.token_offsets[t + 1]]
                .sort_unstable_by_key(|&row| (rank[row as usize], row));
        }
        Ok(())
    }

    /// Number of tokens, T.
    pub fn tokens(&self) -> usize {
        self.token_offsets.len().saturating_sub(1)
    }

    /// Number of experts, E.
    pub fn experts(&self) -> usize {
        self.expert_offsets.len().saturating_sub(1)
    }

    /// Number of rows, R: the pairs that were kept.
    pub fn rows(&self) -> usize {
        self.row_token.len()
    }

    /// Boundaries of the experts' rows, `[E + 1]`.
    pub fn expert_offsets(&self) -> &[usize] {
        &self.expert_offsets
    }

    /// The rows of expert `e`.
    ///
    /// # Panics
    ///
    /// If there is no such expert.
    #[track_caller]
    pub fn expert_rows(&self, e: usize) -> Range<usize> {
        self.expert_offsets[e]..self.expert_offsets[e + 1]
    }

    /// The experts that have rows, ascending.
    pub fn active_experts(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.experts()).filter(|&e| !self.expert_rows(e).is_empty())
    }

    /// The token of each row, `[R]`.
    pub fn row_tokens(&self) -> &[u32] {
        &self.row_token
    }

    /// The expert of each row, `[R]`.
    pub fn row_experts(&self) -> &[u32] {
        &self.row_expert
    }

    /// The combination weight of each row, `[R]`.
    pub fn row_weights(&self) -> &[f32] {
        &self.row_weight
    }

    /// The rank of each row among its token's choices, `[R]`.
    pub fn row_ranks(&self) -> &[u32] {
        &self.row_rank
    }

    /// The expert that the router asked for in each row, `[R]`: the row's own unless the token was sent elsewhere.
    pub fn row_requested(&self) -> &[u32] {
        &self.row_requested
    }

    /// The terms of token `t`'s combination, by ascending expert.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    #[track_caller]
    pub fn token_terms(&self, t: usize) -> impl ExactSizeIterator<Item = Term> + '_ {
        let range = self.token_offsets[t]..self.token_offsets[t + 1];
        self.token_rows[range]
            .iter()
            .map(|&row| Term { row: row as usize, weight: self.row_weight[row as usize] })
    }

    /// The choices of token `t` that were kept, best first.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    #[track_caller]
    pub fn choices(&self, t: usize) -> impl ExactSizeIterator<Item = Choice> + '_ {
        let range = self.token_offsets[t]..self.token_offsets[t + 1];
        self.ranked_rows[range].iter().map(|&row| {
            let row = row as usize;
            Choice {
                expert: self.row_expert[row] as usize,
                weight: self.row_weight[row],
                rank: self.row_rank[row] as usize,
                row,
                instead_of: Some(self.row_requested[row])
                    .filter(|&requested| requested != self.row_expert[row])
                    .map(|requested| requested as usize),
            }
        })
    }

    /// The experts that token `t` asked for, best first: refused ones too, and those whose place another expert took.
    ///
    /// # Panics
    ///
    /// If there is no such token.
    #[track_caller]
    pub fn requested(&self, t: usize) -> impl Iterator<Item = usize> + '_ {
        let range = self.token_offsets[t]..self.token_offsets[t + 1];
        let rows = self.ranked_rows[range].iter().map(|&row| row as usize);
        let mut granted = rows.map(|row| (self.row_rank[row], self.row_requested[row])).peekable();
        let refusal = |&i: &u32| self.refused[i as usize];
        let first = self.refused_by_token.partition_point(|i| (refusal(i).token as usize) < t);
        let of_token = self.refused_by_token[first..].iter().map(refusal);
        let mut refused =
            of_token.take_while(move |r| r.token as usize == t).map(|r| (r.rank, r.expert)).peekable();
        std::iter::from_fn(move || {
            let next = match (granted.peek(), refused.peek()) {
                (Some(of_row), Some(of_none)) if of_none < of_row => refused.next(),
                (None, _) => refused.next(),
                _ => granted.next(),
            };
            next.map(|(_, expert)| expert as usize)
        })
    }

    /// The pairs that a capacity or a mask turned away, in the order they were refused.
    pub fn refused(&self) -> &[Refusal] {
        &self.refused
    }

    /// Load, importance, balance and drop rate of the plan.
    pub fn stats(&self) -> PlanStats {
        PlanStats::of(self)
    }

    /// Bytes of memory that it holds on to.
    pub fn bytes(&self) -> usize {
        let lists = [
            &self.row_token,
            &self.row_expert,
            &self.row_rank,
            &self.row_requested,
            &self.token_rows,
            &self.ranked_rows,
            &self.by_token,
            &self.refused_by_token,
        ];
        let offsets = [&self.expert_offsets, &self.token_offsets, &self.cursor];
        lists.map(held).iter().sum::<usize>()
            + offsets.map(held).iter().sum::<usize>()
            + held(&self.row_weight)
            + held(&self.refused)
    }

    /// Makes it a plan of nothing.
    pub(crate) fn clear(&mut self) {
        for list in [
            &mut self.row_token,
            &mut self.row_expert,
            &mut self.row_rank,
            &mut self.row_requested,
            &mut self.token_rows,
            &mut self.ranked_rows,
            &mut self.by_token,
            &mut self.refused_by_token,
        ] {
            list.clear();
        }
        self.row_weight.clear();
        self.refused.clear();
        self.token_offsets.clear();
        self.expert_offsets.clear();
        self.cursor.clear();
    }
}

fn check_range(token: u32, expert: u32, tokens: usize, experts: usize) -> Result<()> {
    if token as usize >= tokens {
        return Err(Error::TokenOutOfRange { token, tokens });
    }
    if expert as usize >= experts {
        return Err(Error::ExpertOutOfRange { token, expert, experts });
    }
    Ok(())
}

/// Turns counts, shifted by one place, into offsets.
fn accumulate(counts: &mut [usize]) {
    for i in 1..counts.len() {
        counts[i] += counts[i - 1];
    }
}

/// Sets a cursor to the start of each group.
fn restart(cursor: &mut Vec<usize>, offsets: &[usize]) {
    cursor.clear();
    cursor.extend_from_slice(offsets);
}
