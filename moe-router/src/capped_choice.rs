//! Expert choice with a cap on the experts of a token.

use moe_core::memory::refill_from;
use moe_core::{Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, numerics};

use crate::Capacity;
use crate::select::{self, MASKED};
use crate::sinkhorn::log_sum_exp;

/// Expert choice with at most b experts a token (Zhou et al., [2202.09368], section 3.3).
///
/// With `S = softmax(l)` over the experts and C places an expert, A is the solution of
///
/// ```text
/// max ⟨A, S⟩ + λ·H(A)   over   Σₜ A[t, e] = C,   Σₑ A[t, e] ≤ b,   0 ≤ A ≤ 1
/// ```
///
/// with H the entropy summed over the entries. Then each expert takes the C tokens with the greatest A, ties to the lower
/// token, and the weight is S. The solver is the paper's: Dykstra's algorithm, which projects on one set of constraints
/// after the other (in the sense of relative entropy, in logarithms), λ = 0.001 and at most 100 iterations. Two things differ: the
/// bound of 1 is met together with the experts' sums in one exact projection, since alone it takes hundreds of iterations where
/// scores lie far apart; and the iterations stop once no correction moves by more than 1e-4.
///
/// A is nearly whole, not quite, and may not have converged: the cap of b is what the programme aims at, **not a guarantee**,
/// whereas the C tokens an expert are. Where the capacity fills the caps, `C·E = b·T`, 100 iterations leave about a tenth of the
/// tokens with one expert too many; [more](Self::iterations) leave fewer. It needs `C·E ≤ b·T`; where that does not hold the constraints contradict each other and
/// routing is an error.
///
/// Padding is not chosen and does not count. A masked entry of A is 0: an expert with fewer than C tokens that are not masked takes
/// those. Locality: batch; not for decoders, as [`ExpertChoice`](crate::ExpertChoice) says.
///
/// [2202.09368]: https://arxiv.org/abs/2202.09368
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CappedExpertChoice {
    capacity: Capacity,
    experts_per_token: usize,
    lambda: f32,
    iterations: usize,
}

impl CappedExpertChoice {
    /// Experts that take as many tokens as `capacity` gives them places, at most `experts_per_token` of them the same.
    ///
    /// # Errors
    ///
    /// If the capacity is [not valid](Capacity::check) or the cap is 0.
    pub fn new(capacity: Capacity, experts_per_token: usize) -> Result<Self> {
        capacity.check()?;
        if experts_per_token == 0 {
            let expected = "at least 1".into();
            return Err(Error::Router { setting: "experts per token", expected, found: "0".into() });
        }
        Ok(Self { capacity, experts_per_token, lambda: 0.001, iterations: 100 })
    }

    /// The same with another weight of the entropy: smaller is nearer to whole numbers, and slower to converge.
    ///
    /// # Errors
    ///
    /// If it is not a finite number above 0.
    pub fn entropy(self, lambda: f32) -> Result<Self> {
        if lambda > 0.0 && lambda.is_finite() {
            return Ok(Self { lambda, ..self });
        }
        let expected = "a finite number above 0".into();
        Err(Error::Router { setting: "weight of the entropy", expected, found: lambda.to_string() })
    }

    /// The same with at most so many iterations.
    pub fn iterations(self, iterations: usize) -> Self {
        Self { iterations, ..self }
    }

