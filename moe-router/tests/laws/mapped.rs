//! Decorators that change logits or weights by a fixed rule.

use moe_core::{Router, TokenContext};
use moe_router::{MappedLogits, Normalization, RouterSpec, TopK};
use ndarray::{Array2, array};
use proptest::prelude::*;

use crate::listed::{Decision, batches, config, decisions, route};

/// The decisions on one sequence by a router as a line of text.
pub(crate) fn by_spec(spec: &str, logits: &Array2<f32>) -> Vec<Vec<(usize, f32)>> {
    let router = spec.parse::<RouterSpec>().unwrap().build().unwrap();
    let plan = route(&*router, logits.view(), TokenContext::new());
    (0..logits.nrows()).map(|t| plan.choices(t).map(|c| (c.expert, c.weight)).collect()).collect()
}

/// Each of the weights within `1e-6`, relatively, of numbers that f64 gave.
pub(crate) fn assert_near(found: &[(usize, f32)], expected: &[(usize, f64)]) {
    let near = |((e, w), (f, v)): (&(usize, f32), &(usize, f64))| {
        e == f && (f64::from(*w) - v).abs() <= 1e-6 * v.abs()
    };
    let all = found.len() == expected.len() && found.iter().zip(expected).all(near);
    assert!(all, "{found:?}, expected {expected:?}");
}

#[test]
fn scales_of_each_expert_by_hand() {
    let logits = array![[2.0, 1.0, 0.0]];
    let found = by_spec("expert-scales(top-k:k=2,weights=renormalized):scales=[0.5,3,1]", &logits);
    assert_near(&found[0], &[(0, 0.365_529_289_315_002_45), (1, 0.806_824_264_109_985_3)]);
    let spec: RouterSpec = "expert-scales(relu):scales=[1,2]".parse().unwrap();
    let mut out = moe_core::Assignments::new();
    out.reset(1, 3).unwrap();
    let input = moe_core::RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    let error = spec.build().unwrap().route(&input, &mut out).unwrap_err().to_string();
    assert!(error.contains("expert scales: expected one for each of 3 experts, found 2"), "{error}");
}

/// The logits of token ids 0 and up by a router as a line of text, or what is wrong.
fn by_ids(spec: &str, ids: &[u32]) -> moe_core::Result<Vec<(usize, f32)>> {
    let row = [1.0, 2.0, 0.0, -1.0];
    let logits = Array2::from_shape_fn((ids.len(), 4), |(_, e)| row[e]);
    let mut out = moe_core::Assignments::new();
    out.reset(ids.len(), 4)?;
    let context = TokenContext::new().with_token_ids(ids);
    let router = spec.parse::<RouterSpec>().unwrap().build()?;
    router.route(&moe_core::RouteInput::new(logits.view(), context)?, &mut out)?;
    Ok(out.granted().iter().map(|p| (p.expert as usize, p.weight)).collect())
}

