//! Every gradient against differences of the value, in f64.

use moe_core::{RouteInput, Routed};
use moe_router::backward::{SparseMixer, Weighting};
use moe_router::losses::{
    Affinity, CommunicationBalance, DeviceBalance, Entropy, Importance, Load, LoadBalance, SequenceBalance,
    ZLoss,
};
use moe_router::{Normalizer, Score, ScoredTopK};
use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;

use crate::batch::{Batch, STEP, batches, config};

/// A difference of fourth order with h = 2⁻⁸ is off by h⁴/30 = 8e-12 times the fifth derivative, and by 1.5 · 2⁻⁵³ / h = 4e-14 times the
/// value; fifth derivatives of the losses here reach some hundreds.
const BOUND: f64 = 1e-8;

/// The largest distance of `gradient` from the differences of `value`, over the largest of both and 1.
fn distance(logits: &Array2<f32>, gradient: &Array2<f64>, value: impl Fn(ArrayView2<'_, f32>) -> f64) -> f64 {
    let mut moved = logits.clone();
    let mut worst = 0.0f64;
    for (at, derivative) in gradient.indexed_iter() {
        let mut by = |steps: f32| {
            moved[at] = logits[at] + steps * STEP;
            let value = value(moved.view());
            moved[at] = logits[at];
            value
        };
        let difference = 8.0 * (by(1.0) - by(-1.0)) - (by(2.0) - by(-2.0));
        let difference = difference / (12.0 * f64::from(STEP));
        worst = worst.max((difference - derivative).abs() / difference.abs().max(1.0));
    }
    worst
}

/// Checks a loss of a routing whose choices do not change with the logits.
fn of_routing(batch: &Batch, loss: impl Fn(&Routed<'_>) -> (f64, Array2<f64>)) -> Result<(), TestCaseError> {
    let plan = batch.plan();
    let of = |logits: ArrayView2<'_, f32>| loss(&Routed::new(logits, &plan, batch.context()).unwrap());
    let off = distance(&batch.logits, &of(batch.logits.view()).1, |l| of(l).0);
    prop_assert!(off < BOUND, "{off}");
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn load_balance(batch in batches()) {
        of_routing(&batch, |r| {
            let loss = LoadBalance::per_sequence(r);
            (loss.value(), loss.gradient().unwrap())
        })?;
        of_routing(&batch, |r| {
            let loss = LoadBalance::of_first_choices(r);
            (loss.value(), loss.gradient().unwrap())
        })?;
        of_routing(&batch, |r| {
            let loss = LoadBalance::per_sequence(r).weighted_by_tokens();
            (loss.value(), loss.gradient().unwrap())
        })?;
        of_routing(&batch, |r| {
            let loss = SequenceBalance::of(r, Affinity::Sigmoid).weighted_by_tokens();
            (loss.value(), loss.gradient().unwrap())
        })?;
    }

    #[test]
    fn load_balance_over_layers(a in batches(), b in batches()) {
        // Layers of one number of experts, of different tokens.
        prop_assume!(a.logits.ncols() == b.logits.ncols());
        let (plan_a, plan_b) = (a.plan(), b.plan());
        let of = |logits: ArrayView2<'_, f32>| {
            let b = Routed::new(logits, &plan_b, b.context()).unwrap();
            LoadBalance::over_all(&[a.routed(&plan_a), b]).value()
        };
        let gradients = LoadBalance::over_all(&[a.routed(&plan_a), b.routed(&plan_b)]).gradients().unwrap();
        prop_assert_eq!(gradients.len(), 2);
        prop_assert!(distance(&b.logits, &gradients[1], of) < BOUND);
    }

    #[test]
    fn sequence_and_device_balance(batch in batches()) {
        let devices: Vec<usize> = (0..batch.logits.ncols()).map(|e| e * 5 % 3).collect();
        for affinity in [Affinity::Softmax, Affinity::Sigmoid] {
            of_routing(&batch, |r| {
                let loss = SequenceBalance::of(r, affinity);
                (loss.value(), loss.gradient().unwrap())
            })?;
            of_routing(&batch, |r| {
                let loss = DeviceBalance::of(r, affinity, &devices);
                (loss.value(), loss.gradient().unwrap())
            })?;
            of_routing(&batch, |r| {
                let loss = CommunicationBalance::of(r, affinity, &devices, 2);
                (loss.value(), loss.gradient().unwrap())
            })?;
        }
    }

    #[test]
    fn of_logits_alone(batch in batches()) {
        of_routing(&batch, |r| {
            let loss = Importance::of(&r.input());
            (loss.value(), loss.gradient().unwrap())
        })?;
        of_routing(&batch, |r| {
            let loss = ZLoss::of(&r.input());
            (loss.value(), loss.gradient().unwrap())
        })?;
        of_routing(&batch, |r| {
            let loss = Entropy::of(&r.input());
            (loss.value(), loss.gradient().unwrap())
        })?;
    }

    #[test]
    fn load(batch in batches(), k in 1usize..=7, sigma in 0.5f64..2.0) {
        let experts = batch.logits.ncols();
        let k = k.min(experts);
        // Noise that leaves the noisy logits of a token further apart than the differences reach.
        let noisy = Array2::from_shape_fn(batch.logits.raw_dim(), |(t, e)| {
            ((t * 7 + e * 3) % experts) as f32 * 0.25 + (e as f32 - t as f32) / 32.0
        });
        let of = |clean: ArrayView2<'_, f32>, noisy: ArrayView2<'_, f32>| {
            Load::of(&RouteInput::new(clean, batch.context()).unwrap(), noisy, k, sigma).unwrap().value()
        };
        let gradient = Load::of(&batch.input(), noisy.view(), k, sigma).unwrap().gradient().unwrap();
        let by_clean = distance(&batch.logits, &gradient.logits, |l| of(l, noisy.view()));
        prop_assert!(by_clean < BOUND, "{}", by_clean);
        let by_noisy = distance(&noisy, &gradient.noisy, |l| of(batch.logits.view(), l));
        prop_assert!(by_noisy < BOUND, "{}", by_noisy);
    }

    #[test]
    fn load_excluding_self(batch in batches(), k in 1usize..=6) {
        let experts = batch.logits.ncols();
        let k = k.min(experts - 1);
        let noisy = Array2::from_shape_fn(batch.logits.raw_dim(), |(t, e)| {
            ((t * 7 + e * 3) % experts) as f32 * 0.25 + (e as f32 - t as f32) / 32.0
        });
        let sigma = Array2::from_shape_fn(batch.logits.raw_dim(), |(t, e)| 1.0 + (t * 3 + e * 5) as f32 % 8.0 / 8.0);
        let of = |clean: ArrayView2<'_, f32>, noisy: ArrayView2<'_, f32>, sigma: ArrayView2<'_, f32>| {
            Load::excluding_self(&RouteInput::new(clean, batch.context()).unwrap(), noisy, k, sigma).unwrap().value()
        };
        let (clean, n, s) = (batch.logits.view(), noisy.view(), sigma.view());
        let gradient = Load::excluding_self(&batch.input(), n, k, s).unwrap().gradient().unwrap();
        let off = [
            distance(&batch.logits, &gradient.logits, |l| of(l, n, s)),
            distance(&noisy, &gradient.noisy, |l| of(clean, l, s)),
            distance(&sigma, &gradient.sigma, |l| of(clean, n, l)),
        ];
        prop_assert!(off.iter().all(|&off| off < BOUND), "{:?}", off);
    }

    #[test]
    fn weighting(batch in batches(), refused_too: bool, scale in 0.5f32..3.0) {
        let plan = batch.plan();
        let upstream: Vec<f32> = (0..plan.rows()).map(|r| (r * 5 % 7) as f32 / 4.0 - 0.8).collect();
        let scores = [Score::Logit, Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus];
        let normalizers = [
            Normalizer::None,
            Normalizer::Softmax,
            Normalizer::Sum { epsilon: 0.0 },
            Normalizer::Sum { epsilon: 0.25 },
            // Floors below and above every sum.
            Normalizer::SumAtLeast { floor: 1e-9 },
            Normalizer::SumAtLeast { floor: 100.0 },
            Normalizer::Norm { p: 1.0 },
            Normalizer::Norm { p: 2.0 },
            Normalizer::Norm { p: 3.5 },
        ];
        for (score, normalizer) in scores.into_iter().flat_map(|s| normalizers.map(|n| (s, n))) {
            // A sum of logits may be zero.
            if score == Score::Logit && !matches!(normalizer, Normalizer::None | Normalizer::Softmax) {
                continue;
            }
            let mut weighting = Weighting::new(score).normalized(normalizer).unwrap().scaled(scale).unwrap();
            if refused_too {
                weighting = weighting.over_refused_too();
            }
            let loss = |l: ArrayView2<'_, f32>| {
                let terms = weighting.weights(l, &plan).unwrap().into_iter().zip(&upstream);
                terms.map(|(w, &u)| w * f64::from(u)).sum::<f64>()
            };
            let gradient = weighting.gradient(batch.logits.view(), &plan, &upstream).unwrap();
            let off = distance(&batch.logits, &gradient, loss);
            prop_assert!(off < BOUND, "{:?} {:?}: {}", score, normalizer, off);
        }
    }
}

