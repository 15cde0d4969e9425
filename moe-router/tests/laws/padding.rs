//! Padding counts nowhere, whatever it holds.

use moe_core::{Expert, LinearGate, MoeLayer, PerExpert, Routed, RoutingPlan, TokenContext, Workspace};
use moe_router::losses::{Affinity, Entropy, Importance, Load, LoadBalance, SequenceBalance, ZLoss};
use moe_router::metrics::Confidence;
use moe_router::{BiasBalancer, ExpertGroups, ScoredTopK, ThresholdEma, TopK};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, array};
use proptest::prelude::*;

use crate::listed::{Batch, batches, config, decisions, route, routers};

/// The batch with this in every number of its padding.
fn holding(batch: &Batch, value: f32) -> Array2<f32> {
    let mut logits = batch.logits.clone();
    for (mut row, &padding) in logits.rows_mut().into_iter().zip(&batch.padding) {
        if padding {
            row.fill(value);
        }
    }
    logits
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_padding_holds_changes_nothing(batch in batches()) {
        let zeros = holding(&batch, 0.0);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let logits = holding(&batch, value);
            for listed in batch.routers() {
                let expected = route(&*listed.router, zeros.view(), batch.padded());
                let plan = route(&*listed.router, logits.view(), batch.padded());
                for t in 0..batch.tokens() {
                    prop_assert_eq!(decisions(&plan, t), decisions(&expected, t), "{}: token {}", &listed.name, t);
                    prop_assert!(!batch.padding[t] || decisions(&plan, t).is_empty(), "{}: token {}", &listed.name, t);
                }
                prop_assert_eq!(plan.stats(), expected.stats(), "{}", &listed.name);
            }
        }
    }

    #[test]
    fn losses_metrics_and_thresholds_see_no_padding(batch in batches()) {
        let (zeros, nans) = (holding(&batch, 0.0), holding(&batch, f32::NAN));
        let top = TopK::new(2.min(batch.experts())).unwrap();
        let numbers = |logits: &Array2<f32>| {
            let plan = route(&top, logits.view(), batch.padded());
            let routed = Routed::new(logits.view(), &plan, batch.padded()).unwrap();
            let input = routed.input();
            let sigma = logits.mapv(|l| if l.is_nan() { l } else { 1.0 });
            let mut confidence = Confidence::default();
            confidence.add(&input);
            let mut found = vec![
                LoadBalance::over_all(&[routed]).value(),
                LoadBalance::per_sequence(&routed).value(),
                SequenceBalance::of(&routed, Affinity::Sigmoid).value(),
                Importance::of(&input).value(),
                Load::of(&input, logits.view(), 1, 1.0).unwrap().value(),
                ZLoss::of(&input).value(),
                Entropy::of(&input).value(),
                confidence.margin(),
            ];
            found.extend(ZLoss::of(&input).gradient().unwrap());
            found.extend(LoadBalance::per_sequence(&routed).gradient().unwrap());
            if batch.experts() > 1 {
                found.push(Load::excluding_self(&input, logits.view(), 1, sigma.view()).unwrap().value());
            }
            let mut thresholds = ThresholdEma::new(1.0, 0.5).unwrap();
            thresholds.update_over(&input).unwrap();
            (found, thresholds.router())
        };
        let (found, thresholds) = numbers(&nans);
        prop_assert!(found.iter().all(|x| x.is_finite()), "{:?}", found);
        let present: Vec<usize> = (0..batch.tokens()).filter(|&t| !batch.padding[t]).collect();
        let mut alone = ThresholdEma::new(1.0, 0.5).unwrap();
        alone.update(batch.select(&present).view()).unwrap();
        prop_assert_eq!(&thresholds, &alone.router());
        prop_assert_eq!((found, thresholds), numbers(&zeros));
    }
}

/// Loads of 3, 4, 4 and 5 of 16 tokens, and eight of padding that would all choose expert 0.
fn sixteen_and_padding() -> (Array2<f32>, Vec<bool>) {
    let favourite = |t: usize| [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3].get(t).copied().unwrap_or(0);
    let logits =
        Array2::from_shape_fn((24, 4), |(t, e)| if e == favourite(t) { 2.0 } else { 0.1 * e as f32 });
    (logits, (0..24).map(|t| t >= 16).collect())
}

