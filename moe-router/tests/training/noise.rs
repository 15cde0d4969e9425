//! Which logits losses are of where a router draws noise, and what their means weigh.

use moe_core::{Assignments, PerSequence, RouteInput, Routed, Router, RoutingPlan, TokenContext, TokenRows};
use moe_router::losses::{Affinity, Importance, LoadBalance, SequenceBalance, noisy};
use moe_router::{
    Capacity, Capped, Normalization, Perturbed, RandomSecond, Relu, Renormalized, RouterSpec, SkipLight,
    TopK, WithoutNulls,
};
use ndarray::{Array2, array};

/// Irregular numbers between -2 and 2.
fn irregular(rows: usize, columns: usize, seed: u32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(r, c)| {
        let mixed = (r as u32 * 8191 + c as u32 * 131 + seed).wrapping_mul(2_654_435_761);
        ((mixed ^ mixed >> 15).wrapping_mul(2_246_822_519) >> 8) as f32 / 4_194_304.0 - 2.0
    })
}

fn routed(router: &dyn Router, input: &RouteInput<'_>) -> RoutingPlan {
    let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
    out.reset(input.tokens(), input.experts()).unwrap();
    router.route(input, &mut out).unwrap();
    plan.seal(&out).unwrap();
    plan
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let total: f64 = row.iter().map(|l| l.exp()).sum();
    row.iter().map(|l| l.exp() / total).collect()
}

/// GShard's loss in V-MoE's code, of the noisy logits throughout: `E² mean(one-hot of the greatest, mean softmax)`.
#[test]
fn gshard_loss_of_noisy_logits() {
    let (tokens, experts, std) = (64, 8, 1.0f32);
    let (logits, z) = (irregular(tokens, experts, 1), irregular(tokens, experts, 77));
    let context = TokenContext::new().with_noise(TokenRows::new(z.as_slice().unwrap(), experts).unwrap());
    let input = RouteInput::new(logits.view(), context).unwrap();
    let top = TopK::new(1).unwrap().normalized(Normalization::OverAll);
    let router = Perturbed::gaussian(top, std).unwrap();
    let plan = routed(&router, &input);

    let (mut f, mut p, mut clean) = (vec![0.0; experts], vec![0.0; experts], vec![0.0; experts]);
    for t in 0..tokens {
        let row: Vec<f64> = (0..experts).map(|e| f64::from(logits[[t, e]] + std * z[[t, e]])).collect();
        let best = (0..experts).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        f[best] += 1.0 / tokens as f64;
        p.iter_mut().zip(softmax(&row)).for_each(|(sum, p)| *sum += p / tokens as f64);
        let row: Vec<f64> = logits.row(t).iter().map(|&l| l.into()).collect();
        clean.iter_mut().zip(softmax(&row)).for_each(|(sum, p)| *sum += p);
    }
    let expected = experts as f64 * f.iter().zip(&p).map(|(f, p)| f * p).sum::<f64>();
    let with_noise = noisy(&router, &input).unwrap();
    let loss = LoadBalance::of_first_choices(&Routed::new(with_noise.view(), &plan, context).unwrap());
    assert!((loss.value() - expected).abs() < 1e-12, "{} {expected}", loss.value());
    // That of the choice with noise and the probabilities without is another.
    let mixed = LoadBalance::of_first_choices(&Routed::new(logits.view(), &plan, context).unwrap());
    assert!((mixed.value() - expected).abs() > 1e-3);

    // Importance is of the logits without noise.
    let mean = tokens as f64 / experts as f64;
    let expected = clean.iter().map(|i| (i / mean - 1.0).powi(2)).sum::<f64>() / experts as f64;
    assert!((Importance::of(&input).value() - expected).abs() < 1e-12);
}

