//! Dispatch and combine weights of V-MoE's Soft MoE.

use moe_router::{soft_combine_weights, soft_dispatch_weights};
use ndarray::Array2;

use crate::fixture::{Report, cases, numbers, softmax_bound, units};

/// Bound of a weight's relative distance: that of softmax over `terms`, and twice the distance of two logits, ours taken to be
/// exact. Theirs comes of a dot product of D terms of vectors brought to unit norm, `|l| ≤ scale`: D additions and products, for
/// each of the norms as well, and a reciprocal root, whose error of 2⁻²³ is another two units each.
fn bound(terms: usize, dim: usize, scale: f64) -> f64 {
    softmax_bound(terms) + units(2.0 * scale.abs() * (3.0 * 2.0 * dim as f64 + 6.0))
}

#[test]
fn vmoe_soft_moe() {
    let mut report = Report::default();
    for case in cases("vmoe_soft_moe") {
        let [groups, tokens, dim, experts, slots] =
            ["num_groups", "tokens_per_group", "hidden", "num_experts", "num_slots"].map(|n| case.size(n));
        let all = experts * slots;
        let wide = |name| numbers(case.input(name)).into_iter().map(f64::from).collect::<Vec<_>>();
        let (x, mu, scale) = (wide("x"), wide("mu"), wide("scale")[0]);
        let unit = |v: Vec<f64>| {
            let norm = (v.iter().map(|v| v * v).sum::<f64>() + 1e-6).sqrt();
            v.into_iter().map(|v| v / norm).collect::<Vec<_>>()
        };
        let directions: Vec<_> =
            (0..all).map(|s| unit((0..dim).map(|d| mu[d * all + s]).collect())).collect();
        let combine = numbers(case.output("combine_weights"));
        let dispatch = numbers(case.output("dispatch_weights"));
        for g in 0..groups {
            let logits = Array2::from_shape_fn((tokens, all), |(t, s)| {
                let x = unit(x[(g * tokens + t) * dim..][..dim].to_vec());
                (scale * x.iter().zip(&directions[s]).map(|(a, b)| a * b).sum::<f64>()) as f32
            });
            let found = [soft_combine_weights(logits.view()), soft_dispatch_weights(logits.view())];
            for ((found, expected), terms) in found.iter().zip([&combine, &dispatch]).zip([all, tokens]) {
                for ((t, s), w) in found.indexed_iter() {
                    let at = (g * tokens + t) * all + s;
                    report.weight(case, g * tokens + t, expected[at], *w, bound(terms, dim, scale));
                }
            }
        }
        report.cases += 1;
    }
    report.finish(10);
}
