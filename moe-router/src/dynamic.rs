//! As many experts as a token needs.

use moe_core::memory::{refill, reserve};
use moe_core::{
    Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, TokenContext, numerics,
};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::select::{self, MASKED};
use crate::{Rounding, decimal};

/// The fewest experts whose probabilities reach p (Huang et al., *Harder tasks need more experts*, [2403.07652]).
///
/// The probabilities are `softmax(l)` over all experts; the token takes them in descending order of l, ties to the lower expert, up
/// to the first that brings the running sum to p or above. They are the weights, and sum to about p or more;
/// [`Renormalized`](crate::Renormalized) makes that 1. Where rounding keeps the sum of all below p, all are taken. A NaN makes
/// all weights NaN, which sealing reports.
///
/// Locality: token.
///
/// [2403.07652]: https://arxiv.org/abs/2403.07652
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopP {
    p: f32,
}

impl TopP {
    /// Experts up to a total probability of `p`.
    ///
    /// # Errors
    ///
    /// If `p` is not above 0 and at most 1.
    pub fn new(p: f32) -> Result<Self> {
        if p > 0.0 && p <= 1.0 {
            return Ok(Self { p });
        }
        let expected = "a number above 0, at most 1".into();
        Err(Error::Router { setting: "top-p", expected, found: p.to_string() })
    }
}

