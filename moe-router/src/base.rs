//! Balanced assignment: every expert gets its equal share of the tokens, at the greatest total score.

use moe_core::{Assignments, Locality, Result, RouteInput, Router, numerics};

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
    /// Pushes one expert for every token that is not padding. Allocates.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let experts = input.experts();
        if experts == 0 {
            return Ok(());
        }
        for range in input.sequences() {
            let tokens: Vec<usize> = range.filter(|&t| !input.context.is_padding(t)).collect();
            let scores = integers(tokens.iter().flat_map(|&t| input.logits.row(t)));
            for (&t, e) in tokens.iter().zip(assign(&scores, experts)) {
                out.assign(t, e, numerics::sigmoid(input.logits[[t, e]]));
            }
        }
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}

/// Scores as integers of at most 2⁴⁰, or 2⁴¹ for infinities.
fn integers<'a>(scores: impl Iterator<Item = &'a f32> + Clone) -> Vec<i64> {
    let finite = scores.clone().filter(|s| s.is_finite());
    let greatest = finite.fold(0.0f64, |most, &s| most.max(f64::from(s).abs()));
    let unit = if greatest > 0.0 { (1u64 << 40) as f64 / greatest } else { 0.0 };
    let integer = |s: f32| match s {
        s if s.is_finite() => (f64::from(s) * unit).round() as i64,
        f32::INFINITY => 1 << 41,
        _ => -(1 << 41),
    };
    scores.map(|&s| integer(s)).collect()
}

/// The expert of each row of `scores`, `[T, E]`, at the greatest total.
///
/// A graph has a node for each expert and one, the pool, for the T mod E places above ⌊T/E⌋. An edge from e to f costs what the
/// cheapest move of a token of e to f loses. A path from a new token's expert ends at a free place; the assignment so far being
/// optimal there is no negative cycle, and after the cheapest path it is optimal again.
fn assign(scores: &[i64], experts: usize) -> Vec<usize> {
    let tokens = scores.len() / experts;
    let (floor, pool_size) = (tokens / experts, tokens % experts);
    let pool = experts;
    let score = |t: usize, e: usize| scores[t * experts + e];
    let mut chosen: Vec<usize> = Vec::with_capacity(tokens);
    let mut load = vec![0usize; experts];
    const FAR: i64 = i64::MAX / 4;

    for new in 0..tokens {
        // The cheapest moves, and the token that makes each.
        let mut edges = vec![(FAR, usize::MAX); experts * experts];
        for (t, &from) in chosen.iter().enumerate() {
            for to in (0..experts).filter(|&to| to != from) {
                let edge = &mut edges[from * experts + to];
                *edge = (*edge).min((score(t, from) - score(t, to), t));
            }
        }
        // Distances from the new token, by Bellman and Ford.
        let mut distance: Vec<i64> = (0..experts).map(|e| -score(new, e)).chain([FAR]).collect();
        let mut before = vec![usize::MAX; experts + 1];
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
        // The nearest free place: an expert's own, or one of the pool.
        let used = load.iter().filter(|&&n| n > floor).count();
        let free = |node: usize| if node == pool { used < pool_size } else { load[node] < floor };
        let nearest = (0..=pool).filter(|&node| free(node)).min_by_key(|&node| distance[node]);
        let Some(mut at) = nearest else { unreachable!("there are as many places as tokens") };

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
            chosen[edges[from * experts + at].1] = at;
            at = from;
        }
        chosen.push(at);
    }
    chosen
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
            let chosen = assign(&scores, experts);
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
        let found = integers(scores.iter());
        assert!(found.is_sorted() && found[1] < found[2] && found[4] < found[5], "{found:?}");
    }
}
