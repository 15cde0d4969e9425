//! Weights as functions of logits, and their derivatives.

use moe_core::RoutingPlan;
use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::precise::{sigmoid, softmax, softplus, widened};

/// What a weight is made of: the score s of a chosen expert, from the token's logits l.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scores {
    /// `exp(lₑ) / Σ exp(l)` over the chosen.
    OverChosen,
    /// `exp(lₑ) / Σ exp(l)` over all experts.
    OverAll,
    /// `1 / (1 + exp(-lₑ))`.
    Sigmoid,
    /// `√ln(1 + exp(lₑ))`. Where it is 0 its derivative is taken to be its limit, 0 (PyTorch gives NaN).
    SqrtSoftplus,
}

/// What the scores of a token's chosen experts are divided by. Where it is 0, weights and gradients are not finite.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Divisor {
    /// One.
    One,
    /// `Σ s`
    Sum,
    /// `Σ s + ε`
    SumPlus(f64),
    /// `max(Σ s, ε)`
    SumAtLeast(f64),
    /// `(Σ sᵖ)^(1/p)`
    Norm(f64),
}

/// How weights are made of logits once the experts are chosen: `wₑ = scale · sₑ / divisor`.
///
/// ```
/// use moe_core::{Assignments, RoutingPlan};
/// use moe_router::backward::{Scores, Weighting};
/// use ndarray::array;
///
/// // One token, experts 0 and 2 of three.
/// let logits = array![[1.0f32, -0.5, 1.0]];
/// let mut chosen = Assignments::new();
/// chosen.reset(1, 3)?;
/// chosen.assign(0, 0, 0.5);
/// chosen.assign(0, 2, 0.5);
/// let mut plan = RoutingPlan::new();
/// plan.seal(&chosen)?;
///
/// // ∂L/∂weight of each row of the plan.
/// let gradient = Weighting::new(Scores::OverChosen).gradient(logits.view(), &plan, &[1.0, 0.0]);
/// assert_eq!(gradient, array![[0.25, 0.0, -0.25]]);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighting {
    scores: Scores,
    divisor: Divisor,
    scale: f64,
    refused_too: bool,
}

impl Weighting {
    /// The scores themselves.
    pub fn new(scores: Scores) -> Self {
        Self { scores, divisor: Divisor::One, scale: 1.0, refused_too: false }
    }

    /// The same, divided.
    pub fn divided(self, divisor: Divisor) -> Self {
        Self { divisor, ..self }
    }

