//! The weighting of a router is what it does: the weights of its plans, computed anew.

use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
use moe_router::backward::Weighting;
use moe_router::{
    Base, Capacity, CappedExpertChoice, Dense, ExpertChoice, ExpertGroups, ExpertThreshold, Normalization,
    Normalizer, Relu, Score, ScoredTopK, Sinkhorn, TopK, TopP,
};
use ndarray::Array2;

/// Of f32 weights made of 16 experts: softmax, sums and a division are some 60 roundings of 2⁻²⁴.
const TOLERANCE: f64 = 4e-6;

#[test]
fn a_weighting_gives_the_weights_of_its_router() {
    let logits = Array2::from_shape_fn((24, 16), |(t, e)| ((7 * t + 5 * e * e) % 23) as f32 / 4.0 - 2.0);
    let top = |normalization| {
        let router = TopK::new(3).unwrap().normalized(normalization);
        (Box::new(router) as Box<dyn Router>, router.weighting())
    };
    let scored = |router: moe_core::Result<ScoredTopK>| {
        let router = router.unwrap();
        let weighting = router.weighting();
        (Box::new(router) as Box<dyn Router>, weighting)
    };
    let plain = |router: Box<dyn Router>, score| (router, Weighting::new(score));
    let bias: Vec<f32> = (0..16).map(|e| e as f32 / 20.0).collect();
    let capacity = Capacity::factor_of_tokens(2.0);
    let by_two = ExpertGroups::by_two_best(4, 2).unwrap();
    let scores = [Score::Logit, Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus];
    let normalizers = [
        Normalizer::None,
        Normalizer::Softmax,
        Normalizer::Sum { epsilon: 0.5 },
        Normalizer::SumAtLeast { floor: 0.75 },
        Normalizer::Norm { p: 3.0 },
        Normalizer::Norm { p: f32::INFINITY },
    ];
    let mut routers = vec![
        top(Normalization::OverChosen),
        top(Normalization::OverAll),
        top(Normalization::OverAllRenormalized),
        scored(ScoredTopK::dbrx(4, Some(2.0))),
        scored(ScoredTopK::deepseek_v2(4, 16.0)),
        scored(ScoredTopK::deepseek_v3(4, bias.clone(), by_two, 2.5)),
        scored(ScoredTopK::deepseek_v4(4, bias.clone(), 1.5)),
        scored(ScoredTopK::lfm2(4, 2.0)),
        scored(ScoredTopK::ernie_4_5(4, bias.clone(), 0.9)),
        scored(ScoredTopK::longcat_flash(4, bias, 6.0)),
        scored(ScoredTopK::llama4(1)),
        scored(ScoredTopK::cohere2(4)),
        plain(Box::new(TopP::new(0.7).unwrap()), Score::Softmax),
        plain(Box::new(Dense::new()), Score::Softmax),
        plain(Box::new(ExpertChoice::new(capacity).unwrap()), Score::Softmax),
        plain(Box::new(CappedExpertChoice::new(capacity, 3).unwrap()), Score::Softmax),
        plain(Box::new(Sinkhorn::new(2).unwrap()), Score::Softmax),
        plain(Box::new(ExpertThreshold::new(vec![0.6; 16]).unwrap()), Score::Sigmoid),
        plain(Box::new(Base::new()), Score::Sigmoid),
        plain(Box::new(Relu::new()), Score::Logit),
    ];
    for (score, normalizer) in scores.into_iter().flat_map(|s| normalizers.map(|n| (s, n))) {
        routers.push(scored(ScoredTopK::new(3, score).unwrap().normalized(normalizer).unwrap().scaled(0.5)));
    }
    for (i, (router, weighting)) in routers.into_iter().enumerate() {
        let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
        out.reset(24, 16).unwrap();
        router.route(&RouteInput::new(logits.view(), TokenContext::new()).unwrap(), &mut out).unwrap();
        plan.seal(&out).unwrap();
        let weights = weighting.weights(logits.view(), &plan).unwrap();
        assert!(weights.len() >= 24, "router {i}");
        for choice in (0..24).flat_map(|t| plan.choices(t)) {
            let (found, expected) = (weights[choice.row], f64::from(choice.weight));
            assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "router {i}: {found} {expected}");
        }
    }
}
