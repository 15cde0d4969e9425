//! What single routers promise beyond the laws of all.

use moe_core::{Assignments, PerSequence, RouteInput, Router, RoutingPlan, TokenContext, TokenRows};
use moe_router::{
    Base, Capacity, Capped, CappedExpertChoice, ExpertThreshold, Hash, Normalization, Perturbed,
    RandomChoice, RandomSecond, Relu, Renormalized, Sinkhorn, SkipLight, SparseMixer, ThresholdEma, TopK,
    TopP, WithoutNulls,
};
use ndarray::{Array2, ArrayView2, Axis, array};
use proptest::prelude::*;

use crate::listed::{batches, config, route};

pub(crate) fn chosen(plan: &RoutingPlan, t: usize) -> Vec<usize> {
    plan.choices(t).map(|c| c.expert).collect()
}

/// Irregular numbers between -2 and 2.
pub(crate) fn irregular(tokens: usize, experts: usize, seed: u32) -> Array2<f32> {
    Array2::from_shape_fn((tokens, experts), |(t, e)| {
        let mixed = (t as u32 * 8191 + e as u32 * 131 + seed).wrapping_mul(2_654_435_761);
        ((mixed ^ mixed >> 15).wrapping_mul(2_246_822_519) >> 8) as f32 / 4_194_304.0 - 2.0
    })
}

fn error(router: &dyn Router, logits: ArrayView2<'_, f32>, context: TokenContext<'_>) -> String {
    let mut out = Assignments::new();
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    router.route(&RouteInput::new(logits, context).unwrap(), &mut out).unwrap_err().to_string()
}

proptest! {
    #![proptest_config(config())]

    /// Rerouting fills what is free, asks for what the inner router asked for, and gives no token an expert twice.
    #[test]
    fn rerouting_refuses_only_where_all_is_full(batch in batches(), places in 1usize..4) {
        let capacity = Capacity::absolute(places);
        for k in [1, 2.min(batch.experts())] {
            let inner = TopK::new(k).unwrap().normalized(Normalization::OverAll);
            let router = Capped::new(inner, capacity).unwrap().rerouting();
            let asked = route(&inner, batch.logits.view(), batch.unpadded());
            for router in [router, router.by_score(), router.token_by_token()] {
                let plan = route(&router, batch.logits.view(), batch.unpadded());
                prop_assert_eq!(plan.rows() + plan.refused().len(), asked.rows());
                prop_assert_eq!(&plan.stats().requested_load, &asked.stats().load);
                prop_assert_eq!(plan.stats().rerouted, plan.row_requested().iter().zip(plan.row_experts()).filter(|(a, e)| a != e).count());
                if k == 1 {
                    let room = batch.experts() * places;
                    let rows: usize = batch.sequences().map(|s| s.len().min(room)).sum();
                    prop_assert_eq!(plan.rows(), rows);
                }
                for t in 0..batch.tokens() {
                    let all: Vec<_> = asked.choices(t).collect();
                    for c in plan.choices(t) {
                        prop_assert_eq!(c.instead_of.unwrap_or(c.expert), all[c.rank].expert);
                        prop_assert!(c.instead_of.is_some() || c.weight == all[c.rank].weight);
                    }
                }
            }
        }
    }

    #[test]
    fn base_is_even(batch in batches()) {
        let plan = route(&Base::new(), batch.logits.view(), batch.padded());
        for tokens in batch.sequences() {
            let present = tokens.clone().filter(|&t| !batch.padding[t]).count();
            for e in 0..batch.experts() {
                let rows = &plan.row_tokens()[plan.expert_rows(e)];
                let load = rows.iter().filter(|&&t| tokens.contains(&(t as usize))).count();
                let (least, most) = (present / batch.experts(), present.div_ceil(batch.experts()));
                prop_assert!((least..=most).contains(&load), "expert {e}: {load}, {least} to {most}");
            }
        }
    }

    #[test]
    fn capped_choice_fills_its_experts(batch in batches(), places in 1usize..6) {
        let router = CappedExpertChoice::new(Capacity::absolute(places), batch.experts()).unwrap();
        let plan = route(&router, batch.logits.view(), batch.padded());
        let present = |s: std::ops::Range<usize>| s.filter(|&t| !batch.padding[t]).count();
        let filled: usize = batch.sequences().map(|s| present(s).min(places)).sum();
        for e in 0..batch.experts() {
            prop_assert_eq!(plan.expert_rows(e).len(), filled);
        }
    }
}

