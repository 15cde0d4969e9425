//! The load-balancing loss `E Σ fₑ Pₑ` in its three scopes.

use std::borrow::Cow;
use std::ops::Range;

use moe_core::{Result, Routed};
use ndarray::Array2;

use super::groups::{Affinity, count, counted, mean, mean_by_tokens, pull_back, total_probability};
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
    layers: Vec<Routed<'a>>,
    scope: Scope,
    /// f of the global batch, `[E]`, if that counts.
    global: Option<Vec<f64>>,
    by_tokens: bool,
}

/// What a group is.
#[derive(Clone, Debug)]
enum Scope {
    /// All rows of all layers.
    All(Balance),
    /// Each sequence of the single layer, with so many choices a token. Of sequences there may be as many as tokens: nothing is kept
    /// of them.
    Sequences { ranks: usize },
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
            all.add(layer, 0..layer.input().tokens(), usize::MAX);
        }
        Self { layers: layers.to_vec(), scope: Scope::All(all.balance()), global: None, by_tokens: false }
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
        Self { layers: vec![*routed], scope: Scope::Sequences { ranks }, global: None, by_tokens: false }
    }

    /// The same with the mean over sequences weighted by their tokens, of which padding is none: a packed batch where every
    /// token counts alike.
    pub fn weighted_by_tokens(self) -> Self {
        Self { by_tokens: true, ..self }
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
    pub fn with_global_choices(self, choices: &[u64], tokens: u64) -> Self {
        let experts = self.layers.first().map_or(0, |layer| layer.input().experts());
        assert_eq!(experts, choices.len(), "a count of choices for each expert");
        let n = tokens.max(1) as f64;
        Self { global: Some(choices.iter().map(|&c| c as f64 / n).collect()), ..self }
    }

    /// The loss: the mean over the groups that have tokens, all alike unless weighted.
    pub fn value(&self) -> f64 {
        if self.by_tokens {
            return mean_by_tokens(self.groups().map(|g| (g.tokens, g.value())));
        }
        mean(self.groups().filter(|g| g.tokens > 0).map(|g| g.value()))
    }

    /// f and P of each group: of all rows, or of each sequence.
    pub fn groups(&self) -> impl Iterator<Item = Balance> {
        let (all, of_sequences, ranks) = match &self.scope {
            Scope::All(balance) => (Some(balance), None, 0),
            Scope::Sequences { ranks } => (None, self.layers.first(), *ranks),
        };
        let of_sequences = of_sequences.into_iter().flat_map(move |layer| {
            layer.input().sequences().map(move |range| {
                let mut sums = Sums::new(layer.input().experts());
                sums.add(layer, range, ranks);
                sums.balance()
            })
        });
        all.into_iter().cloned().chain(of_sequences).map(|balance| match &self.global {
            Some(f) => Balance { f: f.clone(), ..balance },
            None => balance,
        })
    }

    /// `∂value/∂logits` of each layer, `[T, E]`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`](moe_core::Error::OutOfMemory).
    pub fn gradients(&self) -> Result<Vec<Array2<f64>>> {
        self.layers.iter().map(|layer| self.gradient_of(layer)).collect()
    }

    fn gradient_of(&self, layer: &Routed<'_>) -> Result<Array2<f64>> {
        let input = layer.input();
        let slope = |f: &[f64], n: f64| {
            let scale = f.len() as f64 / n;
            self.global.as_deref().unwrap_or(f).iter().map(|f| scale * f).collect::<Cow<'_, [f64]>>()
        };
        let ranks = match &self.scope {
            Scope::All(balance) => {
                let range = 0..input.tokens();
                let slope = slope(&balance.f, balance.tokens as f64);
                return pull_back(&input, Affinity::Softmax, std::iter::once((range, slope)));
            }
            Scope::Sequences { ranks } => *ranks,
        };
        let (counted, all) = (counted(&input) as f64, count(&input, 0..input.tokens()) as f64);
        let slopes = input.sequences().filter_map(|range| {
            let tokens = count(&input, range.clone());
            let f = || shares(&choices(layer, range.clone(), ranks), tokens);
            let n = if self.by_tokens { all } else { tokens as f64 * counted };
            (tokens > 0).then(|| (range.clone(), slope(&f(), n)))
        });
        pull_back(&input, Affinity::Softmax, slopes)
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
    fn add(&mut self, layer: &Routed<'_>, range: Range<usize>, ranks: usize) {
        let (probability, tokens) = total_probability(&layer.input(), range.clone(), Affinity::Softmax);
        self.tokens += tokens;
        self.probability.iter_mut().zip(probability).for_each(|(sum, p)| *sum += p);
        self.choices.iter_mut().zip(choices(layer, range, ranks)).for_each(|(sum, c)| *sum += c);
    }

    fn balance(self) -> Balance {
        let n = self.tokens.max(1) as f64;
        let p = self.probability.iter().map(|p| p / n).collect();
        Balance { tokens: self.tokens, f: shares(&self.choices, self.tokens), p }
    }
}

/// How often each expert is among the first `ranks` choices of a range's tokens, `[E]`.
fn choices(layer: &Routed<'_>, range: Range<usize>, ranks: usize) -> Vec<usize> {
    let mut choices = vec![0; layer.input().experts()];
    for t in present(&layer.input(), range) {
        layer.plan.requested(t).take(ranks).for_each(|e| choices[e] += 1);
    }
    choices
}

fn shares(choices: &[usize], tokens: usize) -> Vec<f64> {
    let n = tokens.max(1) as f64;
    choices.iter().map(|&c| c as f64 / n).collect()
}
