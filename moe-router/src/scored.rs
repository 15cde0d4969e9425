//! The k experts with the best scores, out of interchangeable pieces.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, RouteScratch, Router, TokenContext};
use ndarray::{ArrayView1, ArrayViewMut2};

use crate::backward::Weighting;
use crate::select::MASKED;
use crate::{ExpertGroups, Normalizer, Score, select};

/// Each token goes to the k experts with its greatest scores: the routers of DeepSeek and many that followed.
///
/// From a token's logits l, `[E]`,
///
/// ```text
/// c = chosen_by(l) + bias                        what is chosen by; the bias enters nothing else
/// S = the k greatest c, within the kept groups   best first, ties to the lower expert
/// wₑ = scale · normalized(weighed_by(l))ₑ        over e in S
/// ```
///
/// [`Score`] and [`Normalizer`] list the functions, [`ExpertGroups`] the groups. Published routers are constructors, to be taken
/// as they are or changed in one piece; [`TopK`](crate::TopK) is the short way to the plain ones.
///
/// ```
/// use moe_router::{ExpertGroups, Normalizer, Score, ScoredTopK};
///
/// let deepseek = ScoredTopK::deepseek_v3(8, vec![0.0; 256], ExpertGroups::by_two_best(8, 4)?, 2.5)?;
/// let by_hand = ScoredTopK::new(8, Score::Sigmoid)?
///     .with_bias(vec![0.0; 256])?
///     .within(ExpertGroups::by_two_best(8, 4)?)
///     .normalized(Normalizer::Sum { epsilon: 1e-20 })?
///     .scaled(2.5)?;
/// assert_eq!(deepseek, by_hand);
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// With [shared experts](Self::with_shared) the last n of the E are not chosen but taken by every token, after S, and divided by
/// together with it; bias and groups are of the others, `[E - n]`.
///
/// A masked expert, whose logit is negative infinity, is neither chosen nor counted in a group's score; where fewer than k are
/// left, in the kept groups, those are the choices.
///
/// A router that chooses by a score which is no more than a rising function of the logit does so by the logit itself
/// ([`Score::Logit`]) where it has neither bias nor sum over a group: the order is the same in exact arithmetic, and experts whose
/// scores round to the same number, such as two probabilities of 0, stay distinct.
///
/// Locality: token.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredTopK {
    k: usize,
    choose_by: Score,
    weigh_by: Score,
    /// One for each expert, or none at all.
    bias: Vec<f32>,
    groups: Option<ExpertGroups>,
    normalizer: Normalizer,
    scale: f32,
    /// Experts at the end that every token takes.
    shared: usize,
}

impl ScoredTopK {
    /// The `k` best by `score`, which also is the weight.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `k` is 0.
    pub fn new(k: usize, score: Score) -> Result<Self> {
        if k == 0 {
            return Err(Error::Router {
                setting: "top-k",
                expected: "k of at least 1".into(),
                found: "0".into(),
            });
        }
        Ok(Self::plain(k, score, score, Normalizer::None))
    }

    /// Without bias, groups and scale; `k` is at least 1 and the normaliser valid.
    pub(crate) const fn plain(k: usize, choose_by: Score, weigh_by: Score, normalizer: Normalizer) -> Self {
        Self { k, choose_by, weigh_by, bias: Vec::new(), groups: None, normalizer, scale: 1.0, shared: 0 }
    }

    /// The same choice, weighed by another score.
    pub fn weighed_by(self, score: Score) -> Self {
        Self { weigh_by: score, ..self }
    }

    /// The same, with a bias for each expert added to what is chosen by, but not to the weights.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if a bias is not finite.
    pub fn with_bias(mut self, bias: impl Into<Vec<f32>>) -> Result<Self> {
        let bias = bias.into();
        check_bias(&bias)?;
        self.bias = bias;
        Ok(self)
    }

    /// Replaces the bias, as a [`BiasBalancer`](crate::BiasBalancer) does between batches; none takes it away.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if a bias is not finite; the old ones then stay.
    pub fn set_bias(&mut self, bias: &[f32]) -> Result<()> {
        check_bias(bias)?;
        self.bias.clear();
        self.bias.extend_from_slice(bias);
        Ok(())
    }

    /// The same, choosing within the best groups of experts.
    pub fn within(self, groups: ExpertGroups) -> Self {
        Self { groups: Some(groups), ..self }
    }

    /// The same choice, its scores made into weights otherwise.
    ///
    /// # Errors
    ///
    /// If the normaliser is [not valid](Normalizer::check).
    pub fn normalized(self, normalizer: Normalizer) -> Result<Self> {
        normalizer.check()?;
        Ok(Self { normalizer, ..self })
    }

    /// The same, with all weights multiplied by `scale` in the end.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `scale` is not finite.
    pub fn scaled(self, scale: f32) -> Result<Self> {
        check_scale(scale)?;
        Ok(Self { scale, ..self })
    }

    /// The same, with the last `shared` experts taken by every token besides its k: a gate that weighs shared experts with the
    /// chosen ones (Inkling). Their logits count in a softmax over all.
    pub fn with_shared(self, shared: usize) -> Self {
        Self { shared, ..self }
    }

