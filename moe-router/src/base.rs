//! Balanced assignment: every expert gets its equal share of the tokens, at the greatest total score.

use moe_core::memory::{OutOfMemory, held, refill, refill_from};
use moe_core::{Assignments, Locality, Result, RouteInput, Router, ScratchValue, numerics};

use crate::select;

/// One expert a token, as many tokens an expert, the sum of the logits as great as it can be (BASE layers, Lewis et al.,
/// [2103.16716]).
///
/// Of the T tokens of a sequence every expert gets ⌊T/E⌋ or ⌈T/E⌉, the paper's T/E where that is whole. Which of several best
/// assignments is taken is unspecified, but always the same. The weight is `σ(l)` of the chosen expert, as the layer of the
/// paper gates its output. Padding is not assigned and does not count.
///
/// The assignment is exact: shortest augmenting paths over the experts, a token at a time, in O(T²·E + T·E³) for a sequence. It
/// runs on integers, the logits being rounded to multiples of 2⁻⁴⁰ of the greatest (finite) magnitude; infinity counts as
/// twice that, NaN as its negative. (The paper uses an auction, exact only as its step goes to 0.)
///
/// Masked experts get nothing. E counts the experts that are not masked for all tokens of the sequence, T the tokens that have
/// one. As many tokens get a place as masks and equal loads permit, the earlier ones first; the others are refused, as what they
/// would like best, and the total is the greatest for those that have one.
///
/// For testing, the paper takes each token's best expert: `TopK::new(1)` chooses so.
///
/// Locality: batch.
///
/// [2103.16716]: https://arxiv.org/abs/2103.16716
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base(());

impl Base {
    /// The only one there is.
    pub fn new() -> Self {
        Self(())
    }
}

impl Router for Base {
    /// Pushes one expert for every token that is not padding and has one that is not masked, and refuses what finds no place.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        if input.experts() == 0 {
            return Ok(());
        }
        input.each_sequence(out, |input, scratch, out| {
            let matching: &mut Matching = scratch.own.of();
            let open = input.present().filter(|&t| best(input, t).is_some());
            refill_from(&mut matching.tokens, input.tokens(), open, "tokens to assign")?;
            let tokens = matching.tokens.iter();
            let all = matching.tokens.len() * input.experts();
            integers(tokens.flat_map(|&t| input.logits.row(t)), all, &mut matching.scores)?;
            matching.assign(input.experts())?;
            for (&t, &e) in matching.tokens.iter().zip(&matching.chosen) {
                match e {
                    NOWHERE => best(input, t).into_iter().for_each(|e| out.refuse(t, e)),
                    e => out.assign(t, e, numerics::sigmoid(input.logits[[t, e]])),
                }
            }
            Ok(())
        })
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}

/// The token's greatest logit of those that are not masked.
fn best(input: &RouteInput<'_>, t: usize) -> Option<usize> {
    let open = input.logits.row(t).into_iter().enumerate().filter(|(_, l)| **l != select::MASKED);
    open.map(|(e, &l)| select::key(l, e)).max().map(select::index)
}

/// `count` scores as integers of at most 2⁴⁰, or 2⁴¹ for infinity and NaN; [`MASKED`] for negative infinity.
fn integers<'a>(
    scores: impl Iterator<Item = &'a f32> + Clone,
    count: usize,
    out: &mut Vec<i64>,
) -> Result<(), OutOfMemory> {
    let finite = scores.clone().filter(|s| s.is_finite());
    let greatest = finite.fold(0.0f64, |most, &s| most.max(f64::from(s).abs()));
    let unit = if greatest > 0.0 { (1u64 << 40) as f64 / greatest } else { 0.0 };
    let integer = |s: f32| match s {
        s if s.is_finite() => (f64::from(s) * unit).round() as i64,
        f32::INFINITY => 1 << 41,
        select::MASKED => MASKED,
        _ => -(1 << 41),
    };
    refill_from(out, count, scores.map(|&s| integer(s)), "scores as integers")
}

/// A balanced assignment as it comes about.
///
/// A graph has a node for each expert and one, the pool, for the T mod E places above ⌊T/E⌋. An edge from e to f costs what the
/// cheapest move of a token of e to f loses. A path from a new token's expert ends at a free place; the assignment so far being
/// optimal there is no negative cycle, and after the cheapest path it is optimal again.
#[derive(Default)]
struct Matching {
    /// The tokens that take part.
    tokens: Vec<usize>,
    /// `[T, E]`.
    scores: Vec<i64>,
    /// The expert of each token so far.
    chosen: Vec<usize>,
    /// Tokens of each expert.
    load: Vec<usize>,
    /// The cheapest moves between experts, `[E, E]`, and the token that makes each.
    edges: Vec<(i64, usize)>,
    /// From the new token to each node, `[E + 1]`.
    distance: Vec<i64>,
    /// The node before each on the way, `[E + 1]`.
    before: Vec<usize>,
}

