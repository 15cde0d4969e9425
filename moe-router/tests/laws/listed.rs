//! The routers, what each promises, and inputs for them.

use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
use moe_router::{
    AdaptiveK, Base, Capacity, Capped, CappedExpertChoice, Dense, ExpertChoice, ExpertScales,
    ExpertThreshold, GumbelSecond, Hash, MappedLogits, Normalization, Perturbed, RandomChoice, RandomSecond,
    Relu, Renormalized, Rounding, ScoredHash, Sinkhorn, SkipLight, SparseMixer, TopK, TopP, WithoutNulls,
};
use ndarray::{Array2, ArrayView2, Axis};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::scored;

/// A router with its promises.
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) router: Box<dyn Router>,
    /// Choices that each token asks for; `None` where the experts choose.
    pub(crate) k: Option<usize>,
    /// Whether the weights of a token that got all its choices sum to 1.
    pub(crate) sums_to_one: bool,
    /// What the weights of a token sum to at most.
    pub(crate) most: f32,
    /// Whether weights are finite for all finite logits, even where every score is zero.
    pub(crate) guarded: bool,
    /// Whether all experts are treated alike, whatever their number.
    pub(crate) symmetric: bool,
    /// Whether the choice looks at scores computed from the logits, which may round to a tie.
    pub(crate) by_score: bool,
    pub(crate) capacity: Option<Capacity>,
}

impl Listed {
    /// Whether its number of choices, or its weights, follow none of the rules above.
    pub(crate) fn varies(&self) -> bool {
        self.k.is_none() && self.capacity.is_none()
    }
}

/// Routers that promise nothing of the number of choices, nor of sums and symmetries.
fn varying(experts: usize) -> Vec<Listed> {
    let k = 2.min(experts);
    let all = || top(k).normalized(Normalization::OverAll);
    let cap = Capacity::absolute(2);
    let thresholds = (0..experts).map(|e| 0.3 + 0.05 * e as f32).collect();
    let scales: Vec<f32> = (0..experts).map(|e| 0.5 + 0.25 * e as f32).collect();
    let off: Vec<u32> = (1..experts as u32).step_by(3).collect();
    let mut list: Vec<(&str, Box<dyn Router>)> = vec![
        ("scaled logits", Box::new(MappedLogits::scaled(top(k), 0.5).unwrap())),
        ("soft-capped", Box::new(MappedLogits::soft_capped(all(), 3.0).unwrap())),
        ("steered", Box::new(MappedLogits::steered(top(k), [0], off).unwrap())),
        ("expert scales", Box::new(ExpertScales::new(all(), scales).unwrap())),
        ("noisy", Box::new(Perturbed::gaussian(top(k), 0.5).unwrap())),
        ("jitter", Box::new(Perturbed::jitter(all(), 0.1).unwrap())),
        ("noisy second", Box::new(Perturbed::gaussian(RandomSecond::new(top(k)), 1.0).unwrap())),
        ("random second", Box::new(RandomSecond::new(Renormalized::new(all())))),
        ("skip by ratio", Box::new(SkipLight::by_ratio(top(k), 0.5).unwrap())),
        ("skip by weight", Box::new(SkipLight::by_weight(top(k), 0.2).unwrap())),
        ("without nulls", Box::new(Renormalized::new(WithoutNulls::new(top(k), experts.div_ceil(2))))),
        ("gumbel second", Box::new(GumbelSecond::new())),
        ("adaptive k", Box::new(AdaptiveK::new([1, 2, 4], [0.6, 1.2]).unwrap())),
        ("top-p", Box::new(TopP::new(0.7).unwrap())),
        ("relu", Box::new(Relu::new())),
        ("threshold", Box::new(ExpertThreshold::new(thresholds).unwrap())),
        ("dense", Box::new(Dense::new())),
        ("hash", Box::new(Hash::new(3))),
        ("scored hash", Box::new(ScoredHash::deepseek_v4(k, 1.5).unwrap().seeded(3))),
        ("random", Box::new(RandomChoice::new(k).unwrap())),
        ("base", Box::new(Base::new())),
        ("sinkhorn", Box::new(Sinkhorn::new(k).unwrap())),
        ("choice capped by token", Box::new(CappedExpertChoice::new(cap, experts).unwrap())),
    ];
    if experts >= 2 {
        list.push(("sparse mixer", Box::new(SparseMixer::new(0.1).unwrap())));
        list.push(("sparse mixer sampling", Box::new(SparseMixer::new(0.1).unwrap().sampling())));
    }
    let listed = |(name, router): (&str, _)| Listed {
        name: name.into(),
        router,
        k: None,
        sums_to_one: false,
        most: f32::INFINITY,
        guarded: true,
        symmetric: false,
        by_score: true,
        capacity: None,
    };
    list.into_iter().map(listed).collect()
}

