//! Random numbers of routers: from the input where it has them, else a function of what they are drawn for.

use moe_core::{Error, Result, TokenContext, numerics};

/// What a number is drawn for, so that two routers of a stack do not draw the same one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    Noise = 1,
    SecondChoice,
    SparseMixer,
    RandomChoice,
    Priority,
    GumbelSecond,
}

/// A number in `0..1` for a column of token `t`: a function of (seed, stream, layer, sequence, position, column).
pub(crate) fn uniform(context: &TokenContext<'_>, stream: Stream, t: usize, column: usize) -> f32 {
    let [layer, sequence, position] = context.place(t);
    numerics::uniform(context.seed_of(t), &[stream as u64, layer, sequence, position, column as u64])
}

/// The context for an inner router: given noise is used up.
pub(crate) fn without_noise<'a>(context: &TokenContext<'a>) -> TokenContext<'a> {
    let mut context = *context;
    context.noise = None;
    context
}

/// Checks that the noise of the context, if any, has this many columns.
pub(crate) fn check_columns(context: &TokenContext<'_>, columns: usize) -> Result<()> {
    match context.noise {
        Some(noise) if noise.columns() != columns => Err(Error::Router {
            setting: "noise",
            expected: format!("{columns} numbers a token"),
            found: noise.columns().to_string(),
        }),
        _ => Ok(()),
    }
}

/// The standard normal number at this point of the cumulative distribution: Φ⁻¹(u + 2⁻²⁵) for a multiple u of 2⁻²⁴ in `0..1`.
///
/// `√2·erf⁻¹(x)` with the single-precision polynomials of Giles (Approximating the erfinv function, 2010). Symmetric, within
/// ±5.42. Its distance from exact is at most 2e-6 relative where the result is above 0.01, as the test measures.
pub(crate) fn normal(u: f32) -> f32 {
    // Exact: an odd multiple of 2⁻²⁴ between -1 and 1.
    let x = (2.0 * u - 1.0) + 1.0 / 16_777_216.0;
    let w = -numerics::ln((1.0 - x) * (1.0 + x));
    let (w, coefficients) = if w < 5.0 { (w - 2.5, &CENTRE) } else { (w.sqrt() - 3.0, &TAIL) };
    let p = coefficients.iter().fold(0.0f32, |p, c| p.mul_add(w, *c));
    std::f32::consts::SQRT_2 * (p * x)
}

/// A number of the exponential distribution with mean 1, above zero: `-ln(1 - u)`.
pub(crate) fn exponential(u: f32) -> f32 {
    (-numerics::ln(1.0 - u)).max(1.0 / 33_554_432.0)
}

/// Highest power first.
const CENTRE: [f32; 9] = [
    2.810_226_4e-8,
    3.432_739_4e-7,
    -3.523_387_7e-6,
    -4.391_506_5e-6,
    0.000_218_580_87,
    -0.001_253_725,
    -0.004_177_681_7,
    0.246_640_73,
    1.501_409_4,
];
const TAIL: [f32; 9] = [
    -0.000_200_214_26,
    0.000_100_950_56,
    0.001_349_343_2,
    -0.003_673_428_5,
    0.005_739_507_7,
    -0.007_622_461_3,
    0.009_438_870_5,
    1.001_674,
    2.832_976_8,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Φ by its series, in f64: enough below 5.5.
    fn cumulative(z: f64) -> f64 {
        let (mut term, mut sum, mut n) = (z, z, 1.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 2.0;
            term *= z * z / n;
            sum += term;
        }
        0.5 + sum * (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt()
    }

    #[test]
    fn normal_is_the_inverse_of_the_distribution() {
        for i in 0..20_000u32 {
            let k = i.wrapping_mul(838_861) % (1 << 24);
            let z = f64::from(normal(k as f32 / 16_777_216.0));
            let (found, expected) = (cumulative(z), (f64::from(k) + 0.5) / 16_777_216.0);
            // An error δ of z moves Φ by φ(z)·δ.
            let density = (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt();
            let off = (found - expected).abs() / density;
            assert!(off <= 2e-6 * z.abs().max(0.01) + 1e-12 / density, "{k}: {z} is {off} off");
        }
        assert_eq!(normal(0.0), -normal(16_777_215.0 / 16_777_216.0));
        assert!((5.3..5.43).contains(&normal(16_777_215.0 / 16_777_216.0)));
    }

    /// Mean, variance, fourth moment and the correlation of neighbours, each within 5 standard errors.
    #[test]
    fn normal_draws_have_the_moments() {
        let n = 40_000;
        let context = TokenContext::new().with_seed(5);
        let z: Vec<f64> =
            (0..n).map(|t| f64::from(normal(uniform(&context, Stream::Noise, t / 8, t % 8)))).collect();
        let mean = |f: &dyn Fn(usize) -> f64| (0..n - 1).map(f).sum::<f64>() / (n - 1) as f64;
        let error = |variance: f64| 5.0 * (variance / n as f64).sqrt();
        assert!(mean(&|i| z[i]).abs() < error(1.0));
        assert!((mean(&|i| z[i].powi(2)) - 1.0).abs() < error(2.0));
        assert!((mean(&|i| z[i].powi(4)) - 3.0).abs() < error(96.0));
        assert!(mean(&|i| z[i] * z[i + 1]).abs() < error(1.0));
    }

    #[test]
    fn exponential_draws_are_positive_with_mean_one() {
        assert!(exponential(0.0) > 0.0);
        let n = 10_000;
        let mean: f32 = (0..n).map(|i| exponential(i as f32 / n as f32)).sum::<f32>() / n as f32;
        assert!((mean - 1.0).abs() < 1e-3, "{mean}");
    }
}
