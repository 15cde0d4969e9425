//! Scales as they are stored, widened exactly and without a branch.

/// An IEEE binary16 from its bits, subnormals, infinities and NaNs included.
///
/// Plain integer and float operations, so that a loop over many becomes vector code wherever it is inlined.
#[inline(always)]
pub(crate) fn widen_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // Comparisons as numbers: no compiler makes a branch of these.
    let (subnormal, special) = (u32::from(magnitude < 0x0400), u32::from(magnitude >= 0x7c00));
    // A subnormal is taken for a number between 2^-15 and 2^-14, of which twice the excess over 2^-15 is its value.
    let normal = f32::from_bits((magnitude << 13) + ((112 + 112 * special) << 23));
    let value = normal * f32::from_bits((127 + subnormal) << 23) - f32::from_bits(subnormal * (113 << 23));
    f32::from_bits(value.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// The IEEE binary16 nearest to a finite number, of two the even one; beyond the largest, the largest.
#[inline(always)]
pub(crate) fn narrow_f16(value: f32) -> u16 {
    let (sign, magnitude) = ((value.to_bits() >> 16) as u16 & 0x8000, value.abs());
    let magnitude = if magnitude < 65504.0 { magnitude } else { 65504.0 };
    // A subnormal is a multiple of 2^-24, to which adding 0.75 rounds.
    let subnormal = (magnitude + 0.75).to_bits() & 0x3fffff;
    let bits = magnitude.to_bits();
    let rounded = bits + 0x0fff + (bits >> 13 & 1);
    let normal = (rounded >> 13).wrapping_sub(112 << 10);
    sign | if magnitude < f32::from_bits(113 << 23) { subnormal } else { normal } as u16
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
    fn f16_are_the_nearest() {
        let near =
            |v: f32| [v, f32::from_bits(v.to_bits() + 1), f32::from_bits(v.to_bits().saturating_sub(1))];
        for bits in 0..0x7bff {
            let (here, next) = (widen_f16(bits), widen_f16(bits + 1));
            for v in near(here).into_iter().chain(near(0.5 * (here + next))) {
                assert_eq!(narrow_f16(v), half::f16::from_f32(v).to_bits(), "{v:e}");
                assert_eq!(narrow_f16(-v), half::f16::from_f32(-v).to_bits(), "{v:e}");
            }
        }
        assert_eq!(narrow_f16(f32::MAX), 0x7bff);
        assert_eq!(narrow_f16(-65520.0), 0xfbff);
    }

    #[test]
    fn e8m0_are_powers_of_two() {
        for e in 0..=u8::MAX {
            assert_eq!(f64::from(widen_half_e8m0(e)), 2f64.powi(i32::from(e) - 128), "{e}");
        }
    }
}