#[test]
fn rerouting_by_hand() {
    let logits = array![[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0]];
    let top = TopK::new(1).unwrap().normalized(Normalization::OverAll);
    let plan = route(
        &Capped::new(top, Capacity::absolute(1)).unwrap().rerouting(),
        logits.view(),
        TokenContext::new(),
    );
    assert_eq!((0..4).map(|t| chosen(&plan, t)).collect::<Vec<_>>(), [vec![0], vec![1], vec![2], vec![]]);
    let all =
        route(&TopK::new(3).unwrap().normalized(Normalization::OverAll), logits.view(), TokenContext::new());
    let own = all.choices(1).nth(1).unwrap();
    let got = plan.choices(1).next().unwrap();
    assert_eq!((got.expert, got.instead_of), (own.expert, Some(0)));
    assert!((got.weight - own.weight).abs() < 1e-7, "the weight that the other expert would have had");
    assert_eq!((plan.refused()[0].token, plan.refused()[0].expert), (3, 0));
    let stats = plan.stats();
    assert_eq!((stats.load, stats.requested_load, stats.rerouted), (vec![1, 1, 1], vec![4, 0, 0], 2));

    // What a second cap turns away is refused as what it asked for.
    let wide = Capped::new(top, Capacity::absolute(2)).unwrap().rerouting();
    let stacked = Capped::new(wide, Capacity::absolute(1)).unwrap();
    let alike = Array2::from_shape_fn((4, 3), |(_, e)| -(e as f32));
    let stats = route(&stacked, alike.view(), TokenContext::new()).stats();
    assert_eq!((stats.load, stats.requested_load), (vec![1, 1, 0], vec![4, 0, 0]));
}

#[test]
fn second_choices() {
    // Renormalised weights 0.75 and 0.25: the second is kept where u < 1/2.
    let logits = array![[3f32.ln(), 0.0, -50.0], [3f32.ln(), 0.0, -50.0]];
    let two = TopK::new(2).unwrap();
    let u = [0.99, 0.49, 0.0, 0.99, 0.51, 0.0];
    let context = TokenContext::new().with_noise(TokenRows::new(&u, 3).unwrap());
    let plan = route(&RandomSecond::new(two), logits.view(), context);
    assert_eq!([chosen(&plan, 0), chosen(&plan, 1)], [vec![0, 1], vec![0]]);
    assert!((plan.choices(1).next().unwrap().weight - 0.75).abs() < 1e-6, "the first keeps its weight");
    assert!(plan.refused().is_empty());

    // Drawn: 2 · 0.25 of them, within 5 standard errors.
    let many = Array2::from_shape_fn((4000, 3), |(_, e)| logits[[0, e]]);
    let kept = route(&RandomSecond::new(two), many.view(), TokenContext::new()).rows() - 4000;
    assert!((kept as f64 - 2000.0).abs() < 5.0 * 1000f64.sqrt(), "{kept}");
    let sure = RandomSecond::new(two).with_threshold(0.2).unwrap();
    assert_eq!(route(&sure, many.view(), TokenContext::new()).rows(), 8000);

    let count = |router: &dyn Router| route(router, logits.view(), TokenContext::new()).choices(0).len();
    assert_eq!(count(&SkipLight::by_ratio(two, 0.33).unwrap()), 2);
    assert_eq!(count(&SkipLight::by_ratio(two, 0.34).unwrap()), 1);
    assert_eq!(count(&SkipLight::by_ratio(two, 0.34).unwrap().keeping(2)), 2);
    assert_eq!(count(&SkipLight::by_weight(two, 0.24).unwrap()), 2);
    assert_eq!(count(&SkipLight::by_weight(two, 0.26).unwrap()), 1);
    assert_eq!(count(&SkipLight::by_weight(two, 0.9).unwrap()), 1, "the first stays");

    let true_ones = Renormalized::new(WithoutNulls::new(two, 1));
    let plan = route(&true_ones, logits.view(), TokenContext::new());
    assert_eq!((chosen(&plan, 0), plan.row_weights(), plan.refused().len()), (vec![0], &[1.0, 1.0][..], 0));
}

