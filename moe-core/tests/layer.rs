//! Laws of the layer. Equal means equal bits unless a bound is named.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod common;

use common::{Best, Fixed, Linear, bits, forward, layer, linear_f64, matrix, weights};
use moe_core::{
    ApplyWeights, Assignments, Expert, Locality, PerSequence, Result, RouteInput, Routed, Router,
    TokenContext, Workspace,
};
use ndarray::{Array2, Axis, s};
use proptest::prelude::*;

const DIM: usize = 19;

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..Default::default() })]

    #[test]
    fn permuting_tokens_permutes_outputs(tokens in 0usize..30, experts in 2usize..9, seed in 0usize..1000) {
        let layer = layer(experts, DIM, Best(2));
        let hidden = matrix(seed, tokens, DIM);
        let mut order: Vec<usize> = (0..tokens).collect();
        order.sort_by_key(|&t| (t * 7919 + seed) % 31);
        let y = forward(&layer, hidden.view()).unwrap();
        let permuted = forward(&layer, hidden.select(Axis(0), &order).view()).unwrap();
        prop_assert_eq!(bits(&permuted), bits(&y.select(Axis(0), &order)));
    }

    #[test]
    fn a_token_alone_is_the_token_in_any_batch(tokens in 1usize..30, experts in 2usize..9, seed in 0usize..1000) {
        let layer = layer(experts, DIM, Best(2));
        let hidden = matrix(seed, tokens, DIM);
        let together = forward(&layer, hidden.view()).unwrap();
        // One workspace for all: what a call leaves there must not show in the next.
        let mut workspace = Workspace::new();
        for t in 0..tokens {
            let mut y = Array2::zeros((1, DIM));
            let alone = hidden.slice(s![t..=t, ..]);
            layer.forward(alone, TokenContext::new(), &mut workspace, &mut (), y.view_mut()).unwrap();
            prop_assert_eq!(bits(&y), bits(&together.slice(s![t..=t, ..]).to_owned()));
        }
    }

    #[test]
    fn all_experts_are_the_dense_mixture(tokens in 1usize..9, experts in 1usize..9, seed in 0usize..1000) {
        let layer = layer(experts, DIM, Best(experts));
        let hidden = matrix(seed, tokens, DIM);
        let y = forward(&layer, hidden.view()).unwrap();
        let weights = weights(experts, DIM);
        for (x, y) in hidden.rows().into_iter().zip(y.rows()) {
            let exp: Vec<f64> = x.iter().take(experts).map(|&l| f64::from(l).exp()).collect();
            let total: f64 = exp.iter().sum();
            let (mut exact, mut size) = (vec![0.0; DIM], vec![0.0; DIM]);
            for (w, p) in weights.iter().zip(exp.iter().map(|e| e / total)) {
                for (i, v) in linear_f64(w, &x.to_owned()).iter().enumerate() {
                    exact[i] += p * v;
                }
                for (i, v) in linear_f64(&w.mapv(f32::abs), &x.mapv(f32::abs)).iter().enumerate() {
                    size[i] += p * v;
                }
            }
            for i in 0..DIM {
                let off = (f64::from(y[i]) - exact[i]).abs();
                prop_assert!(off <= size[i] * mixture_bound(experts), "{off:e} of {:e}", size[i]);
            }
        }
    }

    #[test]
    fn one_expert_of_weight_one_is_the_expert(tokens in 0usize..9, seed in 0usize..1000) {
        let hidden = matrix(seed, tokens, DIM);
        let y = forward(&layer(1, DIM, Best(1)), hidden.view()).unwrap();
        let mut expected = Array2::zeros((tokens, DIM));
        Linear(weights(1, DIM).remove(0)).forward(hidden.view(), expected.view_mut()).unwrap();
        // Not by bits: a sum that starts from zero has no negative zero.
        prop_assert_eq!(y, expected);
    }
}

/// Relative to `Σ wₑ Σ |W||x|`, in units of 2⁻²⁴.
///
/// A weight: exp is 1.05 ulp off (2.1 units), its argument, at most 2 for logits within ±1, half an ulp of 2 (2 units), both in
/// numerator and denominator; the sum of up to 16 terms is a tree of 4 and one more; one division. An output: a dot product of
/// less than 512 terms is a chain of ⌈D/16⌉ and a tree of 4 and the block sum; then one product and E sums.
fn mixture_bound(experts: usize) -> f64 {
    let weight = 2.0 * (2.1 + 2.0) + 5.0 + 1.0;
    let output = DIM.div_ceil(16) as f64 + 5.0 + 1.0 + experts as f64;
    // One percent for the products of errors.
    1.01 * (weight + output) / f64::from(1 << 24)
}