impl Router for TopP {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        each_sorted(input, out, numerics::softmax, |probabilities| {
            let mut sum = 0.0;
            // Those before the sum is reached, and the one that reaches it.
            1 + probabilities
                .take_while(|p| {
                    sum += p;
                    sum < self.p || sum.is_nan()
                })
                .count()
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

/// All experts with a positive logit, weighted by it: `w = max(l, 0)` (ReMoE, [2412.14711]).
///
/// Greatest first, ties to the lower expert. A token may get no expert. How many there are is learned: ReMoE's training holds
/// the average at k by an adaptive L1 penalty, which is no part of the router.
///
/// Locality: token.
///
/// [2412.14711]: https://arxiv.org/abs/2412.14711
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relu(());

impl Relu {
    /// The only one there is.
    pub fn new() -> Self {
        Self(())
    }
}

impl Router for Relu {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        each_sorted(input, out, |_| {}, |logits| logits.take_while(|&l| l > 0.0).count());
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }

    /// The weights that all experts would have.
    fn scores(&self, _: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) {
        logits.mapv_inplace(|l| l.max(0.0));
    }
}

/// Every expert that is not masked works on every token, weighted by `softmax(l)`: the dense mixture, to compare with.
///
/// Greatest first, ties to the lower expert. Locality: token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dense(());

impl Dense {
    /// The only one there is.
    pub fn new() -> Self {
        Self(())
    }
}

impl Router for Dense {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        each_sorted(input, out, numerics::softmax, |_| usize::MAX);
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

/// For each token: scores from logits, in descending order of these, of which the first so many are assigned; without masked
/// ones.
pub(crate) fn each_sorted(
    input: &RouteInput<'_>,
    out: &mut Assignments,
    score: impl Fn(&mut [f32]),
    count: impl Fn(&mut dyn Iterator<Item = f32>) -> usize,
) {
    out.with_scratch(|out, RouteScratch { values, keys, .. }| {
        for token in input.present() {
            let logits = input.logits.row(token);
            values.clear();
            values.extend(logits);
            score(values);
            keys.clear();
            let open = logits.iter().enumerate().filter(|(_, l)| **l != MASKED);
            keys.extend(open.map(|(e, &l)| select::key(l, e)));
            keys.sort_unstable_by(|a, b| b.cmp(a));
            let taken = count(&mut keys.iter().map(|&key| values[select::index(key)]));
            for &key in keys.iter().take(taken) {
                let expert = select::index(key);
                out.assign(token, expert, values[expert]);
            }
        }
    });
}

/// An expert takes every token whose score is above its threshold (Expert Threshold routing, [2603.11535]).
///
/// The scores are `σ(l)`, and so are the weights; a token's experts come in descending order, ties to the lower expert, and may
/// be none or all. The thresholds are state of the model: [`ThresholdEma`] finds them. With them given, expert choice's budget
/// holds on average and no token depends on another.
///
/// The authors' code compares logits and cutoffs of logits, which chooses alike: as a threshold here, a cutoff c is `σ(c)`. Of its
/// activations sigmoid is the default, and it divides the weights by the number of the token's experts, counting a shared
/// one: [`Renormalized`](crate::Renormalized) is not that. In training it may also bound an expert's load around the mean, which
/// makes a token depend on others; that is left out.
///
/// Locality: token.
///
/// [2603.11535]: https://arxiv.org/abs/2603.11535
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertThreshold {
    thresholds: Vec<f32>,
}

impl ExpertThreshold {
    /// A threshold for each expert, on the scale of `σ(l)`. Infinity closes an expert.
    ///
    /// # Errors
    ///
    /// If one is NaN.
    pub fn new(thresholds: Vec<f32>) -> Result<Self> {
        if thresholds.iter().any(|c| c.is_nan()) {
            let expected = "numbers".into();
            return Err(Error::Router { setting: "thresholds", expected, found: format!("{thresholds:?}") });
        }
        Ok(Self { thresholds })
    }
}

impl Router for ExpertThreshold {
    /// Pushes the experts whose thresholds a token passes.
    ///
    /// # Errors
    ///
    /// If there is not one threshold an expert.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        Error::check_shape("thresholds", &[input.experts()], &[self.thresholds.len()])?;
        out.with_scratch(|out, RouteScratch { values, keys, .. }| {
            for token in input.present() {
                let logits = input.logits.row(token);
                values.clear();
                values.extend(logits.iter().map(|&l| numerics::sigmoid(l)));
                keys.clear();
                // A threshold below 0 is not passed by what is masked.
                let passing = |e: usize, s: f32| s > self.thresholds[e] && logits[e] != MASKED;
                let passing = values.iter().enumerate().filter(|&(e, &s)| passing(e, s));
                keys.extend(passing.map(|(e, &s)| select::key(s, e)));
                keys.sort_unstable_by(|a, b| b.cmp(a));
                for &key in &*keys {
                    let expert = select::index(key);
                    out.assign(token, expert, values[expert]);
                }
            }
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }

    /// `σ(l)`.
    fn scores(&self, _: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) {
        logits.mapv_inplace(numerics::sigmoid);
    }
}

/// The thresholds of [`ExpertThreshold`] as they follow the batches: a moving average of each expert's quantile.
///
/// Of each batch, q is the k-th greatest logit of the expert, `k = ⌊T·n/E⌋`, at least 1: n experts a token on average, exact
/// for n as it is [written](crate::Capacity). After N
/// batches the threshold is `σ(c)`,
///
/// ```text
/// c = (1 - β)·Σᵢ βᴺ⁻ⁱ·qᵢ / (1 - βᴺ)
/// ```
///
/// so that the first batch sets `c = q`, without outweighing those after it. This is the rule of the authors' code, logits and
/// rounding included. Two things differ: it averages q over the micro-batches of a step, and takes a token at the threshold too,
/// where the paper asks for more.
#[derive(Clone, Debug, PartialEq)]
pub struct ThresholdEma {
    experts_per_token: f64,
    decay: f64,
    /// βᴺ.
    forgotten: f64,
    /// c, after the first batch.
    cutoffs: Option<Vec<f32>>,
    /// Scratch.
    keys: Vec<u32>,
}

impl ThresholdEma {
    /// Thresholds for `experts_per_token` on average, that keep a share `decay` (β) of themselves at each batch.
    ///
    /// # Errors
    ///
    /// If the first is not a finite number above 0, or the decay not in `0..1`.
    pub fn new(experts_per_token: f64, decay: f32) -> Result<Self> {
        let wrong = |setting, expected: &str, found: String| {
            Err(Error::Router { setting, expected: expected.into(), found })
        };
        if !(experts_per_token.is_finite() && experts_per_token > 0.0) {
            return wrong("experts per token", "a finite number above 0", experts_per_token.to_string());
        }
        if !(0.0..1.0).contains(&decay) {
            return wrong("decay", "a number of at least 0 and below 1", decay.to_string());
        }
        Ok(Self { experts_per_token, decay: decay.into(), forgotten: 1.0, cutoffs: None, keys: vec![] })
    }

    /// Takes in the logits `[T, E]` of a batch without padding; see [`update_over`](Self::update_over).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn update(&mut self, logits: ArrayView2<'_, f32>) -> Result<()> {
        self.update_over(&RouteInput::new(logits, TokenContext::new())?)
    }

    /// Takes in a batch, T being its tokens that are not padding; one of no tokens or no experts changes nothing.
    ///
    /// # Errors
    ///
    /// If the number of experts is not that of the batches before, or a quantile is not finite, as that of an expert that is
    /// masked for all but fewer than k tokens; the state is then as before.
    pub fn update_over(&mut self, input: &RouteInput<'_>) -> Result<()> {
        let (tokens, experts) = (input.present().count(), input.experts());
        if tokens == 0 || experts == 0 {
            return Ok(());
        }
        let k = decimal::share(self.experts_per_token, tokens, experts, Rounding::Down).clamp(1, tokens);
        let mut quantiles = Vec::with_capacity(experts);
        refill(&mut self.keys, 0, 0, "keys of logits")?;
        reserve(&mut self.keys, tokens, "keys of logits")?;
        for column in input.logits.columns() {
            let column = || input.present().map(|t| column[t]);
            self.keys.clear();
            self.keys.extend(column().map(select::ordered));
            let (_, &mut key, _) = self.keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            quantiles.push(column().find(|&l| select::ordered(l) == key).unwrap_or(f32::NAN));
        }
        if !quantiles.iter().all(|q| q.is_finite()) {
            let expected = "finite numbers".into();
            return Err(Error::Router { setting: "quantiles", expected, found: format!("{quantiles:?}") });
        }
        if let Some(cutoffs) = &self.cutoffs {
            Error::check_shape("logits of a batch", &[tokens, cutoffs.len()], &[tokens, experts])?;
        }
        self.forgotten *= self.decay;
        // The share of this batch in the average; all of it for the first.
        let share = ((1.0 - self.decay) / (1.0 - self.forgotten)) as f32;
        match &mut self.cutoffs {
            None => self.cutoffs = Some(quantiles),
            Some(cutoffs) => cutoffs.iter_mut().zip(quantiles).for_each(|(c, q)| *c += share * (q - *c)),
        }
        Ok(())
    }

    /// The router with the thresholds as they are now; `None` before the first batch.
    pub fn router(&self) -> Option<ExpertThreshold> {
        let cutoffs = self.cutoffs.as_ref()?;
        Some(ExpertThreshold { thresholds: cutoffs.iter().map(|&c| numerics::sigmoid(c)).collect() })
    }
}
