//! Choice by scores: the pieces by their definition, and what is refused.

use moe_core::{Assignments, RouteInput, Router, TokenContext, numerics};
use moe_router::{
    Capacity, Capped, ExpertGroups, Normalization, Normalizer, Renormalized, Score, ScoredTopK, TopK,
};
use ndarray::{Array2, array};
use proptest::prelude::*;

use crate::listed::{Batch, Listed, batches, config, decisions, route};

/// A bias for each expert, some large enough to decide.
fn biases(experts: usize) -> Vec<f32> {
    (0..experts).map(|e| ((e * 7 + 3) % 5) as f32 * 0.3 - 0.6).collect()
}

/// The largest number of groups that divides the experts, up to four, and half of them.
fn halves(experts: usize) -> (usize, usize) {
    let groups = (1..=4).rev().find(|&g| experts.is_multiple_of(g)).unwrap();
    (groups, groups.div_ceil(2))
}

/// Every published router, and decorated ones, for layers of `experts`.
pub(crate) fn routers(experts: usize) -> Vec<Listed> {
    let (groups, kept) = halves(experts);
    let k = 2.min(experts / groups * kept);
    let (bias, few, two) = (biases(experts), k as f32, 2.min(experts));
    let v3 =
        ScoredTopK::deepseek_v3(k, &*bias, ExpertGroups::by_two_best(groups, kept).unwrap(), 2.5).unwrap();
    let v2 = ScoredTopK::deepseek_v2(k, 16.0).unwrap();
    let limited = v2.clone().within(ExpertGroups::by_best(groups, kept).unwrap());
    let raw = v3.clone().normalized(Normalizer::None).unwrap();
    let shared = (experts - 1).min(2);
    let routed = experts - shared;
    let inkling = ScoredTopK::inkling(2.min(routed), shared, &bias[..routed], 1.0).unwrap();
    let ernie = ScoredTopK::ernie_4_5(two, &*bias, 1e-12);
    let longcat = ScoredTopK::longcat_flash(two, &*bias, 6.0);
    // Name, router, most that weights sum to, guarded, symmetric.
    let plain = [
        ("deepseek-v2 greedy", v2, 16.0, true, true),
        ("deepseek-v2 limited", limited, 16.0, true, false),
        ("deepseek-v3", v3.clone(), 2.5, true, false),
        ("deepseek-v3 raw", raw, 2.5 * few, true, false),
        ("deepseek-v4", ScoredTopK::deepseek_v4(two, &*bias, 1.5).unwrap(), 1.5, true, false),
        ("afmoe", ScoredTopK::afmoe(two, &*bias, 2.826).unwrap(), 2.826, true, false),
        ("minimax", ScoredTopK::minimax_m2(two, &*bias).unwrap(), 1.0, false, false),
        ("pangu pro", ScoredTopK::pangu_pro(groups, groups).unwrap(), 1.0, true, false),
        ("inkling", inkling, 1.0, false, false),
        ("lfm2", ScoredTopK::lfm2(two, 1.5).unwrap(), 1.5, true, true),
        ("ernie", ernie.unwrap(), 1.0, true, false),
        ("longcat", longcat.unwrap(), 6.0, true, false),
        ("llama 4", ScoredTopK::llama4(two).unwrap(), two as f32, true, true),
        ("cohere 2", ScoredTopK::cohere2(two).unwrap(), 1.0, false, true),
        ("dbrx raw", ScoredTopK::dbrx(two, None).unwrap(), 1.0, true, true),
        ("dbrx p 1", ScoredTopK::dbrx(two, Some(1.0)).unwrap(), 1.0, true, true),
        ("dbrx p 2", ScoredTopK::dbrx(two, Some(2.0)).unwrap(), std::f32::consts::SQRT_2, true, true),
        ("dbrx p 3", ScoredTopK::dbrx(two, Some(3.0)).unwrap(), 1.6, true, true),
    ];
    let listed = |(name, router, most, guarded, symmetric): (&str, ScoredTopK, f32, bool, bool)| Listed {
        name: name.into(),
        k: Some(if name == "inkling" { router.k() + shared } else { router.k() }),
        router: Box::new(router),
        sums_to_one: ["minimax", "inkling", "cohere 2", "dbrx p 1"].contains(&name),
        most,
        guarded,
        symmetric,
        by_score: true,
        capacity: None,
    };
    let mut list: Vec<Listed> = plain.into_iter().map(listed).collect();
    let capacity = Capacity::factor_of_choices(0.75).at_least(1);
    let capped = || Capped::new(v3.clone(), capacity).unwrap();
    let decorated: [(&str, Box<dyn Router>); 3] = [
        ("by position", Box::new(capped())),
        ("by score", Box::new(capped().by_score())),
        ("renormalized", Box::new(Renormalized::new(capped().token_by_token()))),
    ];
    list.extend(decorated.into_iter().map(|(name, router)| Listed {
        name: format!("deepseek-v3 capped {name}"),
        router,
        k: Some(k),
        sums_to_one: false,
        most: 2.5,
        guarded: true,
        symmetric: false,
        by_score: true,
        capacity: Some(capacity),
    }));
    list
}

