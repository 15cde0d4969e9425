//! Balance by biases: the rules by hand, and the quantile of one step.

use moe_core::{RouteInput, TokenContext};
use moe_router::{BiasBalancer, Score, ScoredTopK, quantile_biases};
use ndarray::{Array2, ArrayView2, array, s};
use proptest::prelude::*;

use crate::listed::{batches, config, route};

fn assert_near(found: &[f32], expected: &[f64]) {
    let near = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 1e-6;
    assert!(found.len() == expected.len() && found.iter().zip(expected).all(near), "{found:?}, {expected:?}");
}

#[test]
fn balance_comes_from_biases_alone() {
    const EXPERTS: usize = 8;
    // Experts of lower index are liked better by far.
    let noise = |t: usize, e: usize| ((t * 31 + e * 17 + t * e) % 97) as f32 / 97.0;
    let logits = Array2::from_shape_fn((256, EXPERTS), |(t, e)| noise(t, e) - 0.5 * e as f32);
    let mut router = ScoredTopK::new(2, Score::Sigmoid).unwrap();
    let mut balancer = BiasBalancer::new(EXPERTS, 0.01).unwrap();
    let imbalance = |router: &ScoredTopK| {
        let stats = route(router, logits.view(), TokenContext::new()).stats();
        (stats.max_over_mean, stats.requested_load)
    };
    let before = imbalance(&router).0;
    for _ in 0..200 {
        balancer.update(&imbalance(&router).1).unwrap();
        router.set_bias(balancer.biases()).unwrap();
    }
    let after = imbalance(&router).0;
    assert!(before > 3.0 && after < 1.3, "{before} to {after}");
    assert!(router.bias().is_sorted(), "{:?}", router.bias());
}

#[test]
fn the_balancer_compares_exactly() {
    let mut balancer = BiasBalancer::resume([0.5, 0.25, -0.5], 0.125).unwrap();
    // The mean is a third above the second load.
    balancer.update(&[2, 1, 1]).unwrap();
    assert_eq!(balancer.biases(), [0.375, 0.375, -0.375]);
    balancer.update(&[usize::MAX, usize::MAX, usize::MAX - 1]).unwrap();
    assert_eq!(balancer.biases(), [0.25, 0.25, -0.25]);
    balancer.update(&[0, 0, 0]).unwrap();
    balancer.update(&[7, 7, 7]).unwrap();
    assert_eq!(balancer.biases(), [0.25, 0.25, -0.25]);
    let message = balancer.update(&[1, 2]).unwrap_err().to_string();
    assert_eq!(message, "expert load: expected 3 entries, found 2");
    for step in [-0.1, f32::NAN, f32::INFINITY] {
        assert!(BiasBalancer::new(2, step).is_err());
    }
    assert!(BiasBalancer::resume([f32::NAN], 0.1).is_err());
}

#[test]
fn rules_by_hand() {
    let load = [6, 2, 0, 0];
    let of = |balancer: BiasBalancer| {
        let mut balancer = balancer;
        balancer.update(&load).unwrap();
        balancer.biases().to_vec()
    };
    let start = || BiasBalancer::new(4, 0.1).unwrap();
    assert_eq!(of(start()), [-0.1, 0.0, 0.1, 0.1]);
    assert_near(&of(start().proportional()), &[-0.05, 0.0, 0.025, 0.025]);
    // (mean - load) / mean: -2, 0, 1, 1.
    let clamped = [-2.0, 0.0, 1.0, 1.0].map(|v: f64| 0.1 * (0.5 * v).tanh());
    assert_near(&of(start().soft_clamped(0.5).unwrap()), &clamped);
    assert_near(&of(start().centred()), &[-0.125, -0.025, 0.075, 0.075]);
    let mut moved = start().with_momentum(0.75).unwrap();
    moved.update(&load).unwrap();
    assert_near(moved.biases(), &[-0.025, 0.0, 0.025, 0.025]);
    moved.update(&[2, 2, 2, 2]).unwrap();
    // Nothing more to move, but for three quarters of the last move.
    assert_near(moved.biases(), &[-0.043_75, 0.0, 0.043_75, 0.043_75]);
    for balancer in [start(), start().proportional(), start().soft_clamped(1.0).unwrap().centred()] {
        let mut balancer = balancer;
        balancer.update(&[0; 4]).unwrap();
        assert_eq!(balancer.biases(), [0.0; 4], "no load, no move");
    }
    for wrong in [-1.0, 1.0, f32::NAN] {
        assert!(start().with_momentum(wrong).is_err());
    }
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(start().soft_clamped(wrong).is_err());
    }
}

