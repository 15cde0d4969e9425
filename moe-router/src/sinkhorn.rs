//! Choices by a transport plan between tokens and experts.

use moe_core::memory::refill;
use moe_core::{Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, numerics};

use crate::select::{self, MASKED};

/// Each token's k best experts after all experts' shares were made equal (S-BASE, Clark et al., [2202.01169]).
///
/// Over the tokens of a sequence, Π is the plan of the greatest `⟨Π, l⟩ + H(Π)` with a sum of 1 for every token and T/E for
/// every expert: `Π = exp(l + u + v)` by Sinkhorn's iterations, in logarithms, `u = -lse(l + v)` over the experts and
/// `v = ln(T/E) - lse(l + u)` over the tokens. They stop once no v moves by more than 1e-4, or after 100. A token takes the k
/// experts with the greatest `l + v`, which is the order of Π, ties to the lower expert. The weights are `softmax(l)` over all
/// experts. The load comes near balance but is not bounded; [`Base`](crate::Base) is exact. To a token that is alone in its sequence
/// all experts are equal, so that its choice is that of rounding.
///
/// Padding takes no part and is not routed. Masked entries have no share of Π; an expert that is masked for all tokens of the
/// sequence takes no part, the others sharing them out, and a token whose experts all are masked has none. Where masks leave no
/// plan with equal shares, the last iteration decides. For testing, the paper takes the plain best: `TopK::new(1)?.normalized(OverAll)`.
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
        scratch: &mut RouteScratch,
        out: &mut Assignments,
    ) -> Result<()> {
        const TOLERANCE: f32 = 1e-4;
        let experts = input.experts();
        let all = input.tokens();
        let RouteScratch { values, keys, .. } = scratch;
        refill(values, 3 * experts + 2 * all, 0.0, "factors of tokens and experts")?;
        let (v, rest) = values.split_at_mut(experts);
        let (row, rest) = rest.split_at_mut(experts);
        // Who takes part: the tokens that are not masked for all experts, the experts that are not masked for all tokens.
        let (open, rest) = rest.split_at_mut(experts);
        let (part, u) = rest.split_at_mut(all);
        for t in input.present() {
            for (e, _) in input.logits.row(t).iter().enumerate().filter(|(_, l)| **l != MASKED) {
                (part[t], open[e]) = (1.0, 1.0);
            }
        }
        let takes_part = |t: &usize| part[*t] == 1.0;
        let tokens = (0..all).filter(takes_part).count();
        let open = || (0..experts).filter(|&e| open[e] == 1.0);
        let share = numerics::ln(tokens as f32 / open().count() as f32);
        for _ in 0..self.iterations {
            for t in (0..all).filter(takes_part) {
                let logits = input.logits.row(t);
                row.iter_mut().zip(logits.iter().zip(&*v)).for_each(|(to, (l, v))| *to = l + v);
                u[t] = -log_sum_exp(row.iter().copied());
            }
            let mut moved = 0.0f32;
            for e in open() {
                let column = (0..all).filter(takes_part).map(|t| input.logits[[t, e]] + u[t]);
                let new = share - log_sum_exp(column);
                moved = moved.max((new - v[e]).abs());
                v[e] = new;
            }
            if moved <= TOLERANCE {
                break;
            }
        }
        for t in (0..all).filter(takes_part) {
            let logits = input.logits.row(t);
            let scores = logits.iter().zip(&*v).enumerate().filter(|(_, (l, _))| **l != MASKED);
            select::best_of(scores.map(|(e, (l, v))| (e, l + v)), self.k, keys);
            row.iter_mut().zip(logits).for_each(|(to, l)| *to = *l);
            numerics::softmax(row);
            for &key in &*keys {
                out.assign(t, select::index(key), row[select::index(key)]);
            }
        }
        Ok(())
    }
}

impl Router for Sinkhorn {
    /// Pushes k experts for every token that is not padding; fewer where fewer are not masked.
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
        input.each_sequence(out, |input, scratch, out| self.choose(input, scratch, out))
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}

/// `ln Σ exp(x)`, added in order; negative infinity where there is nothing.
pub(crate) fn log_sum_exp(values: impl Iterator<Item = f32> + Clone) -> f32 {
    let top = values.clone().fold(f32::NEG_INFINITY, |best, v| if v > best { v } else { best });
    if top == f32::NEG_INFINITY {
        return top;
    }
    top + numerics::ln(values.map(|v| numerics::exp(v - top)).sum())
}