#[test]
fn a_table_of_k_experts_by_hand() {
    let of = |spec: &str, id: u32| by_ids(spec, &[id]);
    let found = of("deepseek-v4-hash:k=2,table=[3,0],scale=1.5", 0).unwrap();
    assert_near(&found, &[(3, 0.492_208_184_794_648_56), (0, 1.007_791_815_205_351_5)]);
    for (spec, id, message) in [
        ("deepseek-v4-hash:k=2,table=[3,0]", 1, "expected an id below 1, found 1"),
        ("deepseek-v4-hash:k=2,table=[3,4]", 0, "expected experts below 4, found 4 for id 0"),
        ("deepseek-v4-hash:k=5", 0, "expected at least 5 experts, found 4"),
    ] {
        let error = of(spec, id).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    for (spec, message) in [
        ("deepseek-v4-hash:k=2,table=[3,0,1]", "whole rows of 2 (hash of token ids), found 3 experts"),
        ("deepseek-v4-hash:k=2,table=[3,0,1,1]", "different experts in each row"),
        ("deepseek-v4-hash:k=0", "k of at least 1"),
    ] {
        let error = spec.parse::<RouterSpec>().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    // A random function is of the id alone, and of the seed.
    let ids: Vec<u32> = (0..40).map(|i| i % 20).collect();
    let experts =
        |spec: &str| -> Vec<usize> { by_ids(spec, &ids).unwrap().into_iter().map(|pair| pair.0).collect() };
    let first = experts("deepseek-v4-hash:k=2");
    assert_eq!(first[..40], first[40..]);
    assert_ne!(first, experts("deepseek-v4-hash:k=2,seed=1"));
}

#[test]
fn shared_experts_in_the_divisor_by_hand() {
    let logits = array![[2.0, 1.0, 0.0, 0.5]];
    let expected = [(0, 0.394_213_476_069_151_5), (1, 0.327_195_844_193_234_5), (3, 0.278_590_679_737_613_9)];
    assert_near(&by_spec("scored:k=2,score=sigmoid,divide=sum,shared=1", &logits)[0], &expected);
    assert_near(&by_spec("inkling:k=2,shared=1", &logits)[0], &expected);
    // The bias is of the three that are chosen among; a masked shared expert is no part of the sum.
    let masked = array![[2.0, 1.0, 0.0, f32::NEG_INFINITY]];
    let found = by_spec("inkling:k=1,bias=[0,0,1],shared=1", &masked);
    assert_eq!(found[0], [(2, 1.0)]);
    let softmax = by_spec("scored:k=1,score=softmax,shared=3", &logits);
    let total: f64 = [2.0f64, 1.0, 0.0, 0.5].map(f64::exp).iter().sum();
    let expected: Vec<_> =
        [2.0f64, 1.0, 0.0, 0.5].iter().enumerate().map(|(e, l)| (e, l.exp() / total)).collect();
    assert_near(&softmax[0], &expected);
}

/// A bias decides differently at another temperature, for sigmoids are not free of scale.
#[test]
fn a_temperature_under_a_bias() {
    let logits = array![[1.0, 9.0, 0.0]];
    let of = |spec: &str| by_spec(spec, &logits)[0][0].0;
    // σ(1) + 0.2 < σ(9), but σ(0.1) + 0.2 > σ(0.9).
    let router = "deepseek-v3:k=1,bias=[0.2,0,0]";
    assert_eq!((of(router), of(&format!("scaled-logits({router}):by=0.1"))), (1, 0));
    assert_eq!(of("scaled-logits(deepseek-v3:k=1,bias=[0.6,0,0]):by=0.1"), 0, "σ(0.1) + 0.6 > σ(0.9)");
}

#[test]
fn maps_by_hand() {
    let logits = array![[3.0, -1.0, 0.5, f32::NEG_INFINITY]];
    let capped: Vec<(usize, f64)> =
        [(0, 3.0), (2, 0.5)].map(|(e, l): (usize, f64)| (e, 2.0 * (l / 2.0).tanh())).to_vec();
    assert_near(&by_spec("soft-capped(relu):cap=2", &logits)[0], &capped);
    assert_eq!(by_spec("scaled-logits(relu):by=2", &logits)[0], [(0, 6.0), (2, 1.0)]);
    // Forced: 3 + 0.01 · 3.
    let steered = by_spec("steered(relu):on=[1,3],off=[2]", &logits);
    assert_eq!(steered[0], [(1, 3.0 + 0.01 * 3.0), (0, 3.0)]);
    for (spec, message) in [
        ("steered(relu):on=[1],off=[2,1]", "each either on or off (steered experts), found expert 1 in both"),
        ("scaled-logits(relu):by=0", "a finite number above 0 (scale of logits), found 0"),
        ("soft-capped(relu):cap=inf", "a finite number above 0 (logit cap), found inf"),
    ] {
        let error = spec.parse::<RouterSpec>().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

proptest! {
    #![proptest_config(config())]

    /// An expert that is on is among the first, one that is off nowhere, and the rest are chosen as if those were not there.
    #[test]
    fn steering_is_a_choice_among_the_others(batch in batches(), on: prop::sample::Index, k in 1usize..4) {
        let experts = batch.experts();
        let on = on.index(experts);
        let off: Vec<u32> = (0..experts as u32).filter(|&e| e as usize != on && e % 4 == 1).collect();
        let k = k.min(experts);
        let top = TopK::new(k).unwrap();
        let steered = MappedLogits::steered(top, [on as u32], &*off).unwrap();
        let plan = route(&steered, batch.logits.view(), batch.padded());
        let mut others = batch.logits.clone();
        off.iter().for_each(|&e| others.column_mut(e as usize).fill(f32::NEG_INFINITY));
        others.column_mut(on).fill(f32::NEG_INFINITY);
        let rest = route(&top, others.view(), batch.padded());
        let experts_of = |all: Vec<Decision>| all.into_iter().map(|d| d.1).collect::<Vec<_>>();
        for t in (0..batch.tokens()).filter(|&t| !batch.padding[t]) {
            let (found, rest) = (experts_of(decisions(&plan, t)), experts_of(decisions(&rest, t)));
            prop_assert_eq!(found[0], on);
            let want = rest.len().min(k - 1);
            prop_assert_eq!(&found[1..], &rest[..want]);
        }
    }

    /// A power of two rounds nowhere: the scaled logits' router is the router on scaled logits.
    #[test]
    fn scaling_is_the_product(batch in batches()) {
        let top = TopK::new(1).unwrap().normalized(Normalization::OverAll);
        let halves = batch.logits.mapv(|l| 0.5 * l);
        let found = route(&MappedLogits::scaled(top, 0.5).unwrap(), batch.logits.view(), batch.padded());
        let expected = route(&top, halves.view(), batch.padded());
        for t in 0..batch.tokens() {
            prop_assert_eq!(decisions(&found, t), decisions(&expected, t));
        }
    }
}

/// The draws given decide the second choice: `-ln(-ln(1 - u))` is -0.83 at 0.9, 2.25 at 0.1.
#[test]
fn a_second_choice_by_gumbel_noise() {
    let logits = array![
        [2.0f32, 1.0, 0.0, f32::NEG_INFINITY],
        [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY]
    ];
    let of = |noise: [f32; 8]| -> Vec<(u32, u32)> {
        let context = TokenContext::new().with_noise(moe_core::TokenRows::new(&noise, 4).unwrap());
        let mut out = moe_core::Assignments::new();
        out.reset(2, 4).unwrap();
        let input = moe_core::RouteInput::new(logits.view(), context).unwrap();
        moe_router::GumbelSecond::new().route(&input, &mut out).unwrap();
        out.granted().iter().map(|p| (p.token, p.expert)).collect()
    };
    assert_eq!(of([0.5; 8]), [(0, 0), (0, 1), (1, 0)]);
    assert_eq!(of([0.5, 0.9, 0.1, 0.0, 0.5, 0.5, 0.5, 0.5]), [(0, 0), (0, 2), (1, 0)]);
    // The share of the second expert is its probability among the others: e / (e + 1) of 20000 draws, within four deviations.
    let many = Array2::from_shape_fn((20_000, 3), |(_, e)| 2.0 - e as f32);
    let plan = route(&moe_router::GumbelSecond::new(), many.view(), TokenContext::new());
    let share = plan.expert_rows(1).len() as f64 / 20_000.0;
    let expected = 1.0f64.exp() / (1.0f64.exp() + 1.0);
    let deviation = (expected * (1.0 - expected) / 20_000.0).sqrt();
    assert!((share - expected).abs() < 4.0 * deviation, "{share}, expected {expected}");
}

/// Entropies of about 0.05, 0.69 and 1.39 nats: one, two and four experts.
#[test]
fn k_by_entropy() {
    let logits = array![[9.0, 0.0, 4.0, 0.0], [5.0, 5.0, -9.0, -9.0], [0.0, 0.0, 0.0, 0.0]];
    let found = by_spec("adaptive-k:ks=[1,2,4],at=[0.6,1.2]", &logits);
    let experts: Vec<Vec<usize>> = found.iter().map(|all| all.iter().map(|c| c.0).collect()).collect();
    assert_eq!(experts, [vec![0], vec![0, 1], vec![0, 1, 2, 3]]);
    assert_eq!(found[2][0].1, 0.25);
    for (spec, message) in [
        ("adaptive-k:ks=[1,2],at=[0.6,1.2]", "3 numbers of experts (adaptive k), found 2"),
        ("adaptive-k:ks=[1,0],at=[0.6]", "k of at least 1"),
        ("adaptive-k:ks=[1,2,3],at=[1.2,0.6]", "entropies that ascend"),
    ] {
        let error = spec.parse::<RouterSpec>().unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
