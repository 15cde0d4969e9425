//! Numbers of places, against fractions of whole numbers.

use moe_core::TokenContext;
use moe_router::{Capacity, Capped, Rounding, RouterSpec, ThresholdEma, TopK};
use ndarray::Array2;

use crate::listed::route;

const EXPERTS: [usize; 12] = [1, 2, 3, 4, 6, 7, 8, 10, 16, 60, 128, 384];
const TOKENS: [usize; 11] = [1, 2, 7, 12, 25, 50, 100, 333, 1000, 4096, 100_000];

/// Rounded quotients of whole numbers, by their definition.
fn rounded(numerator: u128, denominator: u128) -> [(Rounding, u128); 3] {
    let down = numerator / denominator;
    let up = numerator.div_ceil(denominator);
    // Twice the distance to either side.
    let (below, above) = (2 * (numerator - down * denominator), denominator);
    let even = match below.cmp(&above) {
        std::cmp::Ordering::Less => down,
        std::cmp::Ordering::Greater => up,
        std::cmp::Ordering::Equal => down + down % 2,
    };
    [(Rounding::Up, up), (Rounding::Down, down), (Rounding::HalfEven, even)]
}

#[test]
fn places_are_exact() {
    let (mut checked, mut float_differs) = (0, 0);
    // Factors of three decimals, as text, and over a thousand.
    for thousandths in (5u32..1000).step_by(45).chain((1000..4000).step_by(35)).chain([1100, 1250, 8000]) {
        let factor: f64 = format!("{}.{:03}", thousandths / 1000, thousandths % 1000).parse().unwrap();
        for (experts, tokens) in EXPERTS.iter().flat_map(|&e| TOKENS.map(|t| (e, t))) {
            for k in [1, 2, 8] {
                let numerator = u128::from(thousandths) * (tokens * k) as u128;
                for (rounding, expected) in rounded(numerator, 1000 * experts as u128) {
                    let capacity = Capacity::factor_of_choices(factor).rounded(rounding).at_least(1);
                    let found = capacity.places(tokens, tokens * k, experts).unwrap();
                    assert_eq!(
                        found as u128,
                        expected.max(1),
                        "{factor} {tokens} {k} {experts} {rounding:?}"
                    );
                    checked += 1;
                }
                let of_tokens = Capacity::factor_of_tokens(factor).places(tokens, tokens * k, experts);
                let expected = rounded(u128::from(thousandths) * tokens as u128, 1000 * experts as u128)[0].1;
                assert_eq!(of_tokens.unwrap() as u128, expected);
                let float = ((tokens * k) as f64 * factor / experts as f64).ceil();
                float_differs += usize::from(float as u128 != numerator.div_ceil(1000 * experts as u128));
            }
        }
    }
    // The grid has cases that floating point gets wrong.
    assert!(checked > 100_000 && float_differs > 100, "{checked} {float_differs}");
}

/// A hundred choices of ten experts times 1.1 are eleven places an expert, in a spec as in Rust.
#[test]
fn eleven_places() {
    let logits = Array2::from_shape_fn((50, 10), |(_, e)| [3.0, 2.0].get(e).copied().unwrap_or(0.0));
    let in_rust = Capped::new(TopK::new(2).unwrap(), Capacity::factor_of_choices(1.1)).unwrap();
    let of_text: RouterSpec = "capped(top-k:k=2):factor=1.1".parse().unwrap();
    for router in [&in_rust as &dyn moe_core::Router, &of_text.build().unwrap()] {
        let stats = route(router, logits.view(), TokenContext::new()).stats();
        assert_eq!(stats.load, [11, 11, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(stats.drop_rate, 0.78);
    }
}

/// 29 hundredths of a hundred tokens are 29, the greatest of which the others exceed.
#[test]
fn thresholds_count_exactly() {
    let mut state = ThresholdEma::new(0.29, 0.5).unwrap();
    let logits = Array2::from_shape_fn((100, 1), |(t, _)| t as f32 / 50.0);
    state.update(logits.view()).unwrap();
    let plan = route(&state.router().unwrap(), logits.view(), TokenContext::new());
    assert_eq!(plan.rows(), 28);
}
