//! exp, ln, sigmoid, silu, softplus, tanh: polynomials with stated bounds, the same on every machine.
//!
//! The bounds are in units in the last place of the result, found by trying every f32 against f64:
//! `cargo run --release -p moe-layer --example ulp`.

/// Above this, [`exp`] is infinite.
pub const EXP_MAX: f32 = 89.0;
/// Below this, [`exp`] is zero.
pub const EXP_MIN: f32 = -104.0;
/// 1 / ln 2.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the upper has nine significant bits, so that its product with any exponent is exact.
pub const LN2_HI: f32 = 0.691_406_25;
/// The rest of ln 2.
pub const LN2_LO: f32 = 0.001_740_930_6;
/// Adding 1.5 · 2²³ rounds a small number to an integer, which the low bits of the sum then hold.
pub const ROUND_MAGIC: f32 = 12_582_912.0;
/// `(exp(r) - 1 - r) / r²` for |r| ≤ ln 2 / 2, constant term first; minimax, its own error 0.05 ulp.
pub const EXP_POLY: [f32; 5] = [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_446_7];

/// `(ln(1 + f) - f + f²/2) / f³` for √½ - 1 ≤ f ≤ √2 - 1, constant term first.
const LN_POLY: [f32; 9] = [
    0.333_333_13,
    -0.250_000_1,
    0.200_021_36,
    -0.166_680_29,
    0.142_192,
    -0.124_047_08,
    0.118_900_52,
    -0.116_822_466,
    0.067_505,
];

/// Below this, [`tanh`] is a polynomial; above it, 1 minus something that is no greater than ½.
const TANH_SMALL: f32 = 0.55;
/// `(tanh(x) / x - 1) / x²` in x² for |x| ≤ 0.55, constant term first; near-minimax, its own error 0.07 ulp.
const TANH_POLY: [f32; 5] = [-0.333_333_3, 0.133_331_13, -0.053_909_43, 0.021_309_389, -0.006_610_228];

/// The exponential function; at most 1.05 ulp from exact, subnormal results included. NaN gives NaN.
pub fn exp(x: f32) -> f32 {
    // Written so that NaN passes both comparisons and stays.
    let x = if EXP_MIN > x { EXP_MIN } else { x };
    let x = if EXP_MAX < x { EXP_MAX } else { x };
    // x = n ln 2 + r
    let shifted = x.mul_add(LOG2_E, ROUND_MAGIC);
    let n = shifted - ROUND_MAGIC;
    let r = (-n).mul_add(LN2_HI, x);
    let r = (-n).mul_add(LN2_LO, r);
    let mut q = EXP_POLY[4];
    for c in EXP_POLY[..4].iter().rev() {
        q = q.mul_add(r, *c);
    }
    let y = (r * r).mul_add(q, r) + 1.0;
    scale_by_power_of_two(y, shifted)
}

/// `y · 2ⁿ`, where n is the integer in the low bits of `shifted`, to which [`ROUND_MAGIC`] was added.
///
/// 2ⁿ is taken in two factors, so that a subnormal result is rounded once and 2¹²⁸ is never formed.
pub fn scale_by_power_of_two(y: f32, shifted: f32) -> f32 {
    let n = shifted.to_bits().wrapping_sub(ROUND_MAGIC.to_bits()) as i32;
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// 2ⁿ for -126 ≤ n ≤ 127.
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The natural logarithm; at most 0.84 ulp from exact, subnormal arguments included.
///
/// Zero gives negative infinity, negative numbers NaN.
pub fn ln(x: f32) -> f32 {
    if x <= 0.0 {
        return if x == 0.0 { f32::NEG_INFINITY } else { f32::NAN };
    }
    if !x.is_finite() {
        return x;
    }
    // x = m · 2ᵉ with √½ ≤ m < √2
    let (x, shift) = if x < f32::MIN_POSITIVE { (x * 8_388_608.0, -23) } else { (x, 0) };
    let root_half = std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32;
    let offset = x.to_bits() as i32 - root_half;
    let e = (offset >> 23) + shift;
    let f = f32::from_bits(((offset & 0x007f_ffff) + root_half) as u32) - 1.0;
    ln_of_parts(f, e as f32)
}

/// `ln(1 + f) + e ln 2` for f as [`LN_POLY`] has it.
fn ln_of_parts(f: f32, e: f32) -> f32 {
    let mut q = LN_POLY[8];
    for c in LN_POLY[..8].iter().rev() {
        q = q.mul_add(f, *c);
    }
    let f2 = f * f;
    // f - f²/2 + f³ q + e ln 2, small terms first.
    let small = (f2 * f).mul_add(q, e * LN2_LO);
    let small = f2.mul_add(-0.5, small);
    e.mul_add(LN2_HI, f + small)
}

/// `1 / (1 + exp(-x))`; at most 2.5 ulp from exact while the result is a normal number, never above 1.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x / (1 + exp(-x))`; at most 2.5 ulp from exact for x ≥ -88, and from there on within 3e-37 of zero.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `ln(1 + exp(x))`; at most 1.7 ulp from exact, subnormal results included. NaN gives NaN.
pub fn softplus(x: f32) -> f32 {
    // max(x, 0) + ln(1 + u); the second term is the whole where x is negative.
    let u = exp(-x.abs());
    // 1 + u = 2 (1 + f) above √2; u - 1 is then exact or nearly so.
    let tail = if u < std::f32::consts::SQRT_2 - 1.0 {
        ln_of_parts(u, 0.0)
    } else {
        ln_of_parts((u - 1.0) * 0.5, 1.0)
    };
    if x > 0.0 { x + tail } else { tail }
}

/// The hyperbolic tangent; at most 1.5 ulp from exact, never beyond ±1. NaN gives NaN.
pub fn tanh(x: f32) -> f32 {
    let a = x.abs();
    if a < TANH_SMALL {
        let z = x * x;
        let mut q = TANH_POLY[4];
        for c in TANH_POLY[..4].iter().rev() {
            q = q.mul_add(z, *c);
        }
        return (x * z).mul_add(q, x);
    }
    (1.0 - 2.0 / (exp(2.0 * a) + 1.0)).copysign(x)
}
