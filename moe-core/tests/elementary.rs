//! The bounds that the elementary functions state, over a stride through all f32.

use moe_core::numerics;

/// A prime, so that the stride meets every exponent and all kinds of mantissas.
const STRIDE: usize = 1009;

/// Distance of `got` from `exact` in units in the last place of the exact result.
fn ulps(got: f32, exact: f64) -> f64 {
    let magnitude = exact.abs().max(f64::from(f32::MIN_POSITIVE));
    // The exponent of an f64 is that of the f32 next to it.
    let exponent = (magnitude.to_bits() >> 52) as i32 - 1023;
    (f64::from(got) - exact).abs() / 2f64.powi(exponent - 23)
}

/// The largest error over every [`STRIDE`]-th finite f32 in the range.
fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, range: std::ops::RangeInclusive<f32>) -> f64 {
    let all = (0..=u32::MAX).step_by(STRIDE).map(f32::from_bits);
    let mut tried = 0;
    let in_range = all.filter(|x| range.contains(x)).inspect(|_| tried += 1);
    let worst = in_range.map(|x| ulps(f(x), exact(f64::from(x)))).fold(0.0, f64::max);
    assert!(tried > 1_000_000, "{tried}");
    worst
}

#[test]
fn exp_is_within_1_05_ulp() {
    // Beyond 88.72 the exact result rounds to infinity.
    assert!(worst(numerics::exp, f64::exp, f32::MIN..=88.72) <= 1.05);
}

#[test]
fn ln_is_within_0_84_ulp() {
    assert!(worst(numerics::ln, f64::ln, 1e-45..=f32::MAX) <= 0.84);
}

#[test]
fn sigmoid_is_within_2_5_ulp_where_normal() {
    assert!(worst(numerics::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -87.0..=f32::MAX) <= 2.5);
}

#[test]
fn silu_is_within_2_5_ulp_from_minus_88_and_near_zero_below() {
    let exact = |x: f64| x / (1.0 + (-x).exp());
    assert!(worst(numerics::silu, exact, -88.0..=f32::MAX) <= 2.5);
    let below = (0..=u32::MAX).step_by(STRIDE).map(f32::from_bits).filter(|x| (f32::MIN..-88.0).contains(x));
    let off = below.map(|x| (f64::from(numerics::silu(x)) - exact(f64::from(x))).abs()).fold(0.0, f64::max);
    assert!(off <= 1e-36, "{off:e}");
}

#[test]
fn softplus_is_within_1_7_ulp() {
    let exact = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    assert!(worst(numerics::softplus, exact, f32::MIN..=f32::MAX) <= 1.7);
}

#[test]
fn tanh_is_within_1_5_ulp() {
    assert!(worst(numerics::tanh, f64::tanh, f32::MIN..=f32::MAX) <= 1.5);
}

/// The two pieces of a function meet without a step down.
#[test]
fn softplus_and_tanh_rise() {
    for (f, at) in [(numerics::softplus as fn(f32) -> f32, 0.881_373_6f32), (numerics::tanh, 0.55)] {
        for x in [-at, at] {
            let around: Vec<f32> = (0..2001).map(|i| x * (1.0 + (i - 1000) as f32 * 1e-6)).map(f).collect();
            assert!(around.is_sorted() || around.iter().rev().is_sorted(), "around {x}");
        }
    }
}

#[test]
fn the_ends_and_what_is_not_finite() {
    assert_eq!([f32::NEG_INFINITY, -200.0, 0.0, -0.0].map(numerics::exp), [0.0, 0.0, 1.0, 1.0]);
    assert_eq!([f32::INFINITY, 200.0].map(numerics::exp), [f32::INFINITY; 2]);
    assert!(
        [numerics::exp, numerics::ln, numerics::sigmoid, numerics::silu, numerics::softplus, numerics::tanh]
            .iter()
            .all(|f| f(f32::NAN).is_nan())
    );
    assert_eq!(
        [0.0, -0.0, 1.0, f32::INFINITY].map(numerics::ln),
        [f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, f32::INFINITY]
    );
    assert!(numerics::ln(-1.0).is_nan());
    assert_eq!([f32::NEG_INFINITY, 0.0, f32::INFINITY].map(numerics::sigmoid), [0.0, 0.5, 1.0]);
    assert_eq!([f32::NEG_INFINITY, 1e4, f32::INFINITY].map(numerics::softplus), [0.0, 1e4, f32::INFINITY]);
    assert_eq!([f32::NEG_INFINITY, 0.0, f32::INFINITY].map(numerics::tanh), [-1.0, 0.0, 1.0]);
}
