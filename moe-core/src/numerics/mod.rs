//! The scalar definitions that every kernel reproduces bit for bit.
//!
//! A dot product has one canonical order: K is cut into blocks of [`BLOCK`], each block is [`LANES`] interleaved
//! fused-multiply-add chains reduced by one fixed tree ([`tree_sum`]), and block sums are added in order. A block whose
//! length is no multiple of `LANES` is padded with zeros. Exponentials and logarithms are polynomials of our own, since
//! the platforms' differ. See `docs/numerics.md`.

use ndarray::ArrayView2;

mod elementary;
mod int8;
mod pairs;
mod random;

pub use elementary::{EXP_MAX, EXP_MIN, exp, ln, sigmoid, silu, softplus, tanh};
pub use elementary::{EXP_POLY, LN2_HI, LN2_LO, LOG2_E, ROUND_MAGIC, scale_by_power_of_two};
pub use int8::{INT8_LEAST, IntegerBlock, add_int8_block, quantise_int8};
pub use pairs::{BF16_LEAST, PAIRS_BLOCK, dot_bf16, round_to_bf16};
pub use random::uniform;

/// Number of interleaved chains of a dot product.
pub const LANES: usize = 16;

/// Number of terms after which the chains of a dot product are reduced and start anew.
pub const BLOCK: usize = 512;

/// The canonical dot product of two slices of equal length; the shorter one decides otherwise.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            let (a, b) = (padded(a), padded(b));
            for i in 0..LANES {
                lanes[i] = a[i].mul_add(b[i], lanes[i]);
            }
        }
        sum += tree_sum(lanes);
    }
    sum
}

/// The sum of a slice in the order of [`dot`]: the dot product with ones.
pub fn sum(a: &[f32]) -> f32 {
    let mut sum = 0.0;
    for a in a.chunks(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        for a in a.chunks(LANES) {
            let a = padded(a);
            for i in 0..LANES {
                lanes[i] += a[i];
            }
        }
        sum += tree_sum(lanes);
    }
    sum
}

/// Reduces sixteen lanes by halves: lane i takes lane i + 8, then i + 4, i + 2, i + 1.
pub fn tree_sum(lanes: [f32; LANES]) -> f32 {
    let mut a = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            a[i] += a[i + half];
        }
        half /= 2;
    }
    a[0]
}

/// Up to [`LANES`] values, followed by zeros.
pub fn padded(a: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for (to, from) in out.iter_mut().zip(a) {
        *to = *from;
    }
    out
}

/// The largest value; NaN is passed over, and nothing gives negative infinity.
pub fn max(a: &[f32]) -> f32 {
    a.iter().fold(f32::NEG_INFINITY, |best, &v| if v > best { v } else { best })
}

/// Softmax in place: `exp(x - max) / Σ exp(x - max)`, the sum in the order of [`sum`].
///
/// A NaN or a positive infinity makes all values NaN, as does a row of negative infinities.
pub fn softmax(a: &mut [f32]) {
    let top = max(a);
    for v in a.iter_mut() {
        *v = exp(*v - top);
    }
    let total = sum(a);
    for v in a.iter_mut() {
        *v /= total;
    }
}

/// Index of the first NaN or infinity.
pub fn first_not_finite(a: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    // Without an early exit inside a piece the check runs at the speed of the cache.
    for (n, piece) in a.chunks(256).enumerate() {
        if piece.iter().fold(false, |bad, v| bad | (v.to_bits() & EXPONENT == EXPONENT)) {
            return piece.iter().position(|v| !v.is_finite()).map(|i| n * 256 + i);
        }
    }
    None
}

/// The first row with a NaN or an infinity, and that value.
pub fn row_not_finite(rows: ArrayView2<'_, f32>) -> Option<(usize, f32)> {
    rows.rows().into_iter().enumerate().find_map(|(r, row)| {
        let value = match row.as_slice() {
            Some(row) => first_not_finite(row).map(|i| row[i]),
            None => row.iter().copied().find(|v| !v.is_finite()),
        };
        value.map(|value| (r, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_is_the_written_order() {
        // 530 terms: a whole block, then a chunk of 16 and a tail of 2.
        let a: Vec<f32> = (0..530).map(|i| (i as f32 * 0.37 - 90.0) * 1.001).collect();
        let b: Vec<f32> = (0..530).map(|i| 1.0 / (i as f32 + 0.3)).collect();
        let chain = |from: usize, to: usize, lane: usize| {
            (from + lane..to).step_by(16).fold(0.0f32, |s, i| a[i].mul_add(b[i], s))
        };
        let block = |from: usize, to: usize| {
            let l: Vec<f32> = (0..16).map(|lane| chain(from, to, lane)).collect();
            let h: Vec<f32> = (0..8).map(|i| l[i] + l[i + 8]).collect();
            let q: Vec<f32> = (0..4).map(|i| h[i] + h[i + 4]).collect();
            (q[0] + q[2]) + (q[1] + q[3])
        };
        assert_eq!(dot(&a, &b).to_bits(), (block(0, 512) + block(512, 530)).to_bits());
        assert_eq!(dot(&[], &[]), 0.0);
    }

    #[test]
    fn sum_is_dot_with_ones() {
        let a: Vec<f32> = (0..1000).map(|i| (i as f32).sqrt() - 11.7).collect();
        assert_eq!(sum(&a).to_bits(), dot(&a, &vec![1.0; 1000]).to_bits());
    }

    #[test]
    fn softmax_of_the_difficult() {
        let mut a = [1e4, -1e4, 1e4];
        softmax(&mut a);
        assert_eq!(a, [0.5, 0.0, 0.5]);
        let mut one = [-3.0];
        softmax(&mut one);
        assert_eq!(one, [1.0]);
        let mut nan = [f32::NAN, 1.0];
        softmax(&mut nan);
        assert!(nan.iter().all(|v| v.is_nan()));
        softmax(&mut []);
    }

    #[test]
    fn finds_the_first_not_finite() {
        let mut a = vec![f32::MAX; 1000];
        assert_eq!(first_not_finite(&a), None);
        a[700] = f32::NEG_INFINITY;
        a[701] = f32::NAN;
        assert_eq!(first_not_finite(&a), Some(700));
    }
}
