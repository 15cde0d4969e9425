//! Scales as they are stored, widened exactly and without a branch.

/// An IEEE binary16 from its bits, subnormals, infinities and NaNs included.
///
/// Plain integer and float operations, so that a loop over many becomes vector code wherever it is inlined.
#[inline(always)]
pub(crate) fn widen_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // A subnormal is so many times the smallest, 2^-24.
    let subnormal = (magnitude as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let normal = (magnitude << 13) + ((127 - 15) << 23);
    let special = (magnitude << 13) | (0xff << 23);
    let finite = if magnitude < 0x0400 { subnormal } else { normal };
    let widened = if magnitude < 0x7c00 { finite } else { special };
    f32::from_bits(widened | u32::from(bits & 0x8000) << 16)
}

/// Half the power of two that an E8M0 byte stands for: 2^(e - 128), the two smallest of which are subnormal.
#[inline(always)]
pub(crate) fn widen_half_e8m0(exponent: u8) -> f32 {
    let e = u32::from(exponent);
    let subnormal = 0x0020_0000 << (e & 1);
    let normal = e.wrapping_sub(1) << 23;
    f32::from_bits(if e < 2 { subnormal } else { normal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (widen_f16(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn e8m0_are_powers_of_two() {
        for e in 0..=u8::MAX {
            assert_eq!(f64::from(widen_half_e8m0(e)), 2f64.powi(i32::from(e) - 128), "{e}");
        }
    }
}