fn deepseek() -> ScoredTopK {
    ScoredTopK::deepseek_v3(1, [], ExpertGroups::by_two_best(1, 1).unwrap(), 1.0).unwrap()
}

#[test]
fn loads_by_hand() {
    let (logits, padding) = sixteen_and_padding();
    let context = TokenContext::new().with_padding(&padding);
    let stats = route(&deepseek(), logits.view(), context).stats();
    assert_eq!((&*stats.load, &*stats.requested_load), (&[3, 4, 4, 5][..], &[3, 4, 4, 5][..]));
    // Population variance (1 + 0 + 0 + 1) / 4 over a mean of 4.
    assert!((stats.cv - 0.5f32.sqrt() / 4.0).abs() < 1e-7, "{}", stats.cv);
    assert_eq!((stats.max_over_mean, stats.idle), (1.25, 0));
    // Every weight is 1 but for the epsilon.
    assert!(stats.importance.iter().zip([3.0, 4.0, 4.0, 5.0]).all(|(w, n)| (w - n).abs() < 1e-5));
}

#[test]
fn biases_move_by_the_load_of_real_tokens() {
    let (logits, padding) = sixteen_and_padding();
    let plan = route(&deepseek(), logits.view(), TokenContext::new().with_padding(&padding));
    let mut balancer = BiasBalancer::new(4, 0.001).unwrap();
    balancer.update(&plan.stats().requested_load).unwrap();
    assert_eq!(balancer.biases(), [0.001, 0.0, 0.0, -0.001]);
}

#[test]
fn nan_in_padding_by_hand() {
    let logits = array![[1.0, 0.0], [0.0, 1.0], [f32::NAN, f32::NAN]];
    let padding = [false, false, true];
    let plan = route(&TopK::new(1).unwrap(), logits.view(), TokenContext::new().with_padding(&padding));
    let pairs: Vec<_> = plan.row_tokens().iter().zip(plan.row_experts()).collect();
    assert_eq!(pairs, [(&0, &0), (&1, &1)]);
}

/// A layer gives padding a row of zeros, and the others what they have without it.
#[test]
fn a_layer_looks_at_no_padding() {
    struct Double;
    impl Expert for Double {
        fn dim(&self) -> usize {
            4
        }
        fn forward(
            &self,
            rows: ArrayView2<'_, f32>,
            mut out: ArrayViewMut2<'_, f32>,
        ) -> moe_core::Result<()> {
            out.zip_mut_with(&rows, |out, x| *out = 2.0 * x);
            Ok(())
        }
    }
    let bank = PerExpert::new((0..4).map(|_| Double).collect()).unwrap();
    let gate = LinearGate::new(Array2::eye(4));
    let layer = MoeLayer::new(Box::new(gate), Box::new(TopK::new(2).unwrap()), Box::new(bank)).unwrap();
    let (mut hidden, padding) = (Array2::eye(4), [false, true, false, true]);
    hidden.row_mut(1).fill(f32::NAN);
    hidden.row_mut(3).fill(f32::INFINITY);
    let (mut workspace, mut y) = (Workspace::new(), Array2::ones((4, 4)));
    let context = TokenContext::new().with_padding(&padding);
    layer.forward(hidden.view(), context, &mut workspace, &mut (), y.view_mut()).unwrap();
    assert_eq!((y.row(1).sum(), y.row(3).sum()), (0.0, 0.0));
    assert!((y[[0, 0]] - 2.0).abs() < 1e-6 && (y[[2, 2]] - 2.0).abs() < 1e-6, "{y}");
    // Of a token that is none, NaN is an error still.
    let padding = [false, true, false, false];
    let context = TokenContext::new().with_padding(&padding);
    let error = layer.forward(hidden.view(), context, &mut workspace, &mut (), y.view_mut()).unwrap_err();
    assert!(error.to_string().contains("token 3"), "{error}");
}

#[test]
fn nothing_but_padding() {
    let logits = Array2::from_elem((3, 4), f32::NAN);
    let context = TokenContext::new().with_padding(&[true; 3]);
    for listed in routers(4) {
        let plan: RoutingPlan = route(&*listed.router, logits.view(), context);
        assert_eq!((plan.rows(), plan.refused().len()), (0, 0), "{}", listed.name);
    }
}