/// ReLU's weights are the logits, so that θ·u can be met exactly.
#[test]
fn a_second_choice_has_to_be_above_its_draw() {
    let logits = array![[0.25f32, 0.125], [0.25, 0.125], [0.25, 0.125]];
    let u = [0.9, 0.25, 0.9, 0.25 - f32::EPSILON, 0.9, 0.9];
    let context = TokenContext::new().with_noise(TokenRows::new(&u, 2).unwrap());
    let plan = route(&RandomSecond::new(Relu::new()), logits.view(), context);
    // The first choice stays, whatever was drawn for it.
    assert_eq!([chosen(&plan, 0), chosen(&plan, 1), chosen(&plan, 2)], [vec![0], vec![0, 1], vec![0]]);

    // Given draws are used up: the router inside draws its own.
    let inner = Perturbed::gaussian(Relu::new(), 0.01).unwrap();
    let drawn = route(&inner, logits.view(), TokenContext::new());
    let outer = route(&RandomSecond::new(inner), logits.view(), context);
    for t in 0..3 {
        assert_eq!(outer.choices(t).next().unwrap().weight, drawn.choices(t).next().unwrap().weight);
    }
}

/// Given noise is used up by the outermost router that takes it, in scores as in choices.
#[test]
fn given_noise_is_used_once() {
    let logits = irregular(4, 3, 7);
    let inner = Perturbed::gaussian(Relu::new(), 0.5).unwrap();
    // No noise of its own, whatever it is given.
    let outer = Perturbed::gaussian(inner, 0.0).unwrap();
    let noise = [5.0; 12];
    let given = TokenContext::new().with_noise(TokenRows::new(&noise, 3).unwrap());
    let plan = |router: &dyn Router, context| {
        let plan = route(router, logits.view(), context);
        (0..4)
            .flat_map(|t| plan.choices(t).map(move |c| (t, c.expert, c.weight)).collect::<Vec<_>>())
            .collect()
    };
    let scores = |router: &dyn Router, context| {
        let mut scores = logits.clone();
        router.scores(&context, scores.view_mut());
        scores
    };
    let expected: Vec<_> = plan(&inner, TokenContext::new());
    assert_eq!(plan(&outer, given), expected);
    assert_ne!(plan(&inner, given), expected);
    assert_eq!(scores(&outer, given), scores(&inner, TokenContext::new()));
    assert_ne!(scores(&inner, given), scores(&inner, TokenContext::new()));
    // Every choice of ReLU weighs its score.
    let scores = scores(&outer, given);
    assert!(expected.iter().all(|&(t, e, w)| scores[[t, e]] == w));
}

/// The scores of a sequence are those of its own router on it alone.
#[test]
fn each_sequence_has_its_own_scores() {
    let logits = irregular(7, 3, 3);
    let (offsets, ids, positions) = ([0, 2, 2, 7], [4, 5, 6], [8, 9, 0, 1, 2, 3, 4]);
    let context = TokenContext::new().with_sequences(&offsets).with_sequence_ids(&ids);
    let context = context.with_positions(&positions);
    let top = TopK::new(1).unwrap();
    let noisy = Perturbed::gaussian(Relu::new(), 1.0).unwrap();
    let mut found = logits.clone();
    PerSequence::of(&[&top, &top, &noisy]).scores(&context, found.view_mut());
    let mut expected = logits.clone();
    top.scores(&TokenContext::new(), expected.slice_axis_mut(Axis(0), (..2).into()));
    let last = TokenContext::new().with_sequence_ids(&ids[2..]).with_positions(&positions[2..]);
    noisy.scores(&last, expected.slice_axis_mut(Axis(0), (2..).into()));
    assert_eq!(found, expected);
}

#[test]
fn as_many_as_needed() {
    // Probabilities 0.5, 0.3, 0.2.
    let logits = array![[0.2f32.ln(), 0.5f32.ln(), 0.3f32.ln()]];
    for (p, experts) in [(0.49, vec![1]), (0.51, vec![1, 2]), (0.79, vec![1, 2]), (0.81, vec![1, 2, 0])] {
        let plan = route(&TopP::new(p).unwrap(), logits.view(), TokenContext::new());
        assert_eq!(chosen(&plan, 0), experts, "{p}");
        assert!((plan.row_weights()[plan.choices(0).next().unwrap().row] - 0.5).abs() < 1e-6);
    }
    let plan = route(&TopP::new(1.0).unwrap(), array![[9.0, 0.0]].view(), TokenContext::new());
    assert_eq!(plan.rows(), 2);

    let plan = route(&Relu::new(), array![[-1.0, 2.0, 0.0, 3.0]].view(), TokenContext::new());
    assert_eq!(plan.choices(0).map(|c| (c.expert, c.weight)).collect::<Vec<_>>(), [(3, 3.0), (1, 2.0)]);
    assert!(TopP::new(0.0).is_err() && TopP::new(1.1).is_err() && TopP::new(f32::NAN).is_err());
}