/// What the forward weights are, by hand.
#[test]
fn weights_by_hand() {
    let ln = |x: f32| x.ln();
    // Softmax 0.1, 0.3, 0.6; experts 2 and 1 chosen, 1 refused.
    let mut batch = Batch::plain(ndarray::array![[ln(1.0), ln(3.0), ln(6.0)]], &[&[2, 1]]);
    batch.choices[0][1].1 = false;
    let plan = batch.plan();
    let weight = |w: Weighting| w.weights(batch.logits.view(), &plan).unwrap()[0];
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    let sum = Normalizer::Sum { epsilon: 0.0 };
    let of = |score, normalizer| Weighting::new(score).normalized(normalizer).unwrap();
    let over_all = |normalizer| of(Score::Softmax, normalizer);
    near(weight(over_all(Normalizer::None)), 0.6);
    near(weight(over_all(sum)), 1.0);
    near(weight(over_all(sum).over_refused_too()), 0.6 / 0.9);
    near(weight(over_all(Normalizer::Sum { epsilon: 0.4 }).scaled(2.5).unwrap()), 1.5);
    near(weight(over_all(Normalizer::SumAtLeast { floor: 0.8 })), 0.75);
    near(weight(over_all(Normalizer::Norm { p: 2.0 }).over_refused_too()), 0.6 / 0.45f64.sqrt());
    near(weight(of(Score::Logit, Normalizer::None)), 6f64.ln());
    near(weight(of(Score::Logit, Normalizer::Softmax).over_refused_too()), 6.0 / 9.0);
    near(weight(of(Score::Sigmoid, Normalizer::None)), 6.0 / 7.0);
    near(weight(of(Score::SqrtSoftplus, Normalizer::None)), 7f64.ln().sqrt());
    for wrong in [Normalizer::Norm { p: 0.0 }, Normalizer::Sum { epsilon: f32::NAN }] {
        assert!(Weighting::new(Score::Softmax).normalized(wrong).is_err());
    }
    assert!(Weighting::new(Score::Softmax).scaled(f32::INFINITY).is_err());
}