/// One token's choices by the definition: everything sorted, nothing clever.
fn by_definition(
    logits: &[f32],
    (k, score): (usize, Score),
    bias: &[f32],
    groups: Option<(usize, usize, bool)>,
) -> Vec<usize> {
    let mut scores = logits.to_vec();
    score.apply(&mut scores);
    scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
    let descending = |values: &[f32]| {
        let mut order: Vec<usize> = (0..values.len()).collect();
        // Stable, so that ties stay in ascending order; -0.0 equals 0.0.
        order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap());
        order
    };
    let mut candidates = vec![true; logits.len()];
    if let Some((groups, kept, two)) = groups {
        let size = logits.len() / groups;
        let group_score = |group: &[f32]| {
            let best = descending(group);
            best.iter().take(if two { 2 } else { 1 }).map(|&i| group[i]).sum()
        };
        let group_scores: Vec<f32> = scores.chunks(size).map(group_score).collect();
        let kept = &descending(&group_scores)[..kept];
        (0..logits.len()).for_each(|e| candidates[e] = kept.contains(&(e / size)));
    }
    descending(&scores).into_iter().filter(|&e| candidates[e]).take(k).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Every choice of the batch against its definition, and every weight against the pieces applied one by one.
fn check(
    batch: &Batch,
    (score, weigh, normalizer): (Score, Score, Normalizer),
    grouped: Option<bool>,
    biased: bool,
) -> Result<(), TestCaseError> {
    let experts = batch.experts();
    let (groups, kept) = halves(experts);
    let k = 3.min(experts / groups * kept);
    let mut router = ScoredTopK::new(k, score).unwrap().weighed_by(weigh).normalized(normalizer).unwrap();
    router = router.scaled(1.75).unwrap();
    let bias = if biased { biases(experts) } else { vec![] };
    router.set_bias(&bias).unwrap();
    if let Some(two) = grouped {
        let by = if two { ExpertGroups::by_two_best } else { ExpertGroups::by_best };
        router = router.within(by(groups, kept).unwrap());
    }
    let plan = route(&router, batch.logits.view(), batch.unpadded());
    for t in 0..batch.tokens() {
        let logits = batch.logits.row(t).to_vec();
        let groups = grouped.map(|two| (groups, kept, two));
        let chosen: Vec<_> = plan.choices(t).map(|c| c.expert).collect();
        let expected = by_definition(&logits, (k, score), &bias, groups);
        prop_assert_eq!(&chosen, &expected, "{:?} {:?} of {:?}", score, grouped, &logits);

        let mut scores = logits;
        weigh.apply(&mut scores);
        let mut weights: Vec<f32> = chosen.iter().map(|&e| scores[e]).collect();
        normalizer.apply(&mut weights);
        weights.iter_mut().for_each(|w| *w *= 1.75);
        let found: Vec<f32> = plan.choices(t).map(|c| c.weight).collect();
        prop_assert_eq!(bits(&found), bits(&weights));
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn choices_and_weights_are_their_definition(batch in batches(), biased: bool) {
        use Score::{Logit, Sigmoid, Softmax, SqrtSoftplus};
        for grouped in [None, Some(false), Some(true)] {
            for score in [Logit, Softmax, Sigmoid, SqrtSoftplus] {
                check(&batch, (score, score, Normalizer::None), grouped, biased)?;
                check(&batch, (score, Sigmoid, Normalizer::Sum { epsilon: 1e-6 }), grouped, biased)?;
                check(&batch, (score, Softmax, Normalizer::SumAtLeast { floor: 0.3 }), grouped, biased)?;
            }
            check(&batch, (Logit, Logit, Normalizer::Softmax), grouped, biased)?;
        }
    }

    /// TopK's three ways are values of the same pieces, here computed as their documentation says.
    #[test]
    fn top_k_is_a_face_of_it(batch in batches()) {
        let k = 2.min(batch.experts());
        for n in [Normalization::OverChosen, Normalization::OverAll, Normalization::OverAllRenormalized] {
            let plan = route(&TopK::new(k).unwrap().normalized(n), batch.logits.view(), batch.unpadded());
            for t in 0..batch.tokens() {
                let logits = batch.logits.row(t).to_vec();
                let chosen = by_definition(&logits, (k, Score::Logit), &[], None);
                let of = |values: &[f32]| chosen.iter().map(|&e| values[e]).collect::<Vec<f32>>();
                let mut all = logits.clone();
                numerics::softmax(&mut all);
                let mut expected = of(&all);
                match n {
                    Normalization::OverChosen => {
                        expected = of(&logits);
                        numerics::softmax(&mut expected);
                    }
                    Normalization::OverAllRenormalized => {
                        let sum = numerics::sum(&expected);
                        expected.iter_mut().for_each(|w| *w /= sum);
                    }
                    _ => {}
                }
                prop_assert_eq!(plan.choices(t).map(|c| c.expert).collect::<Vec<_>>(), chosen);
                prop_assert_eq!(bits(&plan.choices(t).map(|c| c.weight).collect::<Vec<_>>()), bits(&expected));
            }
        }
    }

    /// No bias is a bias of zero, and all groups is no groups.
    #[test]
    fn what_restricts_nothing_changes_nothing(batch in batches()) {
        let (groups, _) = halves(batch.experts());
        let plain = ScoredTopK::new(1, Score::Sigmoid).unwrap();
        let zeros = plain.clone().with_bias(vec![0.0; batch.experts()]).unwrap();
        let all = plain.clone().within(ExpertGroups::by_two_best(groups, groups).unwrap());
        let expected = route(&plain, batch.logits.view(), batch.unpadded());
        for router in [zeros, all] {
            let plan = route(&router, batch.logits.view(), batch.unpadded());
            for t in 0..batch.tokens() {
                prop_assert_eq!(decisions(&plan, t), decisions(&expected, t));
            }
        }
    }
}

#[test]
fn ties_of_scores_biases_and_groups_go_to_the_lower_index() {
    let chosen = |router: &ScoredTopK, logits: [[f32; 4]; 1]| {
        let logits = Array2::from(logits.to_vec());
        route(router, logits.view(), TokenContext::new()).choices(0).map(|c| c.expert).collect::<Vec<_>>()
    };
    let sigmoid = ScoredTopK::new(2, Score::Sigmoid).unwrap();
    // All round to one.
    assert_eq!(chosen(&sigmoid, [[40.0, 50.0, 30.0, 60.0]]), [0, 1]);
    let biased = sigmoid.clone().with_bias([0.0, 0.0, 0.5, 0.5]).unwrap();
    assert_eq!(chosen(&biased, [[40.0, 50.0, 30.0, 60.0]]), [2, 3]);
    let grouped = sigmoid.within(ExpertGroups::by_two_best(2, 1).unwrap());
    assert_eq!(chosen(&grouped, [[0.0, 1.0, 1.0, 0.0]]), [1, 0]);
    // Two probabilities of zero, told apart by their logits.
    assert_eq!(chosen(&ScoredTopK::deepseek_v2(2, 1.0).unwrap(), [[0.0, -300.0, -200.0, -250.0]]), [0, 2]);
}

#[test]
fn nothing_guards_minimax() {
    let logits = array![[-200.0, -300.0], [0.0, -300.0]];
    let mut out = Assignments::new();
    let input = RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    for (router, weight) in [
        (ScoredTopK::minimax_m2(2, []).unwrap(), f32::NAN),
        (ScoredTopK::cohere2(2).unwrap(), f32::NAN),
        (ScoredTopK::afmoe(2, [], 1.0).unwrap(), 0.0),
        (ScoredTopK::lfm2(2, 1.0).unwrap(), 0.0),
    ] {
        out.reset(2, 2).unwrap();
        router.route(&input, &mut out).unwrap();
        let weights: Vec<f32> = out.granted().iter().map(|p| p.weight).collect();
        assert_eq!(weights[..2].iter().map(|w| w.is_nan()).collect::<Vec<_>>(), [weight.is_nan(); 2]);
        assert!((weights[2] - 1.0).abs() < 1e-5 && weights[3] == 0.0, "{weights:?}");
    }
}

/// What is added to a sum shows where the sum is no greater: a single expert, whose weight would be 1 else.
#[test]
fn published_epsilons() {
    let weight = |router: moe_core::Result<ScoredTopK>, logit: f32| {
        let logits = array![[logit, -100.0]];
        route(&router.unwrap(), logits.view(), TokenContext::new()).choices(0).map(|c| c.weight).sum::<f32>()
    };
    let groups = ExpertGroups::by_two_best(1, 1).unwrap();
    for (name, found, score, epsilon) in [
        ("lfm2", weight(ScoredTopK::lfm2(1, 1.0), -14.0), (-14f64).exp(), 1e-6),
        ("afmoe", weight(ScoredTopK::afmoe(1, [], 1.0), -46.0), (-46f64).exp(), 1e-20),
        ("v3", weight(ScoredTopK::deepseek_v3(1, [], groups, 1.0), -46.0), (-46f64).exp(), 1e-20),
        ("v4", weight(ScoredTopK::deepseek_v4(1, [], 1.0), -92.0), (-46f64).exp(), 1e-20),
        ("minimax", weight(ScoredTopK::minimax_m2(1, []), -60.0), 1.0, 0.0),
        ("cohere", weight(ScoredTopK::cohere2(1), -60.0), 1.0, 0.0),
    ] {
        let expected = score / (score + epsilon);
        // The sigmoid of -14 is exp(-14) but for its millionth part.
        assert!((f64::from(found) - expected).abs() < 2e-6, "{name}: expected {expected}, found {found}");
    }
}

#[test]
fn settings_that_cannot_work_are_errors() {
    let message = |built: moe_core::Result<ScoredTopK>| built.unwrap_err().to_string();
    let router = |k| ScoredTopK::new(k, Score::Sigmoid).unwrap();
    assert_eq!(message(ScoredTopK::new(0, Score::Logit)), "router: top-k: expected k of at least 1, found 0");
    assert_eq!(
        message(router(1).with_bias([0.0, f32::NAN])),
        "router: selection bias: expected finite numbers, found NaN for expert 1"
    );
    assert_eq!(
        message(router(1).scaled(f32::INFINITY)),
        "router: routed scale: expected a finite number, found inf"
    );
    assert!(router(1).normalized(Normalizer::Norm { p: -1.0 }).is_err());
    for (groups, kept) in [(0, 0), (4, 0), (4, 5)] {
        assert!(ExpertGroups::by_best(groups, kept).is_err());
    }

    let logits = Array2::zeros((2, 6));
    let input = RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    let groups = |groups, kept| ExpertGroups::by_two_best(groups, kept).unwrap();
    for (router, expected) in [
        (router(7), "router: top-k: expected at least 7 experts, found 6"),
        (
            router(1).with_bias([0.0; 5]).unwrap(),
            "router: selection bias: expected one for each of 6 experts, found 5",
        ),
        (router(1).within(groups(4, 2)), "router: expert groups: expected a multiple of 4 experts, found 6"),
        (
            router(3).within(groups(3, 1)),
            "router: expert groups: expected at least 3 experts in 1 groups, found 2",
        ),
    ] {
        let mut out = Assignments::new();
        out.reset(2, 6).unwrap();
        assert_eq!(router.route(&input, &mut out).unwrap_err().to_string(), expected);
        assert!(out.granted().is_empty());
    }

    // A bias that is refused leaves the old one.
    let mut router = router(1).with_bias([1.0, 2.0]).unwrap();
    assert!(router.set_bias(&[f32::INFINITY]).is_err());
    assert_eq!(router.bias(), [1.0, 2.0]);
}

#[test]
fn each_group_has_its_part() {
    let logits = Array2::from_shape_fn((50, 12), |(t, e)| ((t * 31 + e * e * 7) % 37) as f32 * 0.2);
    for (k, groups) in [(3, 3), (6, 3), (8, 4), (12, 2)] {
        let router = ScoredTopK::pangu_pro(k, groups).unwrap();
        let plan = route(&router, logits.view(), TokenContext::new());
        let size = 12 / groups;
        for t in 0..50 {
            let mut expected = vec![];
            for g in 0..groups {
                let mut group: Vec<usize> = (g * size..(g + 1) * size).collect();
                group.sort_by(|&a, &b| logits[[t, b]].total_cmp(&logits[[t, a]]));
                expected.extend_from_slice(&group[..k / groups]);
            }
            expected.sort_unstable();
            let mut found: Vec<usize> = plan.choices(t).map(|c| c.expert).collect();
            found.sort_unstable();
            assert_eq!(found, expected);
            let mut probabilities = logits.row(t).to_vec();
            numerics::softmax(&mut probabilities);
            assert!(plan.choices(t).all(|c| c.weight == probabilities[c.expert]));
        }
    }
}

/// Three groups whose order depends on how many of their best are summed.
#[test]
fn group_scores_of_n() {
    let logits = array![[9.0, 0.0, 0.0, 0.0, 8.0, 7.0, 0.0, 0.0, 6.0, 6.0, 6.0, 0.0]];
    for (n, first) in [(1, 0), (2, 4), (3, 8), (4, 8)] {
        let groups = ExpertGroups::by_sum_of_best(3, 1, n).unwrap();
        let router = ScoredTopK::new(1, Score::Logit).unwrap().within(groups);
        let plan = route(&router, logits.view(), TokenContext::new());
        assert_eq!(plan.choices(0).next().unwrap().expert, first, "{n}");
    }
}