/// Every strategy and decorator, for layers of `experts`.
pub(crate) fn routers(experts: usize) -> Vec<Listed> {
    let mut list = vec![];
    let mut ks = vec![1, 2.min(experts), experts];
    ks.dedup();
    for k in ks {
        for n in [Normalization::OverChosen, Normalization::OverAll, Normalization::OverAllRenormalized] {
            list.push(Listed {
                name: format!("top-{k} {n:?}"),
                router: Box::new(top(k).normalized(n)),
                k: Some(k),
                sums_to_one: n != Normalization::OverAll || k == experts,
                most: 1.0,
                guarded: true,
                symmetric: true,
                by_score: false,
                capacity: None,
            });
        }
    }
    let k = 2.min(experts);
    let capacities = [
        Capacity::absolute(2),
        Capacity::factor_of_tokens(1.0).rounded(Rounding::HalfEven).at_least(1),
        Capacity::factor_of_choices(0.75).rounded(Rounding::Down).at_least(1).multiple_of(2),
    ];
    for capacity in capacities {
        let rank_by_rank = || Capped::new(top(k), capacity).unwrap();
        let variants: [(&str, bool, Box<dyn Router>); 7] = [
            ("by position", false, Box::new(rank_by_rank())),
            ("by score", true, Box::new(rank_by_rank().by_score())),
            ("token by token", false, Box::new(rank_by_rank().token_by_token())),
            ("token by token by score", true, Box::new(rank_by_rank().token_by_token().by_score())),
            ("by own score", true, Box::new(rank_by_rank().by_own_score())),
            ("at random", false, Box::new(rank_by_rank().at_random())),
            ("renormalized", false, Box::new(Renormalized::new(rank_by_rank()))),
        ];
        list.extend(variants.into_iter().map(|(name, by_score, router)| Listed {
            name: format!("top-{k} capped {name}, {capacity:?}"),
            router,
            k: Some(k),
            sums_to_one: true,
            most: 1.0,
            guarded: true,
            symmetric: true,
            by_score,
            capacity: Some(capacity),
        }));
        let variants: [(&str, Box<dyn Router>); 3] = [
            ("by position", Box::new(rank_by_rank().rerouting())),
            ("by score", Box::new(rank_by_rank().by_score().rerouting())),
            ("token by token", Box::new(rank_by_rank().token_by_token().rerouting())),
        ];
        list.extend(variants.into_iter().map(|(name, router)| Listed {
            name: format!("top-{k} rerouted {name}, {capacity:?}"),
            router,
            k: Some(k),
            sums_to_one: false,
            most: 1.0,
            guarded: true,
            symmetric: true,
            by_score: true,
            capacity: Some(capacity),
        }));
        list.push(Listed {
            name: format!("expert choice, {capacity:?}"),
            router: Box::new(ExpertChoice::new(capacity).unwrap()),
            k: None,
            sums_to_one: false,
            most: experts as f32,
            guarded: true,
            symmetric: true,
            by_score: true,
            capacity: Some(capacity),
        });
    }
    list.extend(varying(experts));
    list.extend(scored::routers(experts));
    list
}

fn top(k: usize) -> TopK {
    TopK::new(k).unwrap()
}

