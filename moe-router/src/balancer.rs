//! Balance by biases instead of a loss.

use moe_core::memory::reserve;
use moe_core::{Error, Result, RouteInput};

use crate::Score;
use crate::select::{self, MASKED};

/// How far a bias moves, before centring and momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Sign,
    Proportional,
    SoftClamped(f32),
}

/// Loss-free balancing (Wang et al., [2408.15664], algorithm 1): a selection bias for each expert, moved after every batch.
///
/// ```text
/// bₑ ← bₑ + γ · sign(mean(load) - loadₑ)        sign(0) = 0
/// ```
///
/// An expert with more than its share of the choices gets a smaller bias, one with less a greater. The sign is that of the paper's
/// load violation error `mean - load`; the comparison is exact, in integers. DeepSeek-V3, [2412.19437], calls γ the bias update speed.
///
/// The load is that of a whole batch, all ranks together, and of the router's choices before any capacity
/// ([`PlanStats::requested_load`](moe_core::PlanStats)), which has no padding in it. Biases are used from the next batch on, so that no token's experts depend on
/// later tokens.
///
/// The papers after it move otherwise, each rule by itself or with the others:
///
/// | method | `Δbₑ`, n̄ the mean load | from |
/// |---|---|---|
/// | none | `γ · sign(n̄ - nₑ)` | loss-free balancing; DeepSeek-V3 |
/// | [`proportional`](Self::proportional) | `γ · (1/E - nₑ / Σ n)` | LongCat-Flash, [2509.01322], without zero-computation experts |
/// | [`soft_clamped`](Self::soft_clamped) | `γ · tanh(κ · (n̄ - nₑ) / n̄)` | SMEBU of Trinity Large, [2602.17004] |
/// | [`centred`](Self::centred) | `Δbₑ - mean(Δb)` | the same |
/// | [`with_momentum`](Self::with_momentum) | `mₑ ← β·mₑ + (1 - β)·Δbₑ`, `bₑ ← bₑ + mₑ` | the same |
///
/// [`quantile_biases`] finds biases in one step.
///
/// ```
/// use moe_router::{BiasBalancer, Score, ScoredTopK};
///
/// let mut router = ScoredTopK::new(2, Score::Sigmoid)?;
/// let mut balancer = BiasBalancer::new(4, 0.001)?;
/// balancer.update(&[9, 2, 5, 4])?;
/// assert_eq!(balancer.biases(), [-0.001, 0.001, 0.0, 0.001]);
/// router.set_bias(balancer.biases())?;
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// [2408.15664]: https://arxiv.org/abs/2408.15664
/// [2412.19437]: https://arxiv.org/abs/2412.19437
/// [2509.01322]: https://arxiv.org/abs/2509.01322
/// [2602.17004]: https://arxiv.org/abs/2602.17004
#[derive(Clone, Debug, PartialEq)]
pub struct BiasBalancer {
    biases: Vec<f32>,
    step: f32,
    rule: Rule,
    centred: bool,
    /// β.
    momentum: f32,
    /// What moved the biases last, `[E]`.
    moves: Vec<f32>,
}

impl BiasBalancer {
    /// Biases of zero for `experts`, which move by `step` (γ; the paper uses 0.001).
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `step` is negative or not finite.
    pub fn new(experts: usize, step: f32) -> Result<Self> {
        Self::resume(vec![0.0; experts], step)
    }

    /// Goes on from the biases of a checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `step` is negative, or it or a bias not finite.
    pub fn resume(biases: impl Into<Vec<f32>>, step: f32) -> Result<Self> {
        let biases = biases.into();
        let wrong = |setting, expected: &str, found: f32| {
            Err(Error::Router { setting, expected: expected.into(), found: found.to_string() })
        };
        if !(step.is_finite() && step >= 0.0) {
            return wrong("bias step", "a finite number, not negative", step);
        }
        match biases.iter().find(|b| !b.is_finite()) {
            Some(&bias) => wrong("selection bias", "finite numbers", bias),
            None => {
                let moves = vec![0.0; biases.len()];
                Ok(Self { biases, step, rule: Rule::Sign, centred: false, momentum: 0.0, moves })
            }
        }
    }

    /// The same, moving by `γ` times the share of the choices that an expert lacks: `1/E - nₑ / Σ n`.
    pub fn proportional(self) -> Self {
        Self { rule: Rule::Proportional, ..self }
    }

    /// The same, moving by `γ · tanh(κ · (n̄ - nₑ) / n̄)`: in proportion near balance, by γ at most.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `kappa` (κ) is a finite number above 0.
    pub fn soft_clamped(self, kappa: f32) -> Result<Self> {
        if !(kappa.is_finite() && kappa > 0.0) {
            let (expected, found) = ("a finite number above 0".into(), kappa.to_string());
            return Err(Error::Router { setting: "clamp of bias steps", expected, found });
        }
        Ok(Self { rule: Rule::SoftClamped(kappa), ..self })
    }

    /// The same, moving all biases by what keeps their mean.
    pub fn centred(self) -> Self {
        Self { centred: true, ..self }
    }

    /// The same, moving by a running mean of the moves that keeps a share β of itself, from 0 on.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `beta` is at least 0 and below 1.
    pub fn with_momentum(self, beta: f32) -> Result<Self> {
        if !(0.0..1.0).contains(&beta) {
            let (expected, found) = ("a number of at least 0 and below 1".into(), beta.to_string());
            return Err(Error::Router { setting: "bias momentum", expected, found });
        }
        Ok(Self { momentum: beta, ..self })
    }