    /// The same, times a constant.
    pub fn scaled(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// The same, made before a capacity: refused experts take part in softmax and divisor, though they have no weight.
    pub fn over_refused_too(self) -> Self {
        Self { refused_too: true, ..self }
    }

    /// The weight of each row of the plan, `[R]`.
    ///
    /// # Panics
    ///
    /// If the plan has another number of tokens or experts than the logits `[T, E]`.
    #[track_caller]
    pub fn weights(&self, logits: ArrayView2<'_, f32>, plan: &RoutingPlan) -> Vec<f64> {
        let mut weights = vec![0.0; plan.rows()];
        self.each_token(logits, plan, |_, row, chosen, rows| {
            let (s, _) = self.scores(row, chosen);
            let (divisor, _) = self.divisor(&s);
            rows.iter().zip(s).for_each(|(&r, s)| weights[r] = self.scale * s / divisor);
        });
        weights
    }

    /// `∂L/∂logits`, `[T, E]`, of `upstream = ∂L/∂weight`, `[R]` by rows of the plan.
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    #[track_caller]
    pub fn gradient(&self, logits: ArrayView2<'_, f32>, plan: &RoutingPlan, upstream: &[f32]) -> Array2<f64> {
        assert_eq!(upstream.len(), plan.rows(), "one upstream derivative a row of the plan");
        let mut gradient = Array2::zeros(logits.raw_dim());
        let mut of_chosen = vec![];
        self.each_token(logits, plan, |t, row, chosen, rows| {
            of_chosen.clear();
            of_chosen.extend(rows.iter().map(|&r| f64::from(upstream[r])));
            of_chosen.resize(chosen.len(), 0.0);
            self.pull_back(row, chosen, &of_chosen, |e, d| gradient[[t, e]] += d);
        });
        gradient
    }

    /// Calls `visit(token, logits, chosen experts, rows of the first of them)`. The experts without a row are refused ones.
    #[track_caller]
    fn each_token(
        &self,
        logits: ArrayView2<'_, f32>,
        plan: &RoutingPlan,
        mut visit: impl FnMut(usize, ArrayView1<'_, f32>, &[usize], &[usize]),
    ) {
        assert_eq!(logits.dim(), (plan.tokens(), plan.experts()), "logits and plan of one shape");
        let mut refused = if self.refused_too { plan.refused().to_vec() } else { vec![] };
        refused.sort_unstable_by_key(|r| r.token);
        let mut refused = refused.iter().peekable();
        let (mut chosen, mut rows) = (vec![], vec![]);
        for (t, row) in logits.rows().into_iter().enumerate() {
            chosen.clear();
            rows.clear();
            for choice in plan.choices(t) {
                chosen.push(choice.expert);
                rows.push(choice.row);
            }
            while let Some(r) = refused.next_if(|r| r.token as usize == t) {
                chosen.push(r.expert as usize);
            }
            visit(t, row, &chosen, &rows);
        }
    }

    /// Hands `add` the derivatives by the token's logits: a constant times each weight, summed.
    pub(crate) fn pull_back(
        &self,
        row: ArrayView1<'_, f32>,
        chosen: &[usize],
        upstream: &[f64],
        mut add: impl FnMut(usize, f64),
    ) {
        if chosen.is_empty() {
            return;
        }
        // w = scale s / N:  ∂L/∂sⱼ = scale (uⱼ / N - ∂N/∂sⱼ Σ u s / N²).
        let (s, all) = self.scores(row, chosen);
        let (divisor, by_score) = self.divisor(&s);
        let mean = dot(upstream, &s) / divisor;
        let of_score =
            |j: usize, u: f64| self.scale * (u - by_score.as_ref().map_or(0.0, |d| d[j] * mean)) / divisor;
        let g: Vec<f64> = upstream.iter().enumerate().map(|(j, &u)| of_score(j, u)).collect();

        let logit = |e: usize| f64::from(row[e]);
        match self.scores {
            // ∂sᵢ/∂lⱼ = sᵢ (δᵢⱼ - sⱼ).
            Scores::OverChosen | Scores::OverAll => {
                let mean = dot(&g, &s);
                if self.scores == Scores::OverAll {
                    all.iter().enumerate().for_each(|(e, p)| add(e, -p * mean));
                    chosen.iter().zip(s.iter().zip(&g)).for_each(|(&e, (s, g))| add(e, s * g));
                } else {
                    chosen.iter().zip(s.iter().zip(&g)).for_each(|(&e, (s, g))| add(e, s * (g - mean)));
                }
            }
            // σ' = σ(l) σ(-l).
            Scores::Sigmoid => {
                chosen
                    .iter()
                    .zip(s.iter().zip(&g))
                    .for_each(|(&e, (s, g))| add(e, g * s * sigmoid(-logit(e))));
            }
            // (√ψ)' = ψ' / (2√ψ), ψ' = σ.
            Scores::SqrtSoftplus => {
                for (&e, (s, g)) in chosen.iter().zip(s.iter().zip(&g)).filter(|(_, (s, _))| **s != 0.0) {
                    add(e, g * sigmoid(logit(e)) / (2.0 * s));
                }
            }
        }
    }

    /// The scores of the chosen; and of all, where they are made of all.
    pub(crate) fn scores(&self, row: ArrayView1<'_, f32>, chosen: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let (mut s, mut all) = (vec![], vec![]);
        let logits = chosen.iter().map(|&e| f64::from(row[e]));
        match self.scores {
            Scores::OverChosen => softmax(logits, &mut s),
            Scores::OverAll => {
                softmax(widened(row), &mut all);
                s.extend(chosen.iter().map(|&e| all[e]));
            }
            Scores::Sigmoid => s.extend(logits.map(sigmoid)),
            Scores::SqrtSoftplus => s.extend(logits.map(|l| softplus(l).sqrt())),
        }
        (s, all)
    }

    /// What the scores are divided by, and its derivative by each; none where it is constant.
    pub(crate) fn divisor(&self, s: &[f64]) -> (f64, Option<Vec<f64>>) {
        let sum: f64 = s.iter().sum();
        let ones = || Some(vec![1.0; s.len()]);
        match self.divisor {
            Divisor::One => (1.0, None),
            Divisor::Sum => (sum, ones()),
            Divisor::SumPlus(epsilon) => (sum + epsilon, ones()),
            Divisor::SumAtLeast(epsilon) if sum < epsilon => (epsilon, None),
            Divisor::SumAtLeast(_) => (sum, ones()),
            Divisor::Norm(p) => {
                let norm = libm::pow(s.iter().map(|s| libm::pow(*s, p)).sum::<f64>(), 1.0 / p);
                (norm, Some(s.iter().map(|s| libm::pow(s / norm, p - 1.0)).collect()))
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