proptest! {
    #![proptest_config(config())]

    /// A centred balancer moves its biases' mean by no more than rounding, and no rule prefers the busier of two experts.
    #[test]
    fn busier_experts_get_no_more(load in proptest::collection::vec(0usize..1000, 1..20), kappa in 0.1f32..4.0) {
        let start = || BiasBalancer::new(load.len(), 0.01).unwrap();
        for balancer in [start(), start().proportional(), start().soft_clamped(kappa).unwrap()] {
            let mut balancer = balancer.centred();
            balancer.update(&load).unwrap();
            let biases = balancer.biases();
            let sum: f32 = biases.iter().sum();
            prop_assert!(sum.abs() <= 1e-6 * load.len() as f32, "{sum}");
            for (i, j) in (0..load.len()).flat_map(|i| (0..load.len()).map(move |j| (i, j))) {
                prop_assert!(load[i] <= load[j] || biases[i] <= biases[j]);
            }
        }
    }

    /// Masks and padding are as absent rows and pairs.
    #[test]
    fn quantiles_see_no_padding(batch in batches(), k in 1usize..4) {
        prop_assume!(k < batch.experts());
        fn of(logits: ArrayView2<'_, f32>, context: TokenContext<'_>, k: usize) -> Vec<f32> {
            quantile_biases(&RouteInput::new(logits, context).unwrap(), Score::Sigmoid, k).unwrap()
        }
        let kept: Vec<usize> = (0..batch.tokens()).filter(|&t| !batch.padding[t]).collect();
        let found = of(batch.logits.view(), batch.padded(), k);
        prop_assert_eq!(&found, &of(batch.select(&kept).view(), TokenContext::new(), k));
        let mut wider = Array2::from_elem((batch.tokens(), batch.experts() + 1), f32::NEG_INFINITY);
        wider.slice_mut(s![.., 1..]).assign(&batch.logits);
        let wider = of(wider.view(), batch.padded(), k);
        prop_assert_eq!(wider[0], 0.0);
    }
}

#[test]
fn a_quantile_by_hand() {
    // k = 1 of 2: α is the lesser score; what is lacked is 0 or the difference below 0, and the median is between.
    let logits = array![[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]];
    let input = RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    // Expert 0 lacks -1, -3, 0: median -1. Expert 1 lacks 0, 0, -2: median 0. Centred.
    assert_eq!(quantile_biases(&input, Score::Logit, 1).unwrap(), [-0.5, 0.5]);
    for k in [0, 2] {
        assert!(quantile_biases(&input, Score::Logit, k).is_err());
    }
    let nan = array![[1.0, f32::NAN]];
    let error = quantile_biases(&RouteInput::new(nan.view(), TokenContext::new()).unwrap(), Score::Logit, 1);
    assert!(error.unwrap_err().to_string().contains("finite scores, found NaN for token 0, expert 1"));
}