    fn choose(
        &self,
        input: &RouteInput<'_>,
        scratch: &mut RouteScratch,
        out: &mut Assignments,
    ) -> Result<()> {
        let experts = input.experts();
        let RouteScratch { values, keys, .. } = scratch;
        let present = (0..input.tokens()).filter(|&t| !input.context.is_padding(t));
        // The tokens that take part, then the keys of an expert's tokens or of a token's experts.
        let most = input.tokens().saturating_add(input.tokens().max(experts));
        refill_from(keys, most, present.map(|t| t as u64), "keys of scores")?;
        let tokens = keys.len();
        if tokens == 0 || experts == 0 {
            return Ok(());
        }
        let places = self.capacity.places(tokens, tokens, experts)?.min(tokens);
        let open = |e: usize| keys.iter().filter(|&&t| !input.is_masked(t as usize, e)).count();
        let filled: usize = (0..experts).map(|e| places.min(open(e))).sum();
        if filled > self.experts_per_token.saturating_mul(tokens) {
            let expected = format!("at least {} for {places} places an expert", filled.div_ceil(tokens));
            let found = self.experts_per_token.to_string();
            return Err(Error::Router { setting: "experts per token", expected, found });
        }
        let all = (3 * tokens).saturating_mul(experts).saturating_add(2 * tokens);
        let logits = keys.iter().flat_map(|&t| input.logits.row(t as usize)).copied();
        refill_from(values, all, logits, "scores")?;
        values.chunks_exact_mut(experts).for_each(numerics::softmax);
        values.resize(all, 0.0);
        let (scores, rest) = values.split_at_mut(tokens * experts);
        let (a, rest) = rest.split_at_mut(tokens * experts);
        a.iter_mut().zip(&*scores).for_each(|(a, s)| *a = s / self.lambda);
        // Masked entries are 0 throughout.
        for (row, &t) in a.chunks_exact_mut(experts).zip(&*keys) {
            let masked = row.iter_mut().zip(input.logits.row(t as usize)).filter(|(_, l)| **l == MASKED);
            masked.for_each(|(a, _)| *a = MASKED);
        }
        self.project(a, experts, places, rest);

        // What an expert takes, marked in A: 1, and 0 elsewhere.
        let present = tokens;
        for e in 0..experts {
            keys.truncate(present);
            let open = (0..tokens).map(|i| (i, a[i * experts + e])).filter(|&(_, a)| a != MASKED);
            keys.extend(open.map(|(i, a)| select::key(a, i)));
            let own = &mut keys[present..];
            if own.len() > places {
                own.select_nth_unstable_by(places - 1, |a, b| b.cmp(a));
            }
            for (n, &key) in own.iter().enumerate() {
                a[select::index(key) * experts + e] = if n < places { 1.0 } else { 0.0 };
            }
        }
        for i in 0..tokens {
            let row = i * experts..(i + 1) * experts;
            keys.truncate(present);
            let taken = scores[row.clone()].iter().zip(&a[row.clone()]).enumerate();
            keys.extend(taken.filter(|(_, (_, a))| **a == 1.0).map(|(e, (&s, _))| select::key(s, e)));
            keys[present..].sort_unstable_by(|a, b| b.cmp(a));
            for &key in &keys[present..] {
                let e = select::index(key);
                out.assign(keys[i] as usize, e, scores[row.start + e]);
            }
        }
        Ok(())
    }

    /// Dykstra's algorithm on `a = ln A`, `[T, E]`. What a projection took off is put back before it projects again. What is
    /// masked or NaN takes no part. Returns how many iterations there were.
    fn project(&self, a: &mut [f32], experts: usize, places: usize, scratch: &mut [f32]) -> usize {
        let tokens = a.len() / experts;
        let (over_one, rest) = scratch.split_at_mut(a.len());
        let (over_cap, column) = rest.split_at_mut(tokens);
        let cap = numerics::ln(self.experts_per_token as f32);
        for iteration in 1..=self.iterations {
            let mut moved = 0.0f32;
            // Every expert's sum is C, and no entry is above 1.
            for e in 0..experts {
                let entries = a.iter().zip(&*over_one).skip(e).step_by(experts);
                let entries = entries.filter(|(a, _)| **a > MASKED);
                let mut open = 0;
                for ((a, over), to) in entries.zip(&mut *column) {
                    *to = a + over;
                    open += 1;
                }
                let shift = shift_to(&mut column[..open], places.min(open));
                let entries = a.iter_mut().zip(&mut *over_one).skip(e).step_by(experts);
                for (a, over) in entries.filter(|(a, _)| **a > MASKED) {
                    let free = *a + *over + shift;
                    let new = free.min(0.0);
                    moved = moved.max((free - new - *over).abs());
                    (*a, *over) = (new, free - new);
                }
            }
            // Every token's sum is at most b.
            for (row, over) in a.chunks_exact_mut(experts).zip(&mut *over_cap) {
                row.iter_mut().for_each(|a| *a += *over);
                let excess = (log_sum_exp(row.iter().copied()) - cap).max(0.0);
                row.iter_mut().for_each(|a| *a -= excess);
                moved = moved.max((excess - *over).abs());
                *over = excess;
            }
            if moved <= TOLERANCE {
                return iteration;
            }
        }
        self.iterations
    }
}

/// Iterations end once no correction moves by more.
const TOLERANCE: f32 = 1e-4;

/// The shift s with `Σ min(1, exp(x + s)) = places`, for at least that many x; sorts them.
fn shift_to(x: &mut [f32], places: usize) -> f32 {
    x.sort_unstable_by(f32::total_cmp);
    // From the smallest up: ln Σ exp of those not cut to 1, until so many are left that the greatest of the others is.
    let (small, great) = x.split_at(x.len() - places);
    let mut sum = log_sum_exp(small.iter().copied());
    let mut shift = 0.0;
    for (free, &next) in great.iter().enumerate() {
        let (high, low) = if next > sum { (next, sum) } else { (sum, next) };
        let with = if high == f32::NEG_INFINITY {
            high
        } else {
            high + numerics::ln(1.0 + numerics::exp(low - high))
        };
        let candidate = numerics::ln((free + 1) as f32) - with;
        if free > 0 && next + candidate > 0.0 {
            break;
        }
        (sum, shift) = (with, candidate);
    }
    shift
}

impl Router for CappedExpertChoice {
    /// Pushes the chosen pairs, token by token, by descending score.
    ///
    /// # Errors
    ///
    /// If the capacity leaves no place, or more in all than the tokens may fill.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        input.each_sequence(out, |input, scratch, out| self.choose(input, scratch, out))
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}

#[cfg(test)]
mod tests;