    /// Moves the biases by what a batch did: `load[e]` choices fell on expert e.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if there are more or fewer loads than experts; the biases then stay.
    pub fn update(&mut self, load: &[usize]) -> Result<()> {
        if load.len() != self.biases.len() {
            return Err(Error::Length {
                what: "expert load",
                expected: self.biases.len(),
                found: load.len(),
            });
        }
        // E · load against E · mean.
        let experts = load.len() as u128;
        let total: u128 = load.iter().map(|&n| n as u128).sum();
        let lacking = |load: usize| {
            // Of the mean: 1 where nothing fell on the expert, exact but for one rounding in f64.
            let share = (load as u128 * experts) as f64 / total as f64;
            if total == 0 { 0.0 } else { 1.0 - share }
        };
        let step = |load: usize| match self.rule {
            Rule::Sign => match total.cmp(&(experts * load as u128)) {
                std::cmp::Ordering::Less => -self.step,
                std::cmp::Ordering::Equal => 0.0,
                std::cmp::Ordering::Greater => self.step,
            },
            Rule::Proportional => self.step * (lacking(load) / experts as f64) as f32,
            Rule::SoftClamped(kappa) => self.step * libm::tanh(f64::from(kappa) * lacking(load)) as f32,
        };
        let steps: Vec<f32> = load.iter().map(|&load| step(load)).collect();
        let sum: f64 = steps.iter().map(|&s| f64::from(s)).sum();
        let mean = if self.centred { (sum / experts.max(1) as f64) as f32 } else { 0.0 };
        for ((bias, last), step) in self.biases.iter_mut().zip(&mut self.moves).zip(steps) {
            *last = self.momentum * *last + (1.0 - self.momentum) * (step - mean);
            *bias += *last;
        }
        Ok(())
    }

    /// The bias of each expert, `[E]`.
    pub fn biases(&self) -> &[f32] {
        &self.biases
    }

    /// How far a bias moves in a batch, γ.
    pub fn step(&self) -> f32 {
        self.step
    }
}

/// Biases that make loads even in one step: the threshold of each expert at a quantile of what it lacks (quantile balancing,
/// Su, [kexue.fm 11619]; Kimi K3).
///
/// Of a batch, with s the scores and without any bias,
///
/// ```text
/// αₜ = the (k + 1)-th greatest s[t]              what an expert has to reach
/// bₑ = the k/E quantile over t of αₜ - s[t, e]   the share k/E of the tokens lack no more
/// bₑ ← bₑ - mean(b)
/// ```
///
/// with linear interpolation between order statistics, in f64. Thresholds move with the biases, so that loads are near even and
/// not quite; a batch serves as an estimate for those after it, and a mean over batches as a better one. Padding counts nowhere.
/// A token of which no more than k experts are not masked has no threshold and is left out, as is a pair that is masked; an
/// expert for which no pair is left has bias 0.
///
/// # Errors
///
/// [`Error::Router`] if `k` is 0 or not below the number of experts, or a score is not finite; [`Error::OutOfMemory`].
///
/// [kexue.fm 11619]: https://kexue.fm/archives/11619
pub fn quantile_biases(input: &RouteInput<'_>, score: Score, k: usize) -> Result<Vec<f32>> {
    let experts = input.experts();
    let wrong =
        |expected: String, found: String| Error::Router { setting: "quantile balancing", expected, found };
    if k == 0 || k >= experts {
        return Err(wrong(format!("k from 1 to below {experts}"), k.to_string()));
    }
    let mut lacks: Vec<Vec<f64>> = vec![vec![]; experts];
    let tokens = input.present().count();
    for lacks in &mut lacks {
        reserve(lacks, tokens, "scores that tokens lack")?;
    }
    let (mut scores, mut keys) = (vec![], vec![]);
    for token in input.present() {
        let logits = input.logits.row(token);
        scores.clear();
        scores.extend(logits);
        score.apply(&mut scores);
        let open = || (0..experts).filter(|&e| logits[e] != MASKED);
        if let Some(e) = open().find(|&e| !scores[e].is_finite()) {
            let found = format!("{} for token {token}, expert {e}", scores[e]);
            return Err(wrong("finite scores".into(), found));
        }
        select::best_of(open().map(|e| (e, scores[e])), k + 1, &mut keys);
        let Some(&threshold) = keys.get(k) else { continue };
        let threshold = f64::from(scores[select::index(threshold)]);
        open().for_each(|e| lacks[e].push(threshold - f64::from(scores[e])));
    }
    let quantiles: Vec<Option<f64>> =
        lacks.iter_mut().map(|l| quantile(l, k as f64 / experts as f64)).collect();
    let found = quantiles.iter().flatten();
    let mean = found.clone().sum::<f64>() / found.count().max(1) as f64;
    Ok(quantiles.iter().map(|q| q.map_or(0.0, |q| (q - mean) as f32)).collect())
}

/// The quantile by linear interpolation; none of nothing.
fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let at = share * (values.len().checked_sub(1)? as f64);
    let below = at as usize;
    let (low, high) = (values[below], values[(below + 1).min(values.len() - 1)]);
    Some(low + (at - below as f64) * (high - low))
}
