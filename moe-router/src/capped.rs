//! A limit to how many tokens an expert takes.

use std::cmp::Reverse;

use moe_core::{Assignments, Locality, Result, Review, RouteInput, RouteScratch, Router, Verdict, numerics};
use ndarray::ArrayViewMut2;

use crate::{Capacity, select};

/// Which choices are granted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    RankByRank,
    TokenByToken,
}

/// Which tokens are granted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    Position,
    Score,
}

/// The choices of another router, as far as the experts have places; the rest become refusals.
///
/// Each sequence is a group of its own: every expert has [`Capacity::places`] for it. Choices are granted
///
/// - rank by rank: all first choices of the sequence, then all second ones, and so on (GShard, [2006.16668]; V-MoE, NLLB,
///   Flaxformer); or [token by token](Self::token_by_token);
/// - among those by position (Switch, [2101.03961]); or [by score](Self::by_score), greatest first, ties to the lower token
///   (batch-prioritised routing of V-MoE, [2106.05974], section 4.1).
///
/// Weights stay as they are, so those of a token may sum to less than before; [`Renormalized`](crate::Renormalized) around
/// this one shares them out anew. References differ in whether a later rank starts after all earlier choices of the expert or after
/// those granted; what is granted is the same, since an expert once full turns everything away.
///
/// Padding ([`TokenContext::padding`](moe_core::TokenContext)) takes no place, has no experts, and counts neither as granted
/// nor as refused.
///
/// # Locality
///
/// [`Causal`](Locality::Causal) if the capacity is absolute, the turn token by token, the order that of positions, and the
/// inner router at most causal. Otherwise [`Batch`](Locality::Batch): a factor makes the places of a token depend on how
/// many follow it, rank by rank a later token's first choice comes before an earlier one's second, and by score it comes before
/// all of them.
///
/// [2006.16668]: https://arxiv.org/abs/2006.16668
/// [2101.03961]: https://arxiv.org/abs/2101.03961
/// [2106.05974]: https://arxiv.org/abs/2106.05974
#[derive(Clone, Copy, Debug)]
pub struct Capped<R> {
    inner: R,
    capacity: Capacity,
    turn: Turn,
    priority: Priority,
}

impl<R: Router> Capped<R> {
    /// Limits `inner`, granting rank by rank in order of position.
    ///
    /// # Errors
    ///
    /// If the capacity is [not valid](Capacity::check).
    pub fn new(inner: R, capacity: Capacity) -> Result<Self> {
        capacity.check()?;
        Ok(Self { inner, capacity, turn: Turn::RankByRank, priority: Priority::Position })
    }

    /// The same, but a token gets all its places before the next one gets any.
    pub fn token_by_token(self) -> Self {
        Self { turn: Turn::TokenByToken, ..self }
    }

    /// The same, but tokens come in order of their greatest score ([`Router::scores`]) instead of their position.
    pub fn by_score(self) -> Self {
        Self { priority: Priority::Score, ..self }
    }

    /// The router whose choices are limited.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Gives each pair its token's greatest score.
    fn prioritize(&self, input: &RouteInput<'_>, scratch: &mut RouteScratch, review: &mut Review<'_>) {
        let (tokens, experts) = (input.tokens(), input.experts());
        let values = &mut scratch.values;
        values.clear();
        values.resize(tokens * experts, 0.0);
        if let Ok(scores) = ArrayViewMut2::from_shape((tokens, experts), values) {
            self.inner.scores(input, scores);
        }
        for (priority, pair) in review.priority.iter_mut().zip(&*review.pairs) {
            // A token out of range has none; sealing reports it.
            let row = values.chunks(experts.max(1)).nth(pair.token as usize).unwrap_or(&[]);
            *priority = numerics::max(row);
        }
    }

    fn grant(&self, input: &RouteInput<'_>, review: Review<'_>) -> Result<()> {
        let Review { pairs, verdicts, mut order, load, priority } = review;
        let pair = |i: &u32| &pairs[*i as usize];
        order.sort_unstable_by_key(|i| (pair(i).token, pair(i).rank));
        for tokens in input.sequences() {
            let split = order.partition_point(|i| (pair(i).token as usize) < tokens.end);
            let (group, rest) = order.split_at_mut(split);
            order = rest;

            let padding = |i: &&mut u32| input.context.is_padding(pair(i).token as usize);
            let mut choices = group.len();
            for i in group.iter_mut().filter(padding) {
                verdicts[*i as usize] = Verdict::Forget;
                choices -= 1;
            }
            if choices == 0 {
                continue;
            }
            let present = tokens.filter(|&t| !input.context.is_padding(t)).count();
            let places = self.capacity.places(present, choices, input.experts())?;

            let rank = |i: &u32| match self.turn {
                Turn::RankByRank => pair(i).rank,
                Turn::TokenByToken => 0,
            };
            if (self.turn, self.priority) != (Turn::TokenByToken, Priority::Position) {
                group.sort_unstable_by_key(|i| {
                    let score = select::ordered(priority[*i as usize]);
                    (rank(i), Reverse(score), pair(i).token, pair(i).rank)
                });
            }
            load.fill(0);
            for i in group {
                // An expert out of range has no load; sealing reports it.
                let Some(taken) = load.get_mut(pair(i).expert as usize) else { continue };
                let verdict = &mut verdicts[*i as usize];
                if *verdict == Verdict::Forget {
                    continue;
                } else if (*taken as usize) < places {
                    *taken += 1;
                } else {
                    *verdict = Verdict::Refuse;
                }
            }
        }
        Ok(())
    }
}

impl<R: Router> Router for Capped<R> {
    /// Lets the inner router push, then turns away what finds no place.
    ///
    /// # Errors
    ///
    /// What the inner router reports; a capacity of no places for a sequence that makes choices.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let mark = out.mark();
        self.inner.route(input, out)?;
        out.with_scratch(|out, scratch| {
            out.review(mark, |mut review| {
                if self.priority == Priority::Score {
                    self.prioritize(input, scratch, &mut review);
                }
                self.grant(input, review)
            })
        })
    }

    fn locality(&self) -> Locality {
        let in_order = (self.turn, self.priority) == (Turn::TokenByToken, Priority::Position);
        if in_order && self.capacity.is_absolute() {
            self.inner.locality().max(Locality::Causal)
        } else {
            Locality::Batch
        }
    }

    fn scores(&self, input: &RouteInput<'_>, out: ArrayViewMut2<'_, f32>) {
        self.inner.scores(input, out);
    }
}
