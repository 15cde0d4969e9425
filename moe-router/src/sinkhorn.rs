//! Choices by a transport plan between tokens and experts.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, numerics};

use crate::{Capacity, select};

/// Each token's k best experts after all experts' shares were made equal (S-BASE, Clark et al., [2202.01169]).
///
/// Over the tokens of a sequence, Π is the plan of the greatest `⟨Π, l⟩ + H(Π)` with a sum of 1 for every token and T/E for
/// every expert: `Π = exp(l + u + v)` by Sinkhorn's iterations, in logarithms, `u = -lse(l + v)` over the experts and
/// `v = ln(T/E) - lse(l + u)` over the tokens. They stop once no v moves by more than 1e-4, or after 100. A token takes the k
/// experts with the greatest `l + v`, which is the order of Π, ties to the lower expert. The weights are `softmax(l)` over all
/// experts. The load comes near balance but is not bounded; [`Base`](crate::Base) is exact.
///
/// Padding takes no part and is not routed. For testing, the paper takes the plain best: `TopK::new(1)?.normalized(OverAll)`.
///
/// Locality: batch.
///
/// [2202.01169]: https://arxiv.org/abs/2202.01169
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sinkhorn {
    k: usize,
    iterations: usize,
}

impl Sinkhorn {
    /// `k` experts a token; 1 in the paper.
    ///
    /// # Errors
    ///
    /// If `k` is 0.
    pub fn new(k: usize) -> Result<Self> {
        if k == 0 {
            let expected = "k of at least 1".into();
            return Err(Error::Router { setting: "Sinkhorn", expected, found: "0".into() });
        }
        Ok(Self { k, iterations: 100 })
    }

    /// The same with at most so many iterations. None leaves the plain k best.
    pub fn iterations(self, iterations: usize) -> Self {
        Self { iterations, ..self }
    }

    fn choose(
        &self,
        input: &RouteInput<'_>,
        first: usize,
        scratch: &mut RouteScratch,
        out: &mut Assignments,
    ) {
        const TOLERANCE: f32 = 1e-4;
        let experts = input.experts();
        let present = |t: &usize| !input.context.is_padding(*t);
        let tokens = (0..input.tokens()).filter(present).count();
        let share = numerics::ln(tokens as f32 / experts as f32);
        let RouteScratch { values, keys } = scratch;
        values.clear();
        values.resize(2 * experts + input.tokens(), 0.0);
        let (v, rest) = values.split_at_mut(experts);
        let (row, u) = rest.split_at_mut(experts);
        for _ in 0..self.iterations {
            for t in (0..input.tokens()).filter(present) {
                let logits = input.logits.row(t);
                row.iter_mut().zip(logits.iter().zip(&*v)).for_each(|(to, (l, v))| *to = l + v);
                u[t] = -log_sum_exp(row.iter().copied());
            }
            let mut moved = 0.0f32;
            for e in 0..experts {
                let column = (0..input.tokens()).filter(present).map(|t| input.logits[[t, e]] + u[t]);
                let new = share - log_sum_exp(column);
                moved = moved.max((new - v[e]).abs());
                v[e] = new;
            }
            if moved <= TOLERANCE {
                break;
            }
        }
        for t in (0..input.tokens()).filter(present) {
            let logits = input.logits.row(t);
            select::best(logits.iter().zip(&*v).map(|(l, v)| l + v), self.k, keys);
            row.iter_mut().zip(logits).for_each(|(to, l)| *to = *l);
            numerics::softmax(row);
            for &key in &*keys {
                out.assign(first + t, select::index(key), row[select::index(key)]);
            }
        }
    }
}