/// A vocabulary id for each token: a function of its logits, so that it goes where they go.
pub(crate) fn words(logits: ArrayView2<'_, f32>) -> Vec<u32> {
    let word = |row: ndarray::ArrayView1<'_, f32>| {
        row.iter().fold(0u32, |word, l| word.rotate_left(5).wrapping_mul(31) ^ (l + 0.0).to_bits())
    };
    logits.rows().into_iter().map(word).collect()
}

/// A sealed plan of one call.
pub(crate) fn route(
    router: &dyn Router,
    logits: ArrayView2<'_, f32>,
    context: TokenContext<'_>,
) -> RoutingPlan {
    let mut out = Assignments::new();
    let words = words(logits);
    let context = context.with_token_ids(&words);
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    router.route(&RouteInput::new(logits, context).unwrap(), &mut out).unwrap();
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    plan
}

/// One decision about a token: rank, expert, and the bits of the weight unless refused.
pub(crate) type Decision = (usize, usize, Option<u32>);

/// What was decided about token `t`, by rank.
pub(crate) fn decisions(plan: &RoutingPlan, t: usize) -> Vec<Decision> {
    let mut all: Vec<Decision> =
        plan.choices(t).map(|c| (c.rank, c.expert, Some(c.weight.to_bits()))).collect();
    let refused = plan.refused().iter().filter(|r| r.token as usize == t);
    all.extend(refused.map(|r| (r.rank as usize, r.expert as usize, None)));
    all.sort_unstable();
    all
}

/// A batch of sequences with padding among them.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) logits: Array2<f32>,
    pub(crate) offsets: Vec<usize>,
    pub(crate) padding: Vec<bool>,
}

impl Batch {
    /// The routers that promise something about such a batch.
    pub(crate) fn routers(&self) -> Vec<Listed> {
        // The sigmoid of -88 is the last that is not zero.
        let mild = self.logits.iter().all(|l| l.abs() < 80.0);
        routers(self.experts()).into_iter().filter(|listed| listed.guarded || mild).collect()
    }

    pub(crate) fn tokens(&self) -> usize {
        self.logits.nrows()
    }

    pub(crate) fn experts(&self) -> usize {
        self.logits.ncols()
    }

    pub(crate) fn unpadded(&self) -> TokenContext<'_> {
        TokenContext::new().with_sequences(&self.offsets)
    }

    pub(crate) fn padded(&self) -> TokenContext<'_> {
        self.unpadded().with_padding(&self.padding)
    }

    pub(crate) fn sequences(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    /// The tokens chosen, in this order, as one sequence.
    pub(crate) fn select(&self, tokens: &[usize]) -> Array2<f32> {
        self.logits.select(Axis(0), tokens)
    }
}

/// Logits of one kind in a batch: ordinary, with many ties, or far apart.
fn logit() -> impl Strategy<Value = BoxedStrategy<f32>> {
    prop_oneof![
        4 => Just((-4.0f32..4.0).boxed()),
        2 => Just((-1i8..=1).prop_map(f32::from).boxed()),
        1 => Just((-1e4f32..1e4).boxed()),
        1 => Just(proptest::num::f32::SUBNORMAL.boxed()),
    ]
}

/// Batches of up to 24 tokens in up to three sequences, empty ones included, over 1 to 12 experts.
pub(crate) fn batches() -> impl Strategy<Value = Batch> {
    (0usize..=24, 1usize..=12, logit()).prop_flat_map(|(tokens, experts, logit)| {
        let logits = proptest::collection::vec(logit, tokens * experts);
        let cuts = [0..=tokens, 0..=tokens];
        let padding = proptest::collection::vec(proptest::bool::weighted(0.2), tokens);
        (logits, cuts, padding).prop_map(move |(logits, mut cuts, padding)| {
            cuts.sort_unstable();
            Batch {
                logits: Array2::from_shape_vec((tokens, experts), logits).unwrap(),
                offsets: vec![0, cuts[0], cuts[1], tokens],
                padding,
            }
        })
    })
}

/// The same cases in every run.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 400,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..Default::default()
    }
}
