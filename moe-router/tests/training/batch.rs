//! Batches with choices.

use moe_core::{Assignments, RouteInput, Routed, RoutingPlan, TokenContext};
use ndarray::{Array2, Axis};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Logits, sequences, padding, and the choices of each token, some of them refused.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) logits: Array2<f32>,
    pub(crate) offsets: Vec<usize>,
    pub(crate) padding: Vec<bool>,
    /// Experts by rank, and whether they were granted.
    pub(crate) choices: Vec<Vec<(usize, bool)>>,
}

impl Batch {
    /// One sequence without padding, everything granted.
    pub(crate) fn plain(logits: Array2<f32>, choices: &[&[usize]]) -> Self {
        let tokens = logits.nrows();
        Self {
            logits,
            offsets: vec![0, tokens],
            padding: vec![false; tokens],
            choices: choices.iter().map(|list| list.iter().map(|&e| (e, true)).collect()).collect(),
        }
    }

    pub(crate) fn context(&self) -> TokenContext<'_> {
        TokenContext::new().with_sequences(&self.offsets).with_padding(&self.padding)
    }

    pub(crate) fn input(&self) -> RouteInput<'_> {
        RouteInput::new(self.logits.view(), self.context()).unwrap()
    }

    pub(crate) fn plan(&self) -> RoutingPlan {
        let mut out = Assignments::new();
        out.reset(self.logits.nrows(), self.logits.ncols()).unwrap();
        for (t, list) in self.choices.iter().enumerate() {
            for &(e, granted) in list {
                if granted { out.assign(t, e, 0.5) } else { out.refuse(t, e) }
            }
        }
        let mut plan = RoutingPlan::new();
        plan.seal(&out).unwrap();
        plan
    }

    pub(crate) fn routed<'a>(&'a self, plan: &'a RoutingPlan) -> Routed<'a> {
        Routed::new(self.logits.view(), plan, self.context()).unwrap()
    }

    pub(crate) fn present(&self) -> usize {
        self.padding.iter().filter(|p| !**p).count()
    }

    /// The same without its padding tokens.
    pub(crate) fn without_padding(&self) -> Self {
        let kept: Vec<usize> = (0..self.padding.len()).filter(|&t| !self.padding[t]).collect();
        let before = |end: usize| kept.iter().filter(|&&t| t < end).count();
        Self {
            logits: self.logits.select(Axis(0), &kept),
            offsets: self.offsets.iter().map(|&o| before(o)).collect(),
            padding: vec![false; kept.len()],
            choices: kept.iter().map(|&t| self.choices[t].clone()).collect(),
        }
    }

    /// The same with the tokens of each sequence in reverse order.
    pub(crate) fn reversed(&self) -> Self {
        let order: Vec<usize> = self.offsets.windows(2).flat_map(|w| (w[0]..w[1]).rev()).collect();
        Self {
            logits: self.logits.select(Axis(0), &order),
            offsets: self.offsets.clone(),
            padding: order.iter().map(|&t| self.padding[t]).collect(),
            choices: order.iter().map(|&t| self.choices[t].clone()).collect(),
        }
    }

    /// The same with expert e called `names[e]`.
    pub(crate) fn renamed(&self, names: &[usize]) -> Self {
        let mut logits = self.logits.clone();
        for ((t, e), l) in self.logits.indexed_iter() {
            logits[[t, names[e]]] = *l;
        }
        let rename =
            |list: &Vec<(usize, bool)>| list.iter().map(|&(e, granted)| (names[e], granted)).collect();
        Self { logits, choices: self.choices.iter().map(rename).collect(), ..self.clone() }
    }
}

/// Steps of the grid that logits lie on, so that a step of the grid is exact in f32.
pub(crate) const STEP: f32 = 1.0 / 256.0;

/// Up to 14 tokens in up to 3 sequences over 2 to 7 experts, each with up to E choices.
pub(crate) fn batches() -> impl Strategy<Value = Batch> {
    (1usize..=14, 2usize..=7).prop_flat_map(|(tokens, experts)| {
        let logits =
            proptest::collection::vec((-1024i32..1024).prop_map(|n| n as f32 * STEP), tokens * experts);
        let cuts = [0..=tokens, 0..=tokens];
        let padding = proptest::collection::vec(proptest::bool::weighted(0.25), tokens);
        let order = Just((0..experts).collect::<Vec<_>>()).prop_shuffle();
        let of_token =
            (order, 0..=experts, proptest::collection::vec(proptest::bool::weighted(0.8), experts));
        let of_token = of_token
            .prop_map(|(order, k, granted)| order.into_iter().zip(granted).take(k).collect::<Vec<_>>());
        let choices = proptest::collection::vec(of_token, tokens);
        (logits, cuts, padding, choices).prop_map(move |(logits, mut cuts, padding, choices)| {
            cuts.sort_unstable();
            let logits = Array2::from_shape_vec((tokens, experts), logits).unwrap();
            Batch { logits, offsets: vec![0, cuts[0], cuts[1], tokens], padding, choices }
        })
    })
}

/// The same cases in every run.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 100,
        rng_seed: RngSeed::Fixed(11),
        failure_persistence: None,
        ..Default::default()
    }
}