/// Whatever stands around it, a router with noise decides on its noisy logits as the one without does.
#[test]
fn perturbed_logits_are_those_decided_on() {
    let (tokens, experts) = (9, 5);
    let (logits, scale) = (irregular(tokens, experts, 3), irregular(tokens, experts, 5));
    let context = TokenContext::new()
        .with_seed(11)
        .with_noise_logits(TokenRows::new(scale.as_slice().unwrap(), experts).unwrap());
    let all = || TopK::new(2).unwrap().normalized(Normalization::OverAll);
    let capacity = Capacity::absolute(3);
    let cases: Vec<(Box<dyn Router>, Box<dyn Router>)> = vec![
        (Box::new(Perturbed::gaussian(all(), 0.7).unwrap()), Box::new(all())),
        (Box::new(Perturbed::learned(Relu::new())), Box::new(Relu::new())),
        (
            Box::new(Capped::new(Perturbed::jitter(all(), 0.5).unwrap(), capacity).unwrap()),
            Box::new(Capped::new(all(), capacity).unwrap()),
        ),
        (
            Box::new(Renormalized::new(SkipLight::by_ratio(Perturbed::learned(all()), 0.5).unwrap())),
            Box::new(Renormalized::new(SkipLight::by_ratio(all(), 0.5).unwrap())),
        ),
        (
            Box::new(RandomSecond::new(WithoutNulls::new(Perturbed::gaussian(all(), 2.0).unwrap(), 3))),
            Box::new(RandomSecond::new(WithoutNulls::new(all(), 3))),
        ),
        // Twice the same draws.
        (
            Box::new(Perturbed::gaussian(Perturbed::gaussian(all(), 1.0).unwrap(), 1.0).unwrap()),
            Box::new(all()),
        ),
    ];
    for (i, (with, without)) in cases.iter().enumerate() {
        let input = RouteInput::new(logits.view(), context).unwrap();
        let noisy = noisy(with, &input).unwrap();
        assert_ne!(noisy, logits, "case {i}");
        let (a, b) =
            (routed(with, &input), routed(without, &RouteInput::new(noisy.view(), context).unwrap()));
        assert_eq!(a.row_tokens(), b.row_tokens(), "case {i}");
        assert_eq!(a.row_weights(), b.row_weights(), "case {i}");
    }
    // Given noise is used up by the outermost that takes it, here the second choice's draws.
    let given = irregular(tokens, experts, 9).mapv(|x| (x + 2.0) / 4.0);
    let given = context.with_noise(TokenRows::new(given.as_slice().unwrap(), experts).unwrap());
    let second = RandomSecond::new(Perturbed::gaussian(all(), 1.0).unwrap());
    let of = |context| noisy(&second, &RouteInput::new(logits.view(), context).unwrap()).unwrap();
    assert_eq!(of(given), of(context));
    // Each sequence has its own router's.
    let top = all();
    let offsets = [0, 4, 9];
    let each: [&dyn Router; 2] = [&top, &second];
    let by = PerSequence::of(&each);
    let found =
        noisy(&by, &RouteInput::new(logits.view(), context.with_sequences(&offsets)).unwrap()).unwrap();
    assert_eq!(found.row(3), logits.row(3));
    assert_ne!(found.row(4), logits.row(4));
    let missing = Perturbed::learned(top);
    assert!(noisy(&missing, &RouteInput::new(logits.view(), TokenContext::new()).unwrap()).is_err());
}

#[test]
fn importance_by_paper() {
    for (spec, without) in [
        ("top-k:k=2", false),
        ("jitter(top-k:k=1):epsilon=0.1", false),
        ("learned-noise(top-k:k=2)", false),
        ("gaussian-noise(top-k:k=2):std=1", true),
        ("capped(gaussian-noise(top-k:k=2):std=1):factor=1.0", true),
    ] {
        assert_eq!(spec.parse::<RouterSpec>().unwrap().importance_without_noise(), without, "{spec}");
    }
}

/// A sequence of three tokens, one of them padding, and one of a single token.
#[test]
fn means_by_tokens() {
    let logits = array![[2.0, 0.0], [1.0, 0.5], [9.0, -9.0], [0.0, 3.0]];
    let (offsets, padding) = ([0, 3, 4], [false, false, true, false]);
    let context = TokenContext::new().with_sequences(&offsets).with_padding(&padding);
    let input = RouteInput::new(logits.view(), context).unwrap();
    let plan = routed(&TopK::new(1).unwrap(), &input);
    let routed = Routed::new(logits.view(), &plan, context).unwrap();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    // All of a sequence choose one expert: twice its mean probability.
    let (first, second) = (sigmoid(2.0) + sigmoid(0.5), 2.0 * sigmoid(3.0));
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    near(LoadBalance::per_sequence(&routed).value(), (first + second) / 2.0);
    near(LoadBalance::per_sequence(&routed).weighted_by_tokens().value(), (2.0 * first + second) / 3.0);
    let balance = || SequenceBalance::of(&routed, Affinity::Softmax);
    near(balance().value(), (first + second) / 2.0);
    near(balance().weighted_by_tokens().value(), (2.0 * first + second) / 3.0);
    near(balance().weighted_by_tokens().weighted_by_tokens().gradient().unwrap().sum(), 0.0);
}
