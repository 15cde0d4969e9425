//! The load-balancing loss `E Σ fₑ Pₑ` in its three scopes.

use moe_core::{Result, RouteInput, Routed, RoutingPlan};
use ndarray::Array2;

use super::groups::{Affinity, mean, mean_by_tokens, pull_back, total_probability};
use crate::present::present;

/// `E Σₑ fₑ Pₑ`: the share of tokens that choose an expert times its mean probability (Switch, [2101.03961]; GShard,
/// [2006.16668]).
///
/// fₑ is the number of choices of expert e over the number of tokens, so that f sums to the choices a token has: k. (DeepSeek and
/// Megatron divide by k as well; [`SequenceBalance`](super::SequenceBalance) does.) Pₑ is the mean of `softmax(l)[e]`. With k
/// choices a token, uniform routing gives k, collapse E. Only P has a gradient: `∂L/∂p[t, e] = E fₑ / n`.
///
/// The loss is not bounded by its uniform value from below: choices and probabilities that disagree go lower.
///
/// The three scopes differ in what n and the sums run over, and in which choices count.
///
/// ```
/// use moe_core::{Assignments, RouteInput, Routed, Router, RoutingPlan, TokenContext};
/// use moe_router::{TopK, losses::LoadBalance};
/// use ndarray::array;
///
/// let logits = array![[2.0f32, 0.0], [0.0, 2.0]];
/// let (context, mut out, mut plan) = (TokenContext::new(), Assignments::new(), RoutingPlan::new());
/// out.reset(2, 2)?;
/// TopK::new(1)?.route(&RouteInput::new(logits.view(), context)?, &mut out)?;
/// plan.seal(&out)?;
///
/// let loss = LoadBalance::per_sequence(&Routed::new(logits.view(), &plan, context)?);
/// assert!((loss.value() - 1.0).abs() < 1e-12);
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// [2006.16668]: https://arxiv.org/abs/2006.16668
/// [2101.03961]: https://arxiv.org/abs/2101.03961
#[derive(Clone, Debug)]
pub struct LoadBalance<'a> {
    inputs: Vec<RouteInput<'a>>,
    /// One for all, or one a sequence of the single input.
    groups: Vec<Balance>,
    by_tokens: bool,
    /// `∂L/∂p` in each group, `[E]`; none without tokens.
    slopes: Vec<Vec<f64>>,
}

/// What the loss of one group of tokens is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// Tokens that are not padding, n.
    pub tokens: usize,
    /// Choices of each expert over n, `[E]`.
    pub f: Vec<f64>,
    /// Mean probability of each expert, `[E]`.
    pub p: Vec<f64>,
}

impl Balance {
    /// `E Σ fₑ Pₑ`
    pub fn value(&self) -> f64 {
        self.f.len() as f64 * self.f.iter().zip(&self.p).map(|(f, p)| f * p).sum::<f64>()
    }
}

