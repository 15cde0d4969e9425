//! Tries every f32 through the elementary functions and prints the largest error of each, in ulp.
//!
//! `cargo run --release -p moe-layer --example ulp`, with names of functions to try only those

use moe_core::numerics;

/// Distance of `got` from `exact` in units in the last place of the exact result.
fn ulps(got: f32, exact: f64) -> f64 {
    if exact.is_nan() || exact.abs() > f64::from(f32::MAX) {
        return 0.0;
    }
    let magnitude = exact.abs().max(f64::from(f32::MIN_POSITIVE));
    let unit = 2f64.powi(magnitude.log2().floor() as i32 - 23);
    (f64::from(got) - exact).abs() / unit
}

type Function = (&'static str, fn(f32) -> f32, fn(f64) -> f64, f32);

const FUNCTIONS: [Function; 6] = [
    ("exp", numerics::exp, f64::exp, f32::NEG_INFINITY),
    ("ln", numerics::ln, f64::ln, f32::MIN_POSITIVE),
    ("sigmoid", numerics::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -87.0),
    ("silu", numerics::silu, |x| x / (1.0 + (-x).exp()), -88.0),
    ("softplus", numerics::softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), f32::NEG_INFINITY),
    ("tanh", numerics::tanh, f64::tanh, f32::NEG_INFINITY),
];

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    for (name, f, exact, from) in FUNCTIONS {
        if !names.is_empty() && !names.iter().any(|n| n == name) {
            continue;
        }
        let (mut worst, mut at) = (0.0, 0.0);
        for bits in 0..=u32::MAX {
            let x = f32::from_bits(bits);
            if x.is_finite() && x >= from {
                let e = ulps(f(x), exact(f64::from(x)));
                if e > worst {
                    (worst, at) = (e, x);
                }
            }
        }
        println!("{name}: {worst:.4} ulp at {at:e}");
    }
}
