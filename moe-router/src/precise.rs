//! Functions in f64 for what is measured and learned, not for what is inferred.
//!
//! Their `exp`, `ln` and `pow` are the `libm` crate's, the same on every platform. No router and no layer calls them.

use moe_core::memory::{OutOfMemory, refill_from};
use ndarray::{Array2, ArrayView1, ArrayView2};

/// Zeros in the shape of logits, `[T, E]`: what is derived by them, before anything is added.
///
/// # Errors
///
/// [`OutOfMemory`].
pub(crate) fn zeros(logits: ArrayView2<'_, f32>) -> Result<Array2<f64>, OutOfMemory> {
    matrix(logits.dim(), std::iter::repeat_n(0.0, logits.len()), "gradient")
}

/// A matrix, which is `what`, of these values row by row: one for each place.
///
/// # Errors
///
/// [`OutOfMemory`].
pub(crate) fn matrix<T>(
    (rows, columns): (usize, usize),
    values: impl Iterator<Item = T>,
    what: &'static str,
) -> Result<Array2<T>, OutOfMemory> {
    let mut list = Vec::new();
    refill_from(&mut list, rows * columns, values, what)?;
    #[allow(clippy::unwrap_used, reason = "there is one value for each place")]
    Ok(Array2::from_shape_vec((rows, columns), list).unwrap())
}

/// `exp(l) / Σ exp(l)` of some logits, in their order. A NaN or a positive infinity makes all values NaN.
pub(crate) fn softmax(logits: impl Iterator<Item = f64> + Clone, out: &mut Vec<f64>) {
    let top = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    out.clear();
    out.extend(logits.map(|l| libm::exp(l - top)));
    let total: f64 = out.iter().sum();
    out.iter_mut().for_each(|p| *p /= total);
}

/// The logits of a token in f64.
pub(crate) fn widened<'a>(row: ArrayView1<'a, f32>) -> impl Iterator<Item = f64> + Clone + 'a {
    row.into_iter().map(|&l| f64::from(l))
}

/// `ln Σ exp(l)`.
pub(crate) fn log_sum_exp(logits: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    top + libm::log(logits.map(|l| libm::exp(l - top)).sum::<f64>())
}

/// `1 / (1 + exp(-x))`, without loss near 0.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// `ln(1 + exp(x))`, without loss at either end.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

/// `ln softplus(x)`, which is x within rounding where exp(x) is below 2⁻⁵³.
pub(crate) fn log_softplus(x: f64) -> f64 {
    if x < -37.0 { x } else { libm::log(softplus(x)) }
}

/// `Σ -p ln p`, where 0 ln 0 is 0.
pub(crate) fn entropy(p: impl IntoIterator<Item = f64>) -> f64 {
    p.into_iter().filter(|&p| p > 0.0).map(|p| -p * libm::log(p)).sum()
}

/// `exp(-x²/2) / √(2π)`.
pub(crate) fn normal_density(x: f64) -> f64 {
    const ROOT_TWO_PI: f64 = 2.506_628_274_631_000_5;
    libm::exp(-0.5 * x * x) / ROOT_TWO_PI
}

/// `1 - Φ(x)`: the chance that a standard normal number is above `x`. Within a relative 2⁻⁴³ of exact for x ≤ 37.
///
/// Below 2 it is `½ - φ(x) (x + x³/3 + x⁵/(3·5) + …)`, whose terms all have one sign; above, Laplace's continued fraction
/// `φ(x) / (x + 1/(x + 2/(x + 3/…)))`, cut where it has long converged.
pub(crate) fn normal_tail(x: f64) -> f64 {
    if x < 0.0 {
        return 1.0 - normal_tail(-x);
    }
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        let mut odd = 3.0;
        while term > sum * f64::EPSILON / 4.0 {
            term *= x * x / odd;
            sum += term;
            odd += 2.0;
        }
        return 0.5 - normal_density(x) * sum;
    }
    normal_density(x) / (1..=100).rev().fold(x, |fraction, n| x + f64::from(n) / fraction)
}