impl<'a> LoadBalance<'a> {
    /// One group of all rows of all layers, as `transformers` has it for Mixtral and NLLB: one mean over layers and tokens
    /// together, not a mean of the layers' losses. Layers may differ in their tokens.
    ///
    /// An attention mask there is the padding here, layer by layer. Experts count by number: expert 3 of one layer together with
    /// expert 3 of the next.
    ///
    /// # Panics
    ///
    /// If the layers differ in their number of experts.
    #[track_caller]
    pub fn over_all(layers: &[Routed<'a>]) -> Self {
        let experts = layers.first().map_or(0, |l| l.input().experts());
        let mut all = Sums::new(experts);
        for layer in layers {
            assert_eq!(layer.input().experts(), experts, "layers of one number of experts");
            all.add(&layer.input(), layer.plan, 0..layer.input().tokens(), usize::MAX);
        }
        Self::new(layers.iter().map(Routed::input).collect(), vec![all.balance()], false)
    }

    /// A group for each sequence, the losses averaged: Switch (`E² · mean over (sequence, expert) of f P`), and flaxformer,
    /// whose groups are sequences here.
    ///
    /// Flaxformer divides f and P by all tokens of a group, padding too, and averages over groups of nothing but padding: its
    /// value of a group is [`Balance::value`] times `(n/T)²`.
    pub fn per_sequence(routed: &Routed<'a>) -> Self {
        Self::grouped(routed, usize::MAX)
    }

    /// The same with f counting first choices alone: GShard's `l_aux` (its Algorithm 1, times E² as in its code), and V-MoE's
    /// `gshard_loss`. Uniform routing gives 1 whatever k is.
    pub fn of_first_choices(routed: &Routed<'a>) -> Self {
        Self::grouped(routed, 1)
    }

    fn grouped(routed: &Routed<'a>, ranks: usize) -> Self {
        let input = routed.input();
        let of_sequence = |range| {
            let mut sums = Sums::new(input.experts());
            sums.add(&input, routed.plan, range, ranks);
            sums.balance()
        };
        Self::new(vec![input], input.sequences().map(of_sequence).collect(), false)
    }

    /// The same with the mean over sequences weighted by their tokens, of which padding is none: a packed batch where every
    /// token counts alike.
    pub fn weighted_by_tokens(self) -> Self {
        Self::new(self.inputs, self.groups, true)
    }

    /// The same with f of `choices` over `tokens` in every group: those of the global batch, all ranks and micro-batches together,
    /// while P stays that of the tokens at hand (global-batch balance, Qiu et al., [2501.11873](https://arxiv.org/abs/2501.11873)).
    ///
    /// A mean of the values of all ranks, weighted by their tokens, is the value over all of them in one, and the gradient of a
    /// rank times its share of the tokens the part of that one's gradient.
    ///
    /// # Panics
    ///
    /// If there is not one count an expert.
    #[track_caller]
    pub fn with_global_choices(mut self, choices: &[u64], tokens: u64) -> Self {
        let n = tokens.max(1) as f64;
        let f: Vec<f64> = choices.iter().map(|&c| c as f64 / n).collect();
        for group in &mut self.groups {
            assert_eq!(group.f.len(), f.len(), "a count of choices for each expert");
            group.f.clone_from(&f);
        }
        Self::new(self.inputs, self.groups, self.by_tokens)
    }

    fn new(inputs: Vec<RouteInput<'a>>, groups: Vec<Balance>, by_tokens: bool) -> Self {
        let counted = groups.iter().filter(|g| g.tokens > 0).count() as f64;
        let all = groups.iter().map(|g| g.tokens).sum::<usize>() as f64;
        let slope = |g: &Balance| {
            let n = if by_tokens { all } else { g.tokens as f64 * counted };
            let scale = g.f.len() as f64 / n;
            if g.tokens == 0 { vec![] } else { g.f.iter().map(|f| scale * f).collect() }
        };
        Self { slopes: groups.iter().map(slope).collect(), inputs, groups, by_tokens }
    }

    /// The loss: the mean over the groups that have tokens, all alike unless weighted.
    pub fn value(&self) -> f64 {
        if self.by_tokens {
            return mean_by_tokens(self.groups.iter().map(|g| (g.tokens, g.value())));
        }
        mean(self.groups.iter().filter(|g| g.tokens > 0).map(Balance::value))
    }

    /// f and P of each group: of all rows, or of each sequence.
    pub fn groups(&self) -> &[Balance] {
        &self.groups
    }

    /// `∂value/∂logits` of each layer, `[T, E]`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    pub fn gradients(&self) -> Result<Vec<Array2<f64>>> {
        // Over all layers there is one group for every sequence.
        let slope = |s: usize| &*self.slopes[s.min(self.slopes.len() - 1)];
        self.inputs.iter().map(|input| pull_back(input, Affinity::Softmax, slope)).collect()
    }

    /// `∂value/∂logits`, `[T, E]`, of the single layer, or of the first of several.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    ///
    /// # Panics
    ///
    /// If there is no layer.
    #[track_caller]
    pub fn gradient(&self) -> Result<Array2<f64>> {
        Ok(self.gradients()?.swap_remove(0))
    }
}

/// Counts and probabilities, before they are divided by the number of tokens.
struct Sums {
    tokens: usize,
    choices: Vec<usize>,
    probability: Vec<f64>,
}

impl Sums {
    fn new(experts: usize) -> Self {
        Self { tokens: 0, choices: vec![0; experts], probability: vec![0.0; experts] }
    }

    /// Adds the tokens of a range and the first `ranks` choices of each.
    fn add(
        &mut self,
        input: &RouteInput<'_>,
        plan: &RoutingPlan,
        range: std::ops::Range<usize>,
        ranks: usize,
    ) {
        let (probability, tokens) = total_probability(input, range.clone(), Affinity::Softmax);
        self.tokens += tokens;
        self.probability.iter_mut().zip(probability).for_each(|(sum, p)| *sum += p);
        for t in present(input, range) {
            plan.requested(t).take(ranks).for_each(|e| self.choices[e] += 1);
        }
    }

    fn balance(self) -> Balance {
        let n = self.tokens.max(1) as f64;
        Balance {
            tokens: self.tokens,
            f: self.choices.iter().map(|&c| c as f64 / n).collect(),
            p: self.probability.iter().map(|p| p / n).collect(),
        }
    }
}