impl Router for Sinkhorn {
    /// Pushes k experts for every token that is not padding.
    ///
    /// # Errors
    ///
    /// If there are fewer than k experts.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        if self.k > input.experts() {
            let expected = format!("at least {} experts", self.k);
            let found = input.experts().to_string();
            return Err(Error::Router { setting: "Sinkhorn", expected, found });
        }
        out.with_scratch(|out, scratch| {
            for range in input.sequences() {
                self.choose(&input.slice(range.clone()), range.start, scratch, out);
            }
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}

/// Expert choice with at most b experts a token (Zhou et al., [2202.09368], their variant with a cap on the experts of a token).
///
/// With `S = softmax(l)` over the experts and C places an expert, A is the solution of
///
/// ```text
/// max ⟨A, S⟩ + λ·H(A)   over   Σₜ A[t, e] = C,   Σₑ A[t, e] ≤ b,   0 ≤ A ≤ 1
/// ```
///
/// with H the entropy summed over the entries. Then each expert takes the C tokens with the greatest A, ties to the lower
/// token, and the weight is S. The solver is the paper's: Dykstra's algorithm, which projects on one of the three sets of
/// constraints after the other (in the sense of relative entropy, in logarithms), λ = 0.001 and at most 100 iterations; here it
/// also stops when no logarithm moves by more than 1e-4. The formulation and these numbers are quoted from memory.
///
/// A is nearly whole, not quite, and may not have converged: the cap of b is what the programme aims at, **not a guarantee**,
/// whereas the C tokens an expert are. It needs `C·E ≤ b·T`; where that does not hold the constraints contradict each other and
/// routing is an error.
///
/// Padding is not chosen and does not count. Locality: batch; not for decoders, as [`ExpertChoice`](crate::ExpertChoice) says.
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
        first: usize,
        scratch: &mut RouteScratch,
        out: &mut Assignments,
    ) -> Result<()> {
        let experts = input.experts();
        let RouteScratch { values, keys } = scratch;
        keys.clear();
        // The tokens that take part, then the keys of an expert.
        keys.extend((0..input.tokens()).filter(|&t| !input.context.is_padding(t)).map(|t| t as u64));
        let tokens = keys.len();
        if tokens == 0 || experts == 0 {
            return Ok(());
        }
        let places = self.capacity.places(tokens, tokens, experts)?.min(tokens);
        if places * experts > self.experts_per_token.saturating_mul(tokens) {
            let expected =
                format!("at least {} for {places} places an expert", (places * experts).div_ceil(tokens));
            let found = self.experts_per_token.to_string();
            return Err(Error::Router { setting: "experts per token", expected, found });
        }
        values.clear();
        for &t in &*keys {
            values.extend(input.logits.row(t as usize));
        }
        values.chunks_exact_mut(experts).for_each(numerics::softmax);
        values.resize(3 * tokens * experts + tokens, 0.0);
        let (scores, rest) = values.split_at_mut(tokens * experts);
        let (a, rest) = rest.split_at_mut(tokens * experts);
        let (over_one, over_cap) = rest.split_at_mut(tokens * experts);
        a.iter_mut().zip(&*scores).for_each(|(a, s)| *a = s / self.lambda);
        self.project(a, experts, places, over_one, over_cap);

        // What an expert takes, marked in A: 1, and 0 elsewhere.
        let present = tokens;
        for e in 0..experts {
            keys.truncate(present);
            keys.extend((0..tokens).map(|i| select::key(a[i * experts + e], i)));
            let own = &mut keys[present..];
            own.select_nth_unstable_by(places - 1, |a, b| b.cmp(a));
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
                out.assign(first + keys[i] as usize, e, scores[row.start + e]);
            }
        }
        Ok(())
    }

    /// Dykstra's algorithm on `a = ln A`, `[T, E]`. What the inequalities took off is put back before each projects again; the
    /// equality needs no such memory.
    fn project(
        &self,
        a: &mut [f32],
        experts: usize,
        places: usize,
        over_one: &mut [f32],
        over_cap: &mut [f32],
    ) {
        const TOLERANCE: f32 = 1e-4;
        let places = numerics::ln(places as f32);
        let cap = numerics::ln(self.experts_per_token as f32);
        for _ in 0..self.iterations {
            let mut moved = 0.0f32;
            // Every expert's sum is C.
            for e in 0..experts {
                let shift = places - log_sum_exp(a.iter().skip(e).step_by(experts).copied());
                a.iter_mut().skip(e).step_by(experts).for_each(|a| *a += shift);
                moved = moved.max(shift.abs());
            }
            // Every token's sum is at most b.
            for (row, over) in a.chunks_exact_mut(experts).zip(&mut *over_cap) {
                row.iter_mut().for_each(|a| *a += *over);
                let excess = (log_sum_exp(row.iter().copied()) - cap).max(0.0);
                row.iter_mut().for_each(|a| *a -= excess);
                moved = moved.max((excess - *over).abs());
                *over = excess;
            }
            // No entry is above 1.
            for (a, over) in a.iter_mut().zip(&mut *over_one) {
                let free = *a + *over;
                let excess = free.max(0.0);
                moved = moved.max((excess - *over).abs());
                (*a, *over) = (free - excess, excess);
            }
            if moved <= TOLERANCE {
                break;
            }
        }
    }
}

impl Router for CappedExpertChoice {
    /// Pushes the chosen pairs, token by token, by descending score.
    ///
    /// # Errors
    ///
    /// If the capacity leaves no place, or more in all than the tokens may fill.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        out.with_scratch(|out, scratch| {
            input
                .sequences()
                .try_for_each(|range| self.choose(&input.slice(range.clone()), range.start, scratch, out))
        })
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}

/// `ln Σ exp(x)`, added in order; negative infinity where there is nothing.
fn log_sum_exp(values: impl Iterator<Item = f32> + Clone) -> f32 {
    let top = values.clone().fold(f32::NEG_INFINITY, |best, v| if v > best { v } else { best });
    if top == f32::NEG_INFINITY {
        return top;
    }
    top + numerics::ln(values.map(|v| numerics::exp(v - top)).sum())
}