/// Chances and probabilities that count as 0: slopes by smaller ones, which are up to n/x, would overflow.
const NEGLIGIBLE: f64 = 1e-290;

/// The squared coefficient of variation `var(x) / mean(x)²` (population variance), and its derivative by each x.
///
/// Both are 0 where there is no value, or none is above [`NEGLIGIBLE`].
pub(crate) fn cv_squared(x: &[f64]) -> (f64, Vec<f64>) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    if x.iter().all(|&v| v <= NEGLIGIBLE) {
        return (0.0, vec![0.0; x.len()]);
    }
    // The square of a small mean would be 0.
    let value = x.iter().map(|v| ((v - mean) / mean).powi(2)).sum::<f64>() / n;
    let slope = |v: f64| 2.0 / (n * mean) * ((v - mean) / mean - value);
    (value, x.iter().map(|&v| slope(v)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_tail() {
        // Computed with 400 decimal digits.
        let exact = [
            (0.0, 5.0e-1),
            (0.5, 3.085_375_387_259_869e-1),
            (1.0, 1.586_552_539_314_570_5e-1),
            (1.9375, 2.634_212_668_914_146e-2),
            (2.0, 2.275_013_194_817_921e-2),
            (2.5, 6.209_665_325_776_135e-3),
            (3.0, 1.349_898_031_630_094_6e-3),
            (5.0, 2.866_515_718_791_939e-7),
            (8.0, 6.220_960_574_271_784e-16),
            (12.0, 1.776_482_112_077_679e-33),
            (20.0, 2.753_624_118_606_233_7e-89),
            (30.0, 4.906_713_927_148_187e-198),
            (37.0, 5.725_571_222_524_577e-300),
        ];
        for (x, q) in exact {
            let off = (normal_tail(x) / q - 1.0).abs();
            assert!(off < 2f64.powi(-43), "{x}: {off:e}");
            assert!((normal_tail(-x) - (1.0 - q)).abs() < 2f64.powi(-51), "{x}");
        }
        assert_eq!(normal_tail(f64::INFINITY), 0.0);
        assert_eq!(normal_tail(f64::NEG_INFINITY), 1.0);
        assert!(normal_tail(f64::NAN).is_nan());
    }

    #[test]
    fn variation() {
        // Mean 2, variance 2/3.
        let (value, slope) = cv_squared(&[1.0, 2.0, 3.0]);
        assert!((value - 1.0 / 6.0).abs() < 1e-15);
        // A multiple of all changes nothing.
        assert!([1.0, 2.0, 3.0].iter().zip(&slope).map(|(x, d)| x * d).sum::<f64>().abs() < 1e-15);
        assert_eq!(cv_squared(&[0.0; 4]), (0.0, vec![0.0; 4]));
        assert_eq!(cv_squared(&[1e-300; 4]), (0.0, vec![0.0; 4]));
        let (small, slope) = cv_squared(&[1e-280, 2e-280, 3e-280]);
        assert!((small - 1.0 / 6.0).abs() < 1e-15 && slope.iter().all(|d| d.is_finite()));
        assert_eq!(cv_squared(&[]), (0.0, vec![]));
    }

    #[test]
    fn both_ends() {
        assert_eq!(softplus(-1e4), 0.0);
        assert_eq!(softplus(1e4), 1e4);
        assert_eq!([log_softplus(-1e4), log_softplus(1.0)], [-1e4, softplus(1.0).ln()]);
        assert!((log_softplus(-37.0) / -37.0 - 1.0).abs() < 1e-15);
        assert!((softplus(-40.0) / (-40f64).exp() - 1.0).abs() < 1e-15);
        assert_eq!(log_sum_exp([1e4, 1e4].into_iter()), 1e4 + 2f64.ln());
        assert_eq!([sigmoid(-1e4), sigmoid(0.0), sigmoid(1e4)], [0.0, 0.5, 1.0]);
    }
}