#[test]
fn thresholds_follow_the_batches() {
    let mut state = ThresholdEma::new(1.0, 0.5).unwrap();
    assert!(state.router().is_none());
    // Two experts, four tokens, one expert a token: the second best of each.
    let first = array![[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0]];
    state.update(first.view()).unwrap();
    let plan = route(&state.router().unwrap(), first.view(), TokenContext::new());
    assert_eq!((0..4).map(|t| chosen(&plan, t)).collect::<Vec<_>>(), [vec![1], vec![], vec![], vec![0]]);
    // The average of logits 2 and 3 with 0, twice as heavy: the earlier batch weighs half of the later one.
    state.update(Array2::zeros((4, 2)).view()).unwrap();
    for (e, c) in [2.0 / 3.0, 1.0].into_iter().enumerate() {
        let probe = Array2::from_shape_fn((2, 2), |(t, i)| if i == e { c + [1e-4, -1e-4][t] } else { -9.0 });
        let plan = route(&state.router().unwrap(), probe.view(), TokenContext::new());
        assert_eq!([chosen(&plan, 0), chosen(&plan, 1)], [vec![e], vec![]]);
    }
    // Seven tokens of two experts: three and a half each, rounded down.
    let mut state = ThresholdEma::new(1.0, 0.5).unwrap();
    let seven = Array2::from_shape_fn((7, 2), |(t, _)| t as f32);
    state.update(seven.view()).unwrap();
    let plan = route(&state.router().unwrap(), seven.view(), TokenContext::new());
    assert_eq!((0..7).map(|t| chosen(&plan, t).len()).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 2, 2]);
    assert!(state.update(Array2::zeros((4, 3)).view()).is_err());
    for wrong in [f32::NAN, f32::NEG_INFINITY] {
        let before = state.clone();
        assert!(state.update(Array2::from_elem((1, 2), wrong).view()).is_err());
        assert_eq!(state.router(), before.router());
    }
    assert!(ThresholdEma::new(0.0, 0.5).is_err() && ThresholdEma::new(1.0, 1.0).is_err());
    assert!(ExpertThreshold::new(vec![f32::NAN]).is_err());
    let one = ExpertThreshold::new(vec![0.5]).unwrap();
    assert_eq!(error(&one, first.view(), TokenContext::new()), "thresholds: expected shape [2], found [1]");
}

#[test]
fn words_decide() {
    let logits = Array2::zeros((4, 3));
    let ids = [7, 0, 7, 2];
    let context = TokenContext::new().with_token_ids(&ids);
    let mut out = Assignments::new();
    let mut experts = |router: &Hash| {
        out.reset(4, 3).unwrap();
        router.route(&RouteInput::new(logits.view(), context).unwrap(), &mut out).unwrap();
        out.granted().iter().map(|p| p.expert).collect::<Vec<_>>()
    };
    let table: Vec<u32> = (0..8).map(|id| id % 3).collect();
    assert_eq!(experts(&Hash::table(table)), [1, 0, 1, 2]);
    let hashed = experts(&Hash::new(1));
    assert_eq!(hashed[0], hashed[2]);
    assert_eq!(
        error(&Hash::new(1), logits.view(), TokenContext::new()),
        "router: hash of token ids: expected token ids in the input, found none"
    );
    assert!(error(&Hash::table(vec![0]), logits.view(), context).contains("expected an id below 1, found 7"));
}

#[test]
fn random_choices_weigh_alike() {
    let plan = route(&RandomChoice::new(2).unwrap(), Array2::zeros((600, 3)).view(), TokenContext::new());
    assert!(plan.row_weights().iter().all(|&w| w == 0.5));
    // Two of three, within 5 standard errors.
    assert!(
        plan.stats().load.iter().all(|&n| (n as f64 - 400.0).abs() < 5.0 * (600.0f64 * 2.0 / 9.0).sqrt())
    );
}

