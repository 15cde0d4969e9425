//! Products with activations rounded to bfloat16: the arithmetic of instructions that multiply pairs of bfloat16.

use super::{LANES, tree_sum};

/// Number of terms after which the chains of [`dot_bf16`] are reduced and start anew.
pub const PAIRS_BLOCK: usize = 1024;

/// The least magnitude, 2⁻⁵⁶, of what is not zero in a product of bfloat16. A product of two such numbers, and so every
/// partial sum, is a multiple of 2⁻¹²⁶: no denormal arises, which some instructions would take for zero.
pub const BF16_LEAST: f32 = f32::from_bits((127 - 56) << 23);

/// Rounds to bfloat16, to nearest even; what is smaller than [`BF16_LEAST`] then is zero. Infinities and NaN stay what they
/// are, and what is beyond bfloat16 becomes infinite.
#[inline(always)]
pub fn round_to_bf16(x: f32) -> f32 {
    const UPPER: u32 = 0xffff_0000;
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & UPPER;
    let quiet = (bits | 0x0040_0000) & UPPER;
    let rounded = if x.is_nan() { quiet } else { rounded };
    let magnitude = rounded & 0x7fff_ffff;
    f32::from_bits(if magnitude < BF16_LEAST.to_bits() { 0 } else { rounded })
}

/// The dot product of activations, which are [rounded](round_to_bf16) first, with weights that are bfloat16 and zero or at
/// least [`BF16_LEAST`] in magnitude. Slices have equal lengths; the shorter one decides otherwise.
///
/// K is cut into blocks of [`PAIRS_BLOCK`]. In a block chain i takes the terms 32·j + 2·i + 1, then 32·j + 2·i, for ascending
/// j, each by a fused multiply-add; then as in [`dot`](super::dot). What is missing of the last 32 terms is zero.
pub fn dot_bf16(x: &[f32], w: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (x, w) in x.chunks(PAIRS_BLOCK).zip(w.chunks(PAIRS_BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        for (x, w) in x.chunks(2 * LANES).zip(w.chunks(2 * LANES)) {
            let term = |i: usize, sum: f32| match (x.get(i), w.get(i)) {
                (Some(x), Some(w)) => round_to_bf16(*x).mul_add(*w, sum),
                _ => sum,
            };
            for (i, lane) in lanes.iter_mut().enumerate() {
                *lane = term(2 * i, term(2 * i + 1, *lane));
            }
        }
        sum += tree_sum(lanes);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_even() {
        let bits = |x: u32| round_to_bf16(f32::from_bits(x)).to_bits();
        assert_eq!(round_to_bf16(1.0), 1.0);
        assert_eq!(bits(0x3f80_8000), 0x3f80_0000, "a tie, down to even");
        assert_eq!(bits(0x3f81_8000), 0x3f82_0000, "a tie, up to even");
        assert_eq!(bits(0x3f80_8001), 0x3f81_0000);
        assert_eq!(bits(0xbf80_8001), 0xbf81_0000);
        assert_eq!(round_to_bf16(f32::MAX), f32::INFINITY);
        assert_eq!(round_to_bf16(f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(round_to_bf16(f32::NAN).is_nan());
        assert!(round_to_bf16(f32::from_bits(0x7fff_ffff)).is_nan());
        assert!(
            round_to_bf16(f32::from_bits(0x7f80_0001)).is_nan(),
            "a NaN whose upper bits are those of infinity"
        );
    }

    #[test]
    fn what_is_too_small_is_zero() {
        assert_eq!(round_to_bf16(BF16_LEAST), BF16_LEAST);
        assert_eq!(round_to_bf16(-BF16_LEAST), -BF16_LEAST);
        let below = f32::from_bits(BF16_LEAST.to_bits() - 1);
        assert_eq!(round_to_bf16(below), BF16_LEAST, "rounded first");
        assert_eq!(round_to_bf16(BF16_LEAST * 0.99).to_bits(), 0);
        assert_eq!(round_to_bf16(-1e-30).to_bits(), 0);
        assert_eq!(BF16_LEAST, 2.0f32.powi(-56));
    }

    #[test]
    fn dot_is_the_written_order() {
        // Two blocks, the second with a group of 32 and seven terms.
        let x: Vec<f32> = (0..1063).map(|i| (i as f32 * 0.37 - 190.0) * 1.001).collect();
        let w: Vec<f32> = (0..1063).map(|i| round_to_bf16(1.0 / (i as f32 + 0.3))).collect();
        let rounded: Vec<f32> = x.iter().map(|x| round_to_bf16(*x)).collect();
        let block = |terms: std::ops::Range<usize>| {
            let mut lanes = [0.0f32; LANES];
            for start in terms.clone().step_by(32) {
                for i in 0..LANES {
                    for t in [start + 2 * i + 1, start + 2 * i] {
                        if t < terms.end {
                            lanes[i] = rounded[t].mul_add(w[t], lanes[i]);
                        }
                    }
                }
            }
            tree_sum(lanes)
        };
        assert_eq!(dot_bf16(&x, &w).to_bits(), (block(0..1024) + block(1024..1063)).to_bits());
        assert_eq!(dot_bf16(&[], &[]), 0.0);
    }
}