impl ScratchValue for Matching {
    fn bytes(&self) -> usize {
        let Self { tokens, scores, chosen, load, edges, distance, before } = self;
        let places = [tokens, chosen, load, before].map(held).iter().sum::<usize>();
        places + held(scores) + held(edges) + held(distance)
    }
}

const FAR: i64 = i64::MAX / 4;
const MASKED: i64 = i64::MIN;
/// In place of the expert of a token without a place.
const NOWHERE: usize = usize::MAX;

impl Matching {
    /// Finds the expert of each row of the scores, at the greatest total, or [`NOWHERE`].
    ///
    /// A token that finds no way to a free place finds none later either: what the others do since only exchanges places.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    fn assign(&mut self, experts: usize) -> Result<(), OutOfMemory> {
        let tokens = self.scores.len() / experts;
        let open = |e: &usize| self.scores.iter().skip(*e).step_by(experts).any(|&s| s != MASKED);
        let open = (0..experts).filter(open).count().max(1);
        refill_from(&mut self.chosen, tokens, [], "experts of tokens")?;
        refill(&mut self.load, experts, 0, "load")?;
        for new in 0..tokens {
            self.find_moves(experts)?;
            self.measure(new, experts, tokens / open)?;
            self.make_room(tokens / open, tokens % open);
        }
        Ok(())
    }

    fn find_moves(&mut self, experts: usize) -> Result<(), OutOfMemory> {
        refill(&mut self.edges, experts * experts, (FAR, usize::MAX), "moves between experts")?;
        for (t, (&from, scores)) in self.chosen.iter().zip(self.scores.chunks_exact(experts)).enumerate() {
            if from == NOWHERE {
                continue;
            }
            let edges = &mut self.edges[from * experts..][..experts];
            for (edge, score) in edges.iter_mut().zip(scores).filter(|(_, score)| **score != MASKED) {
                *edge = (*edge).min((scores[from] - score, t));
            }
        }
        Ok(())
    }

    /// Distances from the new token, by Bellman and Ford.
    fn measure(&mut self, new: usize, experts: usize, floor: usize) -> Result<(), OutOfMemory> {
        let Self { scores, load, edges, distance, before, .. } = self;
        let pool = experts;
        let own = scores[new * experts..][..experts].iter();
        let own = own.map(|&s| if s == MASKED { FAR } else { -s }).chain([FAR]);
        refill_from(distance, experts + 1, own, "distances")?;
        refill(before, experts + 1, usize::MAX, "ways")?;
        let mut changed = true;
        while changed {
            changed = false;
            let mut relax = |from: usize, to: usize, cost: i64| {
                if distance[from] < FAR && cost < FAR && distance[from] + cost < distance[to] {
                    distance[to] = distance[from] + cost;
                    before[to] = from;
                    changed = true;
                }
            };
            for from in 0..experts {
                for to in (0..experts).filter(|&to| to != from) {
                    relax(from, to, edges[from * experts + to].0);
                }
                // An expert without a place of the pool may take one; one with may give it up.
                match load[from] > floor {
                    false => relax(from, pool, if load[from] == floor { 0 } else { FAR }),
                    true => relax(pool, from, 0),
                }
            }
        }
        Ok(())
    }

    /// Moves tokens along the cheapest way to a free place, and lets the new one in where it begins; it goes nowhere if
    /// there is none.
    fn make_room(&mut self, floor: usize, pool_size: usize) {
        let Self { load, before, .. } = self;
        let experts = load.len();
        let pool = experts;
        // The nearest free place: an expert's own, or one of the pool.
        let used = load.iter().filter(|&&n| n > floor).count();
        let free = |node: usize| if node == pool { used < pool_size } else { load[node] < floor };
        let reached = |node: &usize| self.distance[*node] < FAR && free(*node);
        let nearest = (0..=pool).filter(reached).min_by_key(|&node| self.distance[node]);
        let Some(mut at) = nearest else { return self.chosen.push(NOWHERE) };

        // Back along the path: what entered a node leaves the one before.
        if at == pool {
            at = before[pool];
        }
        load[at] += 1;
        while before[at] != usize::MAX {
            let mut from = before[at];
            if from == pool {
                // This expert gives its place of the pool to another, and so is left as it was before it.
                load[at] -= 1;
                from = before[pool];
                load[from] += 1;
                at = from;
                continue;
            }
            self.chosen[self.edges[from * experts + at].1] = at;
            at = from;
        }
        self.chosen.push(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best total over all balanced assignments.
    fn brute(scores: &[i64], experts: usize, t: usize, load: &mut Vec<usize>) -> Option<i64> {
        let tokens = scores.len() / experts;
        if t == tokens {
            let even = load.iter().all(|&n| n == tokens / experts || n == tokens.div_ceil(experts));
            return even.then_some(0);
        }
        (0..experts)
            .filter_map(|e| {
                load[e] += 1;
                let rest = brute(scores, experts, t + 1, load);
                load[e] -= 1;
                rest.map(|rest| rest + scores[t * experts + e])
            })
            .max()
    }

    #[test]
    fn no_balanced_assignment_is_better() {
        let mut state = 1u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        for case in 0..400 {
            let experts = 1 + next(4) as usize;
            let tokens = next(8) as usize;
            let range = [3, 100, 1_000_000][case % 3];
            let scores: Vec<i64> =
                (0..tokens * experts).map(|_| next(range) as i64 - range as i64 / 2).collect();
            let mut matching = Matching { scores: scores.clone(), ..Default::default() };
            matching.assign(experts).unwrap();
            let chosen = matching.chosen;
            assert_eq!(chosen.len(), tokens);
            let mut load = vec![0; experts];
            chosen.iter().for_each(|&e| load[e] += 1);
            assert!(load.iter().all(|&n| n == tokens / experts || n == tokens.div_ceil(experts)), "{load:?}");
            let found: i64 = chosen.iter().enumerate().map(|(t, &e)| scores[t * experts + e]).sum();
            let best = brute(&scores, experts, 0, &mut vec![0; experts]);
            assert_eq!(Some(found), best, "case {case}: {tokens} tokens, {experts} experts: {scores:?}");
        }
    }

    /// Most tokens that masks and equal loads give a place, and the greatest total of those in `placed`, over all assignments.
    fn brute_masked(
        scores: &[i64],
        (floor, pool): (usize, usize),
        placed: &[bool],
        t: usize,
        load: &mut Vec<usize>,
    ) -> (usize, Option<i64>) {
        let experts = load.len();
        let Some(&wanted) = placed.get(t) else { return (0, Some(0)) };
        // Without a place.
        let (mut most, mut best) = brute_masked(scores, (floor, pool), placed, t + 1, load);
        best = best.filter(|_| !wanted);
        for e in (0..experts).filter(|e| scores[t * experts + e] != MASKED) {
            load[e] += 1;
            if load[e] <= floor + 1 && load.iter().filter(|&&n| n > floor).count() <= pool {
                let (n, total) = brute_masked(scores, (floor, pool), placed, t + 1, load);
                most = most.max(n + 1);
                best = best.max(total.filter(|_| wanted).map(|total| total + scores[t * experts + e]));
            }
            load[e] -= 1;
        }
        (most, best)
    }

    #[test]
    fn masks_leave_as_many_places_as_can_be() {
        let mut state = 3u64;
        let mut next = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let mut unplaced = 0;
        for case in 0..1000 {
            let (experts, tokens) = (1 + next(4) as usize, next(7) as usize);
            let mut scores: Vec<i64> = (0..tokens * experts)
                .map(|_| if next(5) < 3 { MASKED } else { next(100) as i64 - 50 })
                .collect();
            // Every token has an expert, as the router sees to.
            scores
                .chunks_exact_mut(experts)
                .filter(|row| row.iter().all(|&s| s == MASKED))
                .for_each(|row| row[0] = 1);
            let mut matching = Matching { scores: scores.clone(), ..Default::default() };
            matching.assign(experts).unwrap();
            let open = (0..experts).filter(|e| scores.iter().skip(*e).step_by(experts).any(|&s| s != MASKED));
            let open = open.count().max(1);
            let placed: Vec<bool> = matching.chosen.iter().map(|&e| e != NOWHERE).collect();
            let of = |(t, &e): (usize, &usize)| (e != NOWHERE).then(|| scores[t * experts + e]);
            let found: Vec<i64> = matching.chosen.iter().enumerate().filter_map(of).collect();
            let rooms = (tokens / open, tokens % open);
            let (most, best) = brute_masked(&scores, rooms, &placed, 0, &mut vec![0; experts]);
            assert!(!found.contains(&MASKED), "case {case}");
            assert_eq!((found.len(), Some(found.iter().sum())), (most, best), "case {case}: {scores:?}");
            unplaced += tokens - most;
        }
        assert!(unplaced > 50, "{unplaced}");
    }

    #[test]
    fn integers_keep_the_order_of_extremes() {
        let scores = [f32::NEG_INFINITY, f32::NAN, f32::MIN, 0.0, f32::MAX, f32::INFINITY];
        let mut found = vec![];
        integers(scores.iter(), scores.len(), &mut found).unwrap();
        assert!(found.is_sorted_by(|a, b| a < b) && found[0] == MASKED, "{found:?}");
    }
}