#[test]
fn sinkhorn_spreads_a_favourite() {
    let mut logits = irregular(64, 4, 3);
    logits.column_mut(0).mapv_inplace(|l| l + 2.0);
    let plain = route(&Sinkhorn::new(1).unwrap().iterations(0), logits.view(), TokenContext::new());
    let top = route(&TopK::new(1).unwrap(), logits.view(), TokenContext::new());
    assert_eq!(plain.row_experts(), top.row_experts());
    let even = route(&Sinkhorn::new(1).unwrap(), logits.view(), TokenContext::new());
    let (before, after) = (plain.stats().load, even.stats().load);
    assert!(before[0] > 40, "{before:?}");
    assert!(after.iter().all(|n| (11..=21).contains(n)), "{after:?}");
    // No choice of two tokens is better exchanged: that is what a transport plan's order means.
    for (t, u) in (0..64).flat_map(|t| (0..t).map(move |u| (t, u))) {
        let (a, b) = (chosen(&even, t)[0], chosen(&even, u)[0]);
        assert!(logits[[t, a]] + logits[[u, b]] >= logits[[t, b]] + logits[[u, a]] - 1e-4);
    }
}

#[test]
fn capped_choice_bounds_the_experts_of_a_token() {
    let (mut above, mut above_plain) = (0, 0);
    for seed in 0..10 {
        let mut logits = irregular(32, 4, seed * 977);
        // Half of the tokens suit one expert only, so that all experts want the others.
        let scale = |t: usize| if t.is_multiple_of(2) { 0.1 } else { 5.0 };
        logits.rows_mut().into_iter().enumerate().for_each(|(t, mut row)| row *= scale(t));
        let capacity = Capacity::absolute(12);
        let count = |router: CappedExpertChoice| {
            let plan = route(&router, logits.view(), TokenContext::new());
            (0..32).filter(|&t| plan.choices(t).len() > 2).count()
        };
        above += count(CappedExpertChoice::new(capacity, 2).unwrap());
        above_plain += count(CappedExpertChoice::new(capacity, 4).unwrap());
    }
    assert!(above_plain >= 12, "{above_plain}");
    assert!(above <= 3, "{above} of 320 tokens above the cap");
    let tight = CappedExpertChoice::new(Capacity::absolute(12), 1).unwrap();
    let message = error(&tight, irregular(32, 4, 1).view(), TokenContext::new());
    assert_eq!(message, "router: experts per token: expected at least 2 for 12 places an expert, found 1");
}

#[test]
fn sparse_mixer_needs_its_draws() {
    let logits = Array2::zeros((2, 3));
    let noise = [0.5; 6];
    let context = TokenContext::new().with_noise(TokenRows::new(&noise, 3).unwrap());
    let sampling = SparseMixer::new(0.1).unwrap().sampling();
    assert!(error(&sampling, logits.view(), context).contains("noise: expected 8 numbers a token, found 3"));
    let one = Array2::zeros((2, 1));
    assert!(error(&sampling, one.view(), TokenContext::new()).contains("at least 2 experts, found 1"));
    assert!(SparseMixer::new(f32::NAN).is_err());
}

/// There is no second choice among nothing but masked experts.
#[test]
fn sparse_mixer_with_one_expert_open() {
    const OUT: f32 = f32::NEG_INFINITY;
    let router = SparseMixer::new(0.01).unwrap();
    let logits = array![[1.0, OUT, OUT, OUT], [OUT, OUT, -3.0, OUT], [OUT, 0.0, OUT, 1.0]];
    for router in [router, router.sampling()] {
        let plan = route(&router, logits.view(), TokenContext::new());
        let of = |t| plan.choices(t).map(|c| (c.expert, c.weight)).collect::<Vec<_>>();
        assert_eq!(of(0), [(0, 1.0)]);
        assert_eq!(of(1), [(2, 1.0)]);
        assert_eq!(of(2).iter().map(|c| c.0).sum::<usize>(), 4);
    }
    // Nothing at all is open: no choice.
    let closed = array![[OUT, OUT, OUT]];
    assert_eq!(route(&router, closed.view(), TokenContext::new()).rows(), 0);
}