#[test]
fn a_token_that_no_expert_received_is_zero() {
    let hidden = matrix(3, 4, DIM);
    let layer = layer(3, DIM, Fixed(vec![(0, 2, 0.5), (3, 0, 1.5)]));
    let y = forward(&layer, hidden.view()).unwrap();
    assert_eq!(bits(&y.slice(s![1..3, ..]).to_owned()), vec![0; 2 * DIM]);
    assert!(y.row(0).iter().any(|&v| v != 0.0) && y.row(3).iter().any(|&v| v != 0.0));
}

#[test]
fn weights_apply_to_output_or_input() {
    let hidden = matrix(4, 5, DIM);
    let pairs = vec![(0, 1, 0.5), (1, 0, 0.25), (2, 1, 2.0), (3, 0, -4.0)];
    let output = forward(&layer(2, DIM, Fixed(pairs.clone())), hidden.view()).unwrap();
    let layer = layer(2, DIM, Fixed(pairs)).applying_weights(ApplyWeights::Input);
    // Powers of two scale a linear expert exactly, so both places give the same numbers.
    assert_eq!(forward(&layer, hidden.view()).unwrap(), output);
}

#[test]
fn the_observer_sees_plan_logits_and_layer() {
    let layer = layer(3, DIM, Best(2)).with_index(7);
    let hidden = matrix(5, 4, DIM);
    let mut seen = 0;
    let mut observer = |routed: &Routed<'_>| {
        seen += 1;
        assert_eq!((routed.layer, routed.context.layer), (7, 7));
        assert_eq!(routed.context.positions, [3, 4, 5, 6]);
        assert_eq!(routed.logits, hidden.slice(s![.., ..3]));
        assert_eq!((routed.plan.tokens(), routed.plan.experts(), routed.plan.rows()), (4, 3, 8));
    };
    let context = TokenContext::new().with_positions(&[3, 4, 5, 6]);
    let mut workspace = Workspace::new();
    let mut y = Array2::zeros((4, DIM));
    layer.forward(hidden.view(), context, &mut workspace, &mut observer, y.view_mut()).unwrap();
    assert_eq!(seen, 1);
    assert_eq!(workspace.plan().rows(), 8);
}

#[test]
fn each_sequence_has_its_own_router() {
    /// Checks that it sees one sequence, and gives every token one expert.
    struct All(usize, usize);
    impl Router for All {
        fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
            assert_eq!((input.tokens(), input.context.sequences()), (self.1, 1));
            (0..input.tokens()).for_each(|t| out.assign(t, self.0, 1.0));
            Ok(())
        }

        fn locality(&self) -> Locality {
            Locality::Causal
        }
    }
    let (first, third) = (All(2, 2), All(0, 3));
    let routers: [&dyn Router; 3] = [&first, &Best(1), &third];
    let router = PerSequence::of(&routers);
    assert_eq!(router.locality(), Locality::Causal);

    let (layer, hidden) = (layer(3, DIM, Best(1)), matrix(6, 6, DIM));
    let mut workspace = Workspace::new();
    let mut y = Array2::zeros((6, DIM));
    let mut run = |offsets: &[usize]| {
        let context = TokenContext::new().with_sequences(offsets);
        layer.forward_with(&router, hidden.view(), context, &mut workspace, &mut (), y.view_mut())?;
        let expert = |t| workspace.plan().choices(t).map(|c| c.expert).collect::<Vec<_>>();
        Ok::<_, moe_core::Error>((0..6).map(expert).collect::<Vec<_>>())
    };
    let logits = hidden.slice(s![2, ..3]);
    let best = (0..3).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    assert_eq!(run(&[0, 2, 3, 6]).unwrap(), [vec![2], vec![2], vec![best], vec![0], vec![0], vec![0]]);
    let error = run(&[0, 2, 6]).unwrap_err().to_string();
    assert_eq!(error, "router: one router a sequence: expected 3 sequences, found 2");
}
