//! A limit to how many tokens an expert takes.

use std::cmp::Reverse;

use moe_core::memory::{refill, refill_from};
use moe_core::{
    Assignment, Assignments, Locality, Result, Review, RouteInput, RouteScratch, Router, TokenContext,
    Verdict, numerics,
};
use ndarray::ArrayViewMut2;

use crate::draw::{self, Stream};
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
    OwnScore,
    Random,
}

/// Whose tokens share the places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Sequence,
    Call,
}

/// What becomes of a choice that finds no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overflow {
    Refuse,
    Reroute,
}

/// The choices of another router, as far as the experts have places; the rest become refusals.
///
/// Each sequence is a group of its own: every expert has [`Capacity::places`] for it; or [all of a call](Self::over_call) are
/// one. Choices are granted
///
/// - rank by rank: all first choices of the sequence, then all second ones, and so on (GShard, [2006.16668]; V-MoE, NLLB,
///   Flaxformer); or [token by token](Self::token_by_token);
/// - among those by position (Switch, [2101.03961]); or [by score](Self::by_score), greatest first, ties to the lower token
///   (batch-prioritised routing of V-MoE, [2106.05974], section 4.1), or [at random](Self::at_random);
/// - or [by their own weights](Self::by_own_score), each expert on its own.
///
/// Weights stay as they are, so those of a token may sum to less than before; [`Renormalized`](crate::Renormalized) around
/// this one shares them out anew. References differ in whether a later rank starts after all earlier choices of the expert or after
/// those granted; what is granted is the same, since an expert once full turns everything away.
///
/// With [rerouting](Self::rerouting) a choice that finds no place goes, at its turn, to the token's best expert by
/// [`Router::scores`] that has a free place, is not masked and was not asked for by the token; ties to the lower expert, NaN
/// last. Only where there is none it is refused. Its weight w becomes `w · s'/s`, with s and s' the scores of the expert asked for and of the one it
/// got (0 where that is not finite), which is the other expert's own weight where weights are scores. It stays the
/// choice it was: rank, and the expert [requested](moe_core::Assignment::requested), which the load before capacity counts.
///
/// Padding ([`TokenContext::padding`](moe_core::TokenContext)) takes no place, has no experts, and counts neither as granted
/// nor as refused.
///
/// # Locality
///
/// [`Causal`](Locality::Causal) if the capacity is absolute and a sequence's own, the turn token by token, the order that of positions, and the
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
    overflow: Overflow,
    scope: Scope,
}

impl<R: Router> Capped<R> {
    /// Limits `inner`, granting rank by rank in order of position.
    ///
    /// # Errors
    ///
    /// If the capacity is [not valid](Capacity::check).
    pub fn new(inner: R, capacity: Capacity) -> Result<Self> {
        capacity.check()?;
        Ok(Self {
            inner,
            capacity,
            turn: Turn::RankByRank,
            priority: Priority::Position,
            overflow: Overflow::Refuse,
            scope: Scope::Sequence,
        })
    }

    /// The same, but a token gets all its places before the next one gets any.
    pub fn token_by_token(self) -> Self {
        Self { turn: Turn::TokenByToken, ..self }
    }

    /// The same, but tokens come in order of their greatest score ([`Router::scores`]) instead of their position.
    pub fn by_score(self) -> Self {
        Self { priority: Priority::Score, ..self }
    }

    /// The same, but each expert keeps the choices of it that have the greatest weights, whatever their rank; ties to the lower
    /// token. The turn plays no part. Megatron's `drop_policy="probs"`, its default, and DeepSpeed's top-k gating.
    ///
    /// The weights are the inner router's: Megatron's are what its router makes of them, DeepSpeed's are softmax over all experts
    /// and are divided by their sum afterwards ([`Renormalized`](crate::Renormalized) around this).
    pub fn by_own_score(self) -> Self {
        Self { priority: Priority::OwnScore, ..self }
    }

    /// The same, but tokens come in an order drawn at random, so that no position is favoured: DeepSpeed's random token selection
    /// (`use_rts`), the default of its top-1 gating.
    ///
    /// A token's draw is a function of (seed, layer, sequence, position).
    pub fn at_random(self) -> Self {
        Self { priority: Priority::Random, ..self }
    }

    /// The same, but a choice without a place goes to the next best expert that has one.
    pub fn rerouting(self) -> Self {
        Self { overflow: Overflow::Reroute, ..self }
    }

    /// The same, but all sequences of a call share the places, as those of a micro-batch do in Megatron and DeepSpeed: tokens come
    /// in their order in the call. What a token gets then depends on the other sequences; losses keep to theirs.
    pub fn over_call(self) -> Self {
        Self { scope: Scope::Call, ..self }
    }

