//! Balanced assignment: every expert gets its equal share of the tokens, at the greatest total score.

use moe_core::memory::held;
use moe_core::{Assignments, Locality, Result, RouteInput, Router, ScratchValue, numerics};

/// One expert a token, as many tokens an expert, the sum of the logits as great as it can be (BASE layers, Lewis et al.,
/// [2103.16716]).
///
/// Of the T tokens of a sequence every expert gets ⌊T/E⌋ or ⌈T/E⌉, the paper's T/E where that is whole. Which of several best
/// assignments is taken is unspecified, but always the same. The weight is `σ(l)` of the chosen expert, as the layer of the
/// paper gates its output. Padding is not assigned and does not count.
///
/// The assignment is exact: shortest augmenting paths over the experts, a token at a time, in O(T²·E + T·E³) for a sequence. It
/// runs on integers, the logits being rounded to multiples of 2⁻⁴⁰ of the greatest (finite) magnitude; infinities count as
/// twice that, NaN as negative infinity. (The paper uses an auction, exact only as its step goes to 0.)
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
    /// Pushes one expert for every token that is not padding.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        if input.experts() == 0 {
            return Ok(());
        }
        input.each_sequence(out, |input, scratch, out| {
            let matching: &mut Matching = scratch.own.of();
            matching.tokens.clear();
            matching.tokens.extend((0..input.tokens()).filter(|&t| !input.context.is_padding(t)));
            let tokens = matching.tokens.iter();
            integers(tokens.flat_map(|&t| input.logits.row(t)), &mut matching.scores);
            matching.assign(input.experts());
            for (&t, &e) in matching.tokens.iter().zip(&matching.chosen) {
                out.assign(t, e, numerics::sigmoid(input.logits[[t, e]]));
            }
            Ok(())
        })
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}

/// Scores as integers of at most 2⁴⁰, or 2⁴¹ for infinities.
fn integers<'a>(scores: impl Iterator<Item = &'a f32> + Clone, out: &mut Vec<i64>) {
    let finite = scores.clone().filter(|s| s.is_finite());
    let greatest = finite.fold(0.0f64, |most, &s| most.max(f64::from(s).abs()));
    let unit = if greatest > 0.0 { (1u64 << 40) as f64 / greatest } else { 0.0 };
    let integer = |s: f32| match s {
        s if s.is_finite() => (f64::from(s) * unit).round() as i64,
        f32::INFINITY => 1 << 41,
        _ => -(1 << 41),
    };
    out.clear();
    out.extend(scores.map(|&s| integer(s)));
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

impl Matching {
    /// Finds the expert of each row of the scores, at the greatest total.
    fn assign(&mut self, experts: usize) {
        let tokens = self.scores.len() / experts;
        self.chosen.clear();
        refill(&mut self.load, experts, 0);
        for new in 0..tokens {
            self.find_moves(experts);
            self.measure(new, experts, tokens / experts);
            self.make_room(new, tokens / experts, tokens % experts);
        }
    }

    fn find_moves(&mut self, experts: usize) {
        refill(&mut self.edges, experts * experts, (FAR, usize::MAX));
        for (t, (&from, scores)) in self.chosen.iter().zip(self.scores.chunks_exact(experts)).enumerate() {
            let edges = &mut self.edges[from * experts..][..experts];
            for (edge, score) in edges.iter_mut().zip(scores) {
                *edge = (*edge).min((scores[from] - score, t));
            }
        }
    }

    /// Distances from the new token, by Bellman and Ford.
    fn measure(&mut self, new: usize, experts: usize, floor: usize) {
        let Self { scores, load, edges, distance, before, .. } = self;
        let pool = experts;
        distance.clear();
        distance.extend(scores[new * experts..][..experts].iter().map(|s| -s).chain([FAR]));
        refill(before, experts + 1, usize::MAX);
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
    }

    /// Moves tokens along the cheapest way to a free place, and lets the new one in where it begins.
    fn make_room(&mut self, new: usize, floor: usize, pool_size: usize) {
        let Self { load, before, .. } = self;
        let experts = load.len();
        let pool = experts;
        // The nearest free place: an expert's own, or one of the pool.
        let used = load.iter().filter(|&&n| n > floor).count();
        let free = |node: usize| if node == pool { used < pool_size } else { load[node] < floor };
        let nearest = (0..=pool).filter(|&node| free(node)).min_by_key(|&node| self.distance[node]);
        let Some(mut at) = nearest else {
            unreachable!("there are as many places as tokens, and {new} is one")
        };

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

fn refill<T: Copy>(list: &mut Vec<T>, len: usize, value: T) {
    list.clear();
    list.resize(len, value);
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
            matching.assign(experts);
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

    #[test]
    fn integers_keep_the_order_of_extremes() {
        let scores = [f32::NAN, f32::NEG_INFINITY, f32::MIN, 0.0, f32::MAX, f32::INFINITY];
        let mut found = vec![];
        integers(scores.iter(), &mut found);
        assert!(found.is_sorted() && found[1] < found[2] && found[4] < found[5], "{found:?}");
    }
}
