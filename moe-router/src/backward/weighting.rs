//! Weights as functions of logits, and their derivatives.

use moe_core::memory::{refill, refill_from};
use moe_core::{Result, RoutingPlan};
use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::precise::{log_softplus, log_sum_exp, sigmoid, softmax, softplus, widened, zeros};
use crate::scored::check_scale;
use crate::{Normalizer, Score};

/// How weights are made of logits once the experts are chosen: `wₑ = scale · normalized(score(l))ₑ`.
///
/// [`TopK::weighting`](crate::TopK::weighting) and [`ScoredTopK::weighting`](crate::ScoredTopK::weighting) give that of a router.
/// [`Score`] and [`Normalizer`] are the router's own, computed here in f64. Where a normaliser divides by 0, weights and
/// gradients are not finite. Where weights are ratios of scores that are not negative, they are made of logarithms, so that
/// only scores of 0 proper, as of logits of negative infinity, divide by 0: sigmoids of -1000 still have their ratio.
/// `√softplus` has the derivative 0 where it is 0, its limit (PyTorch gives NaN); the infinite norm's is shared out among equal
/// greatest scores.
///
/// ```
/// use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
/// use moe_router::TopK;
/// use ndarray::array;
///
/// let router = TopK::new(2)?;
/// let logits = array![[1.0f32, -0.5, 1.0]];
/// let (mut chosen, mut plan) = (Assignments::new(), RoutingPlan::new());
/// chosen.reset(1, 3)?;
/// router.route(&RouteInput::new(logits.view(), TokenContext::new())?, &mut chosen)?;
/// plan.seal(&chosen)?;
///
/// // ∂L/∂weight of each row of the plan: experts 0 and 2.
/// let gradient = router.weighting().gradient(logits.view(), &plan, &[1.0, 0.0])?;
/// assert_eq!(gradient, array![[0.25, 0.0, -0.25]]);
/// # Ok::<(), moe_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighting {
    score: Score,
    normalizer: Normalizer,
    scale: f64,
    refused_too: bool,
}

impl Weighting {
    /// The scores themselves.
    pub const fn new(score: Score) -> Self {
        Self::of(score, Normalizer::None, 1.0)
    }

    /// With a normaliser that is valid and a scale that is finite.
    pub(crate) const fn of(score: Score, normalizer: Normalizer, scale: f32) -> Self {
        Self { score, normalizer, scale: scale as f64, refused_too: false }
    }

    /// The same, normalised.
    ///
    /// # Errors
    ///
    /// If the normaliser is [not valid](Normalizer::check).
    pub fn normalized(self, normalizer: Normalizer) -> Result<Self> {
        normalizer.check()?;
        Ok(Self { normalizer, ..self })
    }

    /// The same, times a constant.
    ///
    /// # Errors
    ///
    /// [`Error::Router`](moe_core::Error::Router) if `scale` is not finite.
    pub fn scaled(self, scale: f32) -> Result<Self> {
        check_scale(scale)?;
        Ok(Self { scale: scale.into(), ..self })
    }

    /// The same, made before a capacity: refused experts take part in the normaliser, though they have no weight.
    pub fn over_refused_too(self) -> Self {
        Self { refused_too: true, ..self }
    }

    /// The weight of each row of the plan, `[R]`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    ///
    /// # Panics
    ///
    /// If the plan has another number of tokens or experts than the logits `[T, E]`.
    #[track_caller]
    pub fn weights(&self, logits: ArrayView2<'_, f32>, plan: &RoutingPlan) -> Result<Vec<f64>> {
        let mut weights = Vec::new();
        refill(&mut weights, plan.rows(), 0.0, "weights")?;
        self.each_token(logits, plan, |_, row, chosen, rows| {
            rows.iter().zip(self.of_token(row, chosen)).for_each(|(&r, w)| weights[r] = w);
        })?;
        Ok(weights)
    }

    /// `∂L/∂logits`, `[T, E]`, of `upstream = ∂L/∂weight`, `[R]` by rows of the plan.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    #[track_caller]
    pub fn gradient(
        &self,
        logits: ArrayView2<'_, f32>,
        plan: &RoutingPlan,
        upstream: &[f32],
    ) -> Result<Array2<f64>> {
        assert_eq!(upstream.len(), plan.rows(), "one upstream derivative a row of the plan");
        let mut gradient = zeros(logits)?;
        let mut of_chosen = vec![];
        self.each_token(logits, plan, |t, row, chosen, rows| {
            of_chosen.clear();
            of_chosen.extend(rows.iter().map(|&r| f64::from(upstream[r])));
            of_chosen.resize(chosen.len(), 0.0);
            self.pull_back(row, chosen, &of_chosen, |e, d| gradient[[t, e]] += d);
        })?;
        Ok(gradient)
    }