/// Logits of 64 tokens over 8 experts that prefer the lower ones; the answers are numpy's `quantile` of the same.
#[test]
fn one_step_against_numpy() {
    #[rustfmt::skip]
    let logits = Array2::from_shape_vec((64, 8), vec![
        1.559, 2.368, -1.272, 1.858, -0.219, -1.314, -1.66, -2.283,
        0.976, 1.691, 1.098, 0.81, -1.866, -2.085, 0.697, -0.231,
        3.383, 2.067, -0.51, 1.457, 0.457, -0.299, -1.677, -1.197,
        1.053, 1.75, 0.639, 1.756, -0.946, -0.043, -0.358, -2.064,
        0.019, 1.871, 1.032, 0.009, 0.223, -1.19, -0.619, -1.805,
        1.389, 1.843, 0.175, 1.021, -1.206, -0.803, -2.222, -1.301,
        1.279, 0.66, 0.247, 1.512, 1.252, -1.73, 0.317, -2.923,
        0.466, 0.684, 0.625, -0.876, -0.894, -0.438, -1.551, -1.841,
        1.866, 1.789, 0.454, 0.19, -0.191, -0.969, -1.369, -2.238,
        1.848, 0.773, 0.377, 0.372, 0.359, 0.907, -1.131, -1.601,
        1.401, 0.012, 1.787, 1.098, 0.522, -0.634, -0.118, -0.15,
        1.7, 0.577, -1.171, 1.118, -0.525, -1.358, 0.033, -0.862,
        -0.219, 0.758, 0.245, 1.164, -2.067, -0.9, -0.995, 0.219,
        0.117, -2.083, -0.87, 0.434, 0.638, 1.219, -0.456, -2.002,
        2.084, 0.846, 0.313, 0.189, 1.103, -1.416, -1.881, -1.267,
        1.133, 0.043, -0.365, 0.549, 1.166, 0.199, -0.172, 0.046,
        -0.791, -0.653, -0.191, -1.024, -1.161, -0.444, -2.142, -1.643,
        -0.843, -0.117, 1.86, -0.371, 0.153, 0.194, -1.348, -0.621,
        1.415, 1.555, -0.121, -1.269, -1.194, -1.069, -0.321, -1.404,
        0.801, 0.677, 1.614, -0.404, 1.34, -1.742, -1.449, -0.345,
        1.718, 0.002, 0.405, -0.538, 0.68, 0.025, -1.57, -0.803,
        0.833, 0.785, 0.579, -0.393, 0.254, -0.054, -0.431, -0.095,
        0.928, -0.626, 0.025, 0.372, -0.149, 0.064, -0.051, -1.318,
        1.09, -0.13, 1.547, -0.093, -1.255, -1.629, -1.272, 0.355,
        1.973, -0.837, 0.391, 0.435, 0.455, -0.171, -1.498, -0.788,
        0.646, -1.384, -0.195, -0.515, 0.782, 0.542, -1.902, -1.026,
        1.29, -0.579, -1.539, 0.079, -0.035, -1.109, -3.568, -1.229,
        0.621, -0.032, 0.19, -0.957, 0.388, -0.504, -1.417, -0.918,
        1.168, -0.661, 0.37, -0.286, -1.912, -1.166, -0.431, -1.819,
        2.608, 2.555, 0.208, 0.725, 1.821, -0.846, -1.756, -1.622,
        -0.174, -0.492, 0.723, -0.245, 0.075, -0.026, -1.621, -1.394,
        0.931, 0.188, -0.322, 0.487, -0.312, -0.182, 0.144, -0.186,
        0.088, 0.001, 0.258, 0.295, 0.767, -1.476, -1.294, -0.953,
        2.429, 2.236, -0.492, -0.041, -0.979, 0.333, -0.41, -1.558,
        0.589, 1.152, 1.495, -0.596, -0.495, -0.401, -0.839, -0.862,
        0.2, 0.262, -1.586, 0.227, 0.899, -2.571, -1.489, -0.301,
        1.057, -1.038, 1.683, -1.255, 1.199, -1.099, -1.564, -1.173,
        1.178, 1.458, 1.017, 0.023, 1.151, 0.199, -0.583, -1.065,
        1.105, 0.78, 1.179, 0.646, -0.132, 0.501, -1.119, -0.764,
        2.06, -0.258, 0.25, 1.84, -1.129, 0.638, -1.917, -0.794,
        0.136, 0.241, 0.139, -0.377, 0.837, 0.319, 0.013, -1.007,
        2.837, 1.886, 0.839, -0.877, 0.514, 0.138, -0.763, -0.487,
        1.97, 0.559, 1.08, 0.518, 0.142, -0.856, -1.32, -1.081,
        2.632, 3.183, 0.144, -0.883, -0.513, -1.349, -1.274, -0.803,
        0.286, 1.466, 1.306, 1.688, 1.648, 0.484, 1.41, -1.7,
        1.476, 1.029, 0.953, 1.196, -0.495, 1.199, 0.419, -0.847,
        1.672, -0.106, -1.962, 0.091, 0.153, -0.279, -1.947, -1.642,
        2.959, 1.593, 1.139, -0.128, 0.575, 0.778, -0.091, -1.593,
        1.495, -0.007, 0.223, 0.773, -0.691, -0.732, 0.583, -1.354,
        1.975, 0.572, -0.603, 0.19, -0.515, -2.498, -2.037, -1.603,
        2.68, 0.301, 0.497, 0.811, 0.132, -0.835, 0.846, 0.144,
        -1.206, 1.825, 1.069, 1.158, -0.068, 0.319, 1.07, 0.513,
        2.99, 1.917, 1.445, 1.121, -1.266, 1.755, -0.606, -0.862,
        1.334, 1.343, -1.574, 0.415, -1.413, -1.477, -2.687, -2.889,
        1.796, 0.385, 0.425, 0.015, -1.311, -1.205, -2.096, -1.498,
        -0.995, 0.476, 1.427, 1.378, 0.972, -0.016, -1.85, -0.294,
        1.721, 1.126, -0.686, 0.563, 1.234, 0.226, -1.081, -0.655,
        1.206, 1.037, 1.357, 0.515, -0.097, -0.13, -1.67, -2.188,
        1.683, 0.269, 1.071, -1.656, 1.02, -0.613, 0.799, -3.659,
        -0.47, 2.254, 0.672, 0.476, -0.045, -0.352, -0.319, -2.199,
        1.038, 2.154, 0.699, -0.44, -0.071, 0.529, -1.05, -1.371,
        1.694, 1.709, 1.988, 0.05, 0.182, 0.531, -2.74, -1.048,
        1.669, 0.785, -0.321, 0.766, 1.078, -0.588, -1.322, -1.398,
        2.765, 2.112, 0.576, -0.9, -1.41, -0.814, -1.15, -0.913,
    ])
    .unwrap();
    let input = RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    let biases = quantile_biases(&input, Score::Sigmoid, 2).unwrap();
    let numpy = [-0.239_83, -0.124_349, -0.063_114, -0.027_798, -0.035_229, 0.062_307, 0.170_462, 0.257_551];
    assert_near(&biases, &numpy);
    let load = |router: &ScoredTopK| route(router, logits.view(), TokenContext::new()).stats();
    let plain = ScoredTopK::new(2, Score::Sigmoid).unwrap();
    assert_eq!(load(&plain).load, [43, 27, 20, 14, 17, 6, 1, 0]);
    let balanced = load(&plain.with_bias(biases).unwrap());
    assert_eq!(balanced.load, [15, 23, 18, 18, 17, 13, 14, 10]);
    assert!((balanced.cv - 0.229_639_66).abs() < 1e-6, "{}", balanced.cv);
}