    /// The router whose choices are limited.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Writes the inner router's scores, `[T, E]`.
    fn score(&self, input: &RouteInput<'_>, values: &mut Vec<f32>) -> Result<()> {
        refill_from(values, input.logits.len(), input.logits.iter().copied(), "scores")?;
        if let Ok(scores) = ArrayViewMut2::from_shape(input.logits.raw_dim(), values) {
            self.inner.scores(&input.context, scores);
        }
        Ok(())
    }

    fn grant(&self, input: &RouteInput<'_>, scratch: &mut RouteScratch, review: Review<'_>) -> Result<()> {
        let Review { pairs, verdicts, mut order, load, priority } = review;
        let RouteScratch { values: scores, keys: asked, .. } = scratch;
        if self.priority == Priority::Score || self.overflow == Overflow::Reroute {
            self.score(input, scores)?;
        }
        for (priority, pair) in priority.iter_mut().zip(&*pairs) {
            *priority = match self.priority {
                Priority::Position => break,
                Priority::Score => numerics::max(row(scores, pair.token, input.experts())),
                Priority::OwnScore => pair.weight,
                Priority::Random => draw::uniform(&input.context, Stream::Priority, pair.token as usize, 0),
            };
        }
        if self.overflow == Overflow::Reroute {
            let words = (input.tokens() * input.experts()).div_ceil(64);
            refill(asked, words, 0, "experts asked")?;
            pairs.iter().for_each(|pair| mark(asked, pair.token, pair.expert, input.experts()));
        }
        order.sort_unstable_by_key(|i| (pairs[*i as usize].token, pairs[*i as usize].rank));
        let of_call = (self.scope == Scope::Call).then(|| 0..input.tokens());
        let groups = input.sequences().filter(|_| of_call.is_none()).chain(of_call.clone());
        for tokens in groups {
            let pair = |i: &u32| &pairs[*i as usize];
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

            let rank = |i: &u32| match (self.turn, self.priority) {
                (Turn::TokenByToken, _) | (_, Priority::OwnScore) => 0,
                (Turn::RankByRank, _) => pair(i).rank,
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
                let Some(taken) = load.get_mut(pairs[*i as usize].expert as usize) else { continue };
                let verdict = &mut verdicts[*i as usize];
                if *verdict == Verdict::Forget {
                    continue;
                } else if (*taken as usize) < places {
                    *taken += 1;
                } else {
                    *verdict = Verdict::Refuse;
                    if self.overflow == Overflow::Reroute {
                        let pair = &mut pairs[*i as usize];
                        let masked = |e| input.is_masked(pair.token as usize, e);
                        if let Some(expert) = next_best(pair, scores, asked, load, places, masked) {
                            *verdict = Verdict::Keep;
                            load[expert] += 1;
                            mark(asked, pair.token, expert as u32, input.experts());
                            let scores = row(scores, pair.token, input.experts());
                            let weight = pair.weight * (scores[expert] / scores[pair.expert as usize]);
                            pair.weight = if weight.is_finite() { weight } else { 0.0 };
                            pair.expert = expert as u32;
                        }
                    }
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
        out.with_scratch(|out, scratch| out.review(mark, |review| self.grant(input, scratch, review))?)
    }

    fn locality(&self) -> Locality {
        let in_order = (self.turn, self.priority) == (Turn::TokenByToken, Priority::Position);
        if in_order && self.capacity.is_absolute() && self.scope == Scope::Sequence {
            self.inner.locality().max(Locality::Causal)
        } else {
            Locality::Batch
        }
    }

    fn perturb(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.inner.perturb(context, logits)
    }

    fn scores(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.inner.scores(context, logits);
    }
}

/// The scores of a token; none for a token out of range, which sealing reports.
fn row(scores: &[f32], token: u32, experts: usize) -> &[f32] {
    (token as usize).checked_mul(experts).and_then(|at| scores.get(at..at + experts)).unwrap_or(&[])
}

/// Notes that the token has asked for, or got, the expert. What is out of range is not noted.
fn mark(asked: &mut [u64], token: u32, expert: u32, experts: usize) {
    let at = token as usize * experts + expert as usize;
    if (expert as usize) < experts && at / 64 < asked.len() {
        asked[at / 64] |= 1 << (at % 64);
    }
}

/// The best expert with a free place among those that are not masked and that the pair's token has nothing to do with yet.
fn next_best(
    pair: &Assignment,
    scores: &[f32],
    asked: &[u64],
    load: &[u32],
    places: usize,
    masked: impl Fn(usize) -> bool,
) -> Option<usize> {
    let first = pair.token as usize * load.len();
    let has = |e: usize| asked[(first + e) / 64] >> ((first + e) % 64) & 1 == 1;
    let scores = row(scores, pair.token, load.len()).iter().enumerate();
    let free = scores.filter(|&(e, _)| (load[e] as usize) < places && !has(e) && !masked(e));
    free.map(|(e, &score)| select::key(score, e)).max().map(select::index)
}