    /// Calls `visit(token, logits, chosen experts, rows of the first of them)`. The experts without a row are refused ones.
    #[track_caller]
    fn each_token(
        &self,
        logits: ArrayView2<'_, f32>,
        plan: &RoutingPlan,
        mut visit: impl FnMut(usize, ArrayView1<'_, f32>, &[usize], &[usize]),
    ) -> Result<()> {
        assert_eq!(logits.dim(), (plan.tokens(), plan.experts()), "logits and plan of one shape");
        let mut refused = vec![];
        if self.refused_too {
            refill_from(&mut refused, plan.refused().len(), plan.refused().iter().copied(), "refusals")?;
        }
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
        Ok(())
    }

    /// The weights of a token's chosen experts.
    pub(crate) fn of_token(&self, row: ArrayView1<'_, f32>, chosen: &[usize]) -> Vec<f64> {
        if let Some(p) = self.ratio_norm() {
            let (w, _) = ratios(&self.logarithms(row, chosen), p);
            return w.into_iter().map(|w| self.scale * w).collect();
        }
        let (mut s, _) = self.scores(row, chosen);
        if self.normalizer == Normalizer::Softmax {
            let logits = std::mem::take(&mut s);
            softmax(logits.into_iter(), &mut s);
        }
        let (divisor, _) = self.divisor(&s);
        s.iter_mut().for_each(|s| *s *= self.scale / divisor);
        s
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
        let logit = |e: usize| f64::from(row[e]);
        if let Some(p) = self.ratio_norm() {
            // w = scale s / N:  ∂L/∂(ln sⱼ) = scale (uⱼ wⱼ - Nⱼ Σ u w),  Nⱼ = ∂(ln N)/∂(ln sⱼ).
            let (w, slopes) = ratios(&self.logarithms(row, chosen), p);
            let mean = dot(upstream, &w);
            for (((&e, w), slope), u) in chosen.iter().zip(&w).zip(&slopes).zip(upstream) {
                add(e, self.scale * (u * w - slope * mean) * self.slope_of_logarithm(logit(e)));
            }
            return;
        }
        let (s, all) = self.scores(row, chosen);
        let g = self.by_score(&s, upstream);
        let each = chosen.iter().zip(s.iter().zip(&g));
        match self.score {
            Score::Logit => each.for_each(|(&e, (_, g))| add(e, *g)),
            // ∂sᵢ/∂lⱼ = sᵢ (δᵢⱼ - sⱼ).
            Score::Softmax => {
                let mean = dot(&g, &s);
                all.iter().enumerate().for_each(|(e, p)| add(e, -p * mean));
                each.for_each(|(&e, (s, g))| add(e, s * g));
            }
            // σ' = σ(l) σ(-l).
            Score::Sigmoid => each.for_each(|(&e, (s, g))| add(e, g * s * sigmoid(-logit(e)))),
            // (√ψ)' = ψ' / (2√ψ), ψ' = σ.
            Score::SqrtSoftplus => each
                .filter(|(_, (s, _))| **s != 0.0)
                .for_each(|(&e, (s, g))| add(e, g * sigmoid(logit(e)) / (2.0 * s))),
        }
    }

    /// `∂L/∂s` of the scores s of the chosen.
    fn by_score(&self, s: &[f64], upstream: &[f64]) -> Vec<f64> {
        if self.normalizer == Normalizer::Softmax {
            // ∂wᵢ/∂sⱼ = wᵢ (δᵢⱼ - wⱼ).
            let mut w = vec![];
            softmax(s.iter().copied(), &mut w);
            let mean = dot(upstream, &w);
            return upstream.iter().zip(&w).map(|(u, w)| self.scale * w * (u - mean)).collect();
        }
        // w = scale s / N:  ∂L/∂sⱼ = scale (uⱼ / N - ∂N/∂sⱼ Σ u s / N²).
        let (divisor, slopes) = self.divisor(s);
        let mean = dot(upstream, s) / divisor;
        let slope = |j: usize| slopes.as_ref().map_or(0.0, |d| d[j]);
        upstream.iter().enumerate().map(|(j, u)| self.scale * (u - slope(j) * mean) / divisor).collect()
    }

    /// The order of the norm that scores are divided by, where a common factor of them changes no weight and none is negative.
    fn ratio_norm(&self) -> Option<f64> {
        match self.normalizer {
            _ if self.score == Score::Logit => None,
            Normalizer::Sum { epsilon: 0.0 } | Normalizer::SumAtLeast { floor: 0.0 } => Some(1.0),
            Normalizer::Norm { p } => Some(p.into()),
            _ => None,
        }
    }

    /// `ln s` of the scores of the chosen.
    fn logarithms(&self, row: ArrayView1<'_, f32>, chosen: &[usize]) -> Vec<f64> {
        let total = if self.score == Score::Softmax { log_sum_exp(widened(row)) } else { 0.0 };
        let logarithm = |l: f64| match self.score {
            Score::Sigmoid => -softplus(-l),
            Score::SqrtSoftplus => log_softplus(l) / 2.0,
            // A NaN and a positive infinity anywhere in the row make it NaN.
            Score::Softmax | Score::Logit => l - total,
        };
        chosen.iter().map(|&e| logarithm(row[e].into())).collect()
    }

    /// `∂(ln s)/∂l`, but for what is the same for all experts.
    fn slope_of_logarithm(&self, l: f64) -> f64 {
        match self.score {
            Score::Sigmoid => sigmoid(-l),
            Score::SqrtSoftplus => libm::exp(-softplus(-l) - log_softplus(l)) / 2.0,
            Score::Softmax | Score::Logit => 1.0,
        }
    }

    /// The scores of the chosen; and of all, where they are made of all.
    fn scores(&self, row: ArrayView1<'_, f32>, chosen: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let mut all = vec![];
        let logits = chosen.iter().map(|&e| f64::from(row[e]));
        let s = match self.score {
            Score::Logit => logits.collect(),
            Score::Softmax => {
                softmax(widened(row), &mut all);
                chosen.iter().map(|&e| all[e]).collect()
            }
            Score::Sigmoid => logits.map(sigmoid).collect(),
            Score::SqrtSoftplus => logits.map(|l| softplus(l).sqrt()).collect(),
        };
        (s, all)
    }

    /// What the scores are divided by, and its derivative by each; none where it is constant.
    fn divisor(&self, s: &[f64]) -> (f64, Option<Vec<f64>>) {
        let sum: f64 = s.iter().sum();
        let ones = || Some(vec![1.0; s.len()]);
        match self.normalizer {
            // Softmax has no divisor of its own scores.
            Normalizer::None | Normalizer::Softmax => (1.0, None),
            Normalizer::Sum { epsilon } => (sum + f64::from(epsilon), ones()),
            Normalizer::SumAtLeast { floor } if sum < floor.into() => (floor.into(), None),
            Normalizer::SumAtLeast { .. } => (sum, ones()),
            Normalizer::Norm { p } => {
                let (norm, slopes) = norm(s, p.into());
                (norm, Some(slopes))
            }
        }
    }
}

/// Of scores s > 0 given as `ln s`: `s / ‖s‖` by the norm of order p, and `∂(ln ‖s‖)/∂(ln s) = (s / ‖s‖)ᵖ`.
fn ratios(logarithms: &[f64], p: f64) -> (Vec<f64>, Vec<f64>) {
    let top = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let of_top: Vec<f64> = logarithms.iter().map(|s| libm::exp(s - top)).collect();
    if p == f64::INFINITY {
        let greatest = of_top.iter().filter(|&&s| s == 1.0).count() as f64;
        let slopes = of_top.iter().map(|&s| if s == 1.0 { 1.0 / greatest } else { 0.0 }).collect();
        return (of_top, slopes);
    }
    let mut slopes: Vec<f64> = logarithms.iter().map(|s| libm::exp(p * (s - top))).collect();
    let sum: f64 = slopes.iter().sum();
    slopes.iter_mut().for_each(|s| *s /= sum);
    let norm = libm::pow(sum, 1.0 / p);
    (of_top.into_iter().map(|s| s / norm).collect(), slopes)
}

/// `(Σ |s|ᵖ)^(1/p)` and its derivatives, `sign(s) (|s| / norm)^(p - 1)`.
fn norm(s: &[f64], p: f64) -> (f64, Vec<f64>) {
    let largest = s.iter().fold(0.0f64, |m, s| m.max(s.abs()));
    if p == f64::INFINITY {
        let is_largest = |s: &f64| s.abs() == largest;
        let share = 1.0 / s.iter().filter(|s| is_largest(s)).count() as f64;
        return (largest, s.iter().map(|s| if is_largest(s) { share.copysign(*s) } else { 0.0 }).collect());
    }
    let powers = s.iter().map(|s| libm::pow(s.abs() / largest, p));
    let norm = largest * libm::pow(powers.sum(), 1.0 / p);
    (norm, s.iter().map(|s| libm::pow(s.abs() / norm, p - 1.0).copysign(*s)).collect())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
