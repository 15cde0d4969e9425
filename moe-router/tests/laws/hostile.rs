//! Routers that do what no router should, under every decorator: an error or a plan that holds what plans promise, never a panic.

use moe_core::{
    Assignments, Locality, PerSequence, Result, RouteInput, Router, RoutingPlan, TokenContext, Verdict,
};
use moe_router::{
    Capacity, Capped, ExpertScales, MappedLogits, Perturbed, RandomSecond, Renormalized, SkipLight,
    WithoutNulls,
};
use ndarray::Array2;
use proptest::prelude::*;
use proptest::sample::select;

use crate::listed::config;

/// One thing that a router does.
#[derive(Clone, Debug)]
enum Deed {
    Assign(usize, usize, f32),
    Refuse(usize, usize),
    /// Begins another batch.
    Reset(usize, usize),
    /// As if the batch were part of a larger one.
    From(usize, usize, usize),
    /// Rewrites a pair that it has pushed.
    Rewrite(u32, u32, f32, Verdict),
    /// Lends memory to itself, and leaves it in disorder.
    Scribble(usize),
    /// Reviews what is not there yet.
    ReviewLater,
}

#[derive(Clone, Debug)]
struct Hostile {
    deeds: Vec<Deed>,
    locality: Locality,
    scores: f32,
}

impl Router for Hostile {
    fn route(&self, _: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let mark = out.mark();
        for deed in &self.deeds {
            match *deed {
                Deed::Assign(token, expert, weight) => out.assign(token, expert, weight),
                Deed::Refuse(token, expert) => out.refuse(token, expert),
                Deed::Reset(tokens, experts) => out.reset(tokens, experts)?,
                Deed::From(first, token, expert) => {
                    out.with_first_token(first, |out| out.assign(token, expert, 1.0))
                }
                Deed::Rewrite(token, expert, weight, verdict) => out.review(mark, |review| {
                    review.order.reverse();
                    review.load.fill(u32::MAX);
                    if let (Some(pair), Some(to)) = (review.pairs.last_mut(), review.verdicts.last_mut()) {
                        (pair.token, pair.expert, pair.weight, *to) = (token, expert, weight, verdict);
                        (pair.rank, pair.requested) = (token, expert);
                    }
                })?,
                Deed::Scribble(n) => out.with_scratch(|out, scratch| {
                    scratch.values = vec![f32::NAN; n];
                    scratch.keys = vec![u64::MAX; n];
                    out.assign(0, 0, 0.5);
                }),
                Deed::ReviewLater => {
                    let later = {
                        out.assign(0, 1, 0.5);
                        out.mark()
                    };
                    out.reset(out.tokens(), out.experts())?;
                    out.review(later, |review| review.verdicts.fill(Verdict::Refuse))?;
                }
            }
        }
        Ok(())
    }

    fn locality(&self) -> Locality {
        self.locality
    }

    fn scores(&self, _: &TokenContext<'_>, mut logits: ndarray::ArrayViewMut2<'_, f32>) {
        logits.fill(self.scores);
    }
}

fn index() -> impl Strategy<Value = usize> {
    prop_oneof![60 => 0usize..6, 1 => 6usize..9, 1 => select(vec![1 << 31, u32::MAX as usize, usize::MAX])]
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![
        5 => -1.0f32..1.0,
        1 => select(vec![0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45]),
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    let verdicts = select(vec![Verdict::Keep, Verdict::Refuse, Verdict::Forget]);
    let any_u32 = || prop_oneof![3 => 0u32..9, 1 => Just(u32::MAX)];
    prop_oneof![
        12 => (index(), index(), weight()).prop_map(|(t, e, w)| Deed::Assign(t, e, w)),
        3 => (index(), index()).prop_map(|(t, e)| Deed::Refuse(t, e)),
        1 => (0usize..9, 0usize..9).prop_map(|(t, e)| Deed::Reset(t, e)),
        1 => Just(Deed::Reset(usize::MAX, 1)),
        1 => (index(), index(), index()).prop_map(|(n, t, e)| Deed::From(n, t, e)),
        2 => (any_u32(), any_u32(), weight(), verdicts).prop_map(|(t, e, w, v)| Deed::Rewrite(t, e, w, v)),
        1 => (0usize..99).prop_map(Deed::Scribble),
        1 => Just(Deed::ReviewLater),
    ]
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let localities = select(vec![Locality::Token, Locality::Causal, Locality::Batch]);
    (proptest::collection::vec(deed(), 0..14), localities, weight())
        .prop_map(|(deeds, locality, scores)| Hostile { deeds, locality, scores })
}

/// The router under one decorator after the other.
fn decorated(router: Box<dyn Router>, layers: &[usize]) -> Box<dyn Router> {
    layers.iter().fold(router, |inner, layer| -> Box<dyn Router> {
        let capped = |inner| Capped::new(inner, Capacity::absolute(2)).unwrap();
        match layer {
            0 => Box::new(Renormalized::new(inner)),
            1 => Box::new(capped(inner)),
            2 => Box::new(capped(inner).by_score()),
            3 => Box::new(capped(inner).rerouting()),
            4 => Box::new(capped(inner).by_score().rerouting().over_call()),
            5 => Box::new(Perturbed::gaussian(inner, 0.5).unwrap()),
            6 => Box::new(RandomSecond::new(inner)),
            7 => Box::new(SkipLight::by_ratio(inner, 0.5).unwrap()),
            8 => Box::new(WithoutNulls::new(inner, 3)),
            9 => Box::new(MappedLogits::scaled(inner, 0.5).unwrap()),
            _ => Box::new(ExpertScales::new(inner, [0.5; 6]).unwrap()),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..config() })]

    #[test]
    fn an_error_or_a_plan(
        routers in proptest::collection::vec((hostile(), proptest::collection::vec(0usize..11, 0..4)), 1..3),
        padded in any::<bool>(),
        by_sequence in any::<bool>(),
    ) {
        let (tokens, experts) = (6, 6);
        let logits = Array2::from_shape_fn((tokens, experts), |(t, e)| ((t * 5 + e * 3) % 7) as f32 - 3.0);
        let padding = [padded, false, padded, false, false, padded];
        let offsets = [0, 2, tokens];
        let context = TokenContext::new().with_padding(&padding).with_sequences(&offsets);
        let input = RouteInput::new(logits.view(), context).unwrap();
        let routers: Vec<_> = routers.into_iter().map(|(hostile, layers)| decorated(Box::new(hostile), &layers)).collect();
        let all: Vec<&dyn Router> = (0..2).map(|i| &*routers[i % routers.len()]).collect();
        let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
        out.reset(tokens, experts).unwrap();
        let routed = if by_sequence { PerSequence::of(&all).route(&input, &mut out) } else { all[0].route(&input, &mut out) };
        if routed.and_then(|()| plan.seal(&out)).is_err() {
            return Ok(());
        }
        prop_assert_eq!(plan.row_weights().len(), plan.rows());
        prop_assert!(plan.row_weights().iter().all(|w| w.is_finite()));
        let mut rows = 0;
        for t in 0..plan.tokens() {
            let mut chosen: Vec<_> = plan.choices(t).map(|choice| choice.expert).collect();
            rows += chosen.len();
            prop_assert!(plan.requested(t).count() >= chosen.len());
            prop_assert!(plan.requested(t).chain(chosen.iter().copied()).all(|e| e < plan.experts()));
            chosen.sort_unstable();
            prop_assert!(chosen.is_sorted_by(|a, b| a < b), "none twice");
        }
        prop_assert_eq!(rows, plan.rows());
        let _ = plan.stats();
    }
}