/// The norm of order infinity is the greatest magnitude, of logits too; its derivative is that one's sign, shared by equals.
#[test]
fn infinite_norms_by_hand() {
    let infinite = Normalizer::Norm { p: f32::INFINITY };
    let weighting = Weighting::new(Score::Logit).normalized(infinite).unwrap();
    let batch = Batch::plain(ndarray::array![[1.0f32, -4.0, 3.0], [2.0, 2.0, 9.0]], &[&[0, 1], &[0, 1]]);
    let plan = batch.plan();
    let mut weights = weighting.weights(batch.logits.view(), &plan).unwrap();
    weights.sort_by(f64::total_cmp);
    assert_eq!(weights, [-1.0, 0.25, 1.0, 1.0]);
    // w = l₀/|l₁| with l₁ = -4: ∂w/∂l₀ = 1/4, ∂w/∂l₁ = 1/16. Then w = l₀/max, both 2: ∂w/∂l₀ = 1/2 - 1/4.
    let of_first = plan.row_experts().iter().map(|&e| if e == 0 { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
    let gradient = weighting.gradient(batch.logits.view(), &plan, &of_first).unwrap();
    assert_eq!(gradient, ndarray::array![[0.25, 0.0625, 0.0], [0.25, -0.25, 0.0]]);
    let cubic = Weighting::new(Score::Logit).normalized(Normalizer::Norm { p: 3.0 }).unwrap();
    let distance =
        distance(&batch.logits, &cubic.gradient(batch.logits.view(), &plan, &of_first).unwrap(), |l| {
            cubic.weights(l, &plan).unwrap().iter().zip(&of_first).map(|(w, u)| w * f64::from(*u)).sum()
        });
    assert!(distance < BOUND, "{distance}");
}

/// Scores that are 0 in f64, whose ratios are not: weights and gradients are those of the ratios.
#[test]
fn ratios_of_scores_too_small_to_divide() {
    let far = Batch::plain(ndarray::array![[-1000.0f32, -1001.0, -1000.5, 0.0]], &[&[0, 1, 2]]);
    let plan = far.plan();
    let divided = |score, normalizer| Weighting::new(score).normalized(normalizer).unwrap();
    for score in [Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus] {
        for normalizer in [
            Normalizer::Sum { epsilon: 0.0 },
            Normalizer::SumAtLeast { floor: 0.0 },
            Normalizer::Norm { p: 0.5 },
            Normalizer::Norm { p: 2.0 },
            Normalizer::Norm { p: f32::INFINITY },
        ] {
            let weighting = divided(score, normalizer);
            let weights = weighting.weights(far.logits.view(), &plan).unwrap();
            // √ makes half of a distance of logits.
            let by = if score == Score::SqrtSoftplus { 0.5 } else { 1.0 };
            let ratio = weights[1] / weights[0];
            assert!((ratio.ln() + by).abs() < 1e-12, "{score:?} {normalizer:?}: {weights:?}");
            let of = |l: ArrayView2<'_, f32>| weighting.weights(l, &plan).unwrap()[1];
            let gradient = weighting.gradient(far.logits.view(), &plan, &[0.0, 1.0, 0.0]).unwrap();
            let off = distance(&far.logits, &gradient, of);
            assert!(off < BOUND, "{score:?} {normalizer:?}: {off}");
            assert!(gradient[[0, 0]] < -0.01, "{gradient}");
        }
    }
    // Scores of 0 exactly are no ratio.
    let closed = Batch::plain(ndarray::array![[f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]], &[&[0, 1]]);
    let weighting = divided(Score::Sigmoid, Normalizer::Sum { epsilon: 0.0 });
    assert!(weighting.weights(closed.logits.view(), &closed.plan()).unwrap().iter().all(|w| w.is_nan()));
}

/// A score of exactly 0 has derivative 0, not NaN.
#[test]
fn the_far_end_of_softplus() {
    let batch = Batch::plain(ndarray::array![[-1e4f32, 0.0]], &[&[0, 1]]);
    let weighting = ScoredTopK::deepseek_v4(2, [], 1.0).unwrap().weighting();
    let gradient = weighting.gradient(batch.logits.view(), &batch.plan(), &[1.0, 2.0]).unwrap();
    assert_eq!(gradient[[0, 0]], 0.0);
    assert!(gradient[[0, 1]].is_finite());
}

/// SparseMixer's second choice has the constant weight 0 where the first leaves nothing open.
#[test]
fn sparse_mixer_with_one_expert_open() {
    const OUT: f32 = f32::NEG_INFINITY;
    let logits = ndarray::array![[1.0, OUT, OUT], [1.0, OUT, 0.995]];
    let gradient =
        SparseMixer::new(0.01).gradient(logits.view(), &[[0, 1], [0, 2]], &[[1.0, 1.0]; 2]).unwrap();
    assert!(gradient.row(0).iter().all(|&d| d == 0.0), "{gradient}");
    assert!(gradient[[1, 0]] > 0.2 && gradient[[1, 1]] == 0.0, "{gradient}");
}