    /// Choices per token, k, without shared experts.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The bias of each expert; empty if there is none.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// How the weights depend on the logits, for their gradient. Bias and groups take part in the choice alone.
    pub fn weighting(&self) -> Weighting {
        Weighting::of(self.weigh_by, self.normalizer, self.scale)
    }

    fn check(&self, experts: usize) -> Result<()> {
        let experts = experts.saturating_sub(self.shared);
        if self.k > experts {
            return Err(Error::Router {
                setting: "top-k",
                expected: format!("at least {} experts", self.k),
                found: experts.to_string(),
            });
        }
        if !self.bias.is_empty() && self.bias.len() != experts {
            return Err(Error::Router {
                setting: "selection bias",
                expected: format!("one for each of {experts} experts"),
                found: self.bias.len().to_string(),
            });
        }
        self.groups.map_or(Ok(()), |groups| groups.check(experts, self.k))
    }

    /// Finds the keys of the chosen, best first, and leaves the scores of all experts in `values[..E]`.
    fn choose(&self, logits: ArrayView1<'_, f32>, values: &mut Vec<f32>, keys: &mut Vec<u64>) {
        values.clear();
        values.extend(logits);
        self.choose_by.apply(values);
        let routed = logits.len() - self.shared;
        if self.bias.is_empty() && self.groups.is_none() {
            let open = values[..routed].iter().zip(logits).enumerate().filter(|(_, (_, l))| **l != MASKED);
            select::best_of(open.map(|(e, (&score, _))| (e, score)), self.k, keys);
            return self.take_shared(logits, keys);
        }
        values.extend_from_within(..routed);
        let choice = &mut values[logits.len()..];
        choice.iter_mut().zip(&self.bias).for_each(|(score, bias)| *score += bias);
        let masked = choice.iter_mut().zip(logits).filter(|(_, l)| **l == MASKED);
        masked.for_each(|(score, _)| *score = MASKED);
        if let Some(groups) = self.groups {
            groups.exclude(choice, self.k, keys);
        }
        let open = choice.iter().copied().enumerate().filter(|&(_, score)| score != MASKED);
        select::best_of(open, self.k, keys);
        self.take_shared(logits, keys);
    }

    fn take_shared(&self, logits: ArrayView1<'_, f32>, keys: &mut Vec<u64>) {
        let shared = (logits.len() - self.shared..logits.len()).filter(|&e| logits[e] != MASKED);
        keys.extend(shared.map(|e| select::key(0.0, e)));
    }

    /// The weights of the chosen by rank, `[k]`, after [`choose`](Self::choose).
    fn weigh<'a>(
        &self,
        logits: ArrayView1<'_, f32>,
        values: &'a mut Vec<f32>,
        keys: &[u64],
    ) -> &'a mut [f32] {
        let experts = logits.len();
        values.truncate(experts);
        if self.weigh_by != self.choose_by {
            values.clear();
            values.extend(logits);
            self.weigh_by.apply(values);
        }
        for &key in keys {
            values.push(values[select::index(key)]);
        }
        let weights = &mut values[experts..];
        self.normalizer.apply(weights);
        weights.iter_mut().for_each(|w| *w *= self.scale);
        weights
    }
}

/// Checks what all weights are multiplied by.
pub(crate) fn check_scale(scale: f32) -> Result<()> {
    if scale.is_finite() {
        return Ok(());
    }
    let (expected, found) = ("a finite number".into(), scale.to_string());
    Err(Error::Router { setting: "routed scale", expected, found })
}

impl Router for ScoredTopK {
    /// Pushes k experts for every token that is not padding, best first, then those that are shared; fewer where fewer are not
    /// masked.
    ///
    /// Scores that are NaN (a NaN among the logits, or under softmax a positive infinity) make weights NaN, as do chosen scores that are all zero under a [`Normalizer`] that divides by them; sealing reports it.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if there are fewer than k experts, another number of experts than of biases, or experts that do not divide
    /// into the groups or are fewer than k in the groups kept.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        self.check(input.experts())?;
        out.with_scratch(|out, RouteScratch { values, keys, .. }| {
            for token in input.present() {
                let logits = input.logits.row(token);
                self.choose(logits, values, keys);
                let weights = self.weigh(logits, values, keys);
                for (&key, &mut weight) in keys.iter().zip(weights) {
                    out.assign(token, select::index(key), weight);
                }
            }
        });
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }

    /// What the weights are made of, for all experts: without bias, groups, normaliser and scale. Softmax where that is the logit.
    fn scores(&self, _: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.weigh_by.apply_to_rows(logits);
    }
}

fn check_bias(bias: &[f32]) -> Result<()> {
    match bias.iter().position(|b| !b.is_finite()) {
        Some(expert) => Err(Error::Router {
            setting: "selection bias",
            expected: "finite numbers".into(),
            found: format!("{} for expert {expert}", bias[expert]),
        }),
        None => Ok(()),
    }
}
