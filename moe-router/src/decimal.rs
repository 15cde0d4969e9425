//! Products of decimal factors and counts, without the rounding of binary fractions.

use std::fmt::{self, Write as _};

use crate::Rounding;

/// `factor · n / d` as a whole number, exact for the factor as it is written: the shortest decimal that reads back to it.
///
/// 1.1 is 11/10 here, though the f64 is a little more and 100 times it, in f64, more again. The factor is above 0. Saturates;
/// 0 over 0 is 0.
pub(crate) fn share(factor: f64, n: usize, d: usize, rounding: Rounding) -> usize {
    let mut decimal = Decimal::default();
    // Writing fails only where the writer does.
    let _ = write!(decimal, "{factor:e}");
    let Decimal { digits, point, exponent, .. } = decimal;
    let scale = exponent - point;
    let power = |exponent: i32| 10u128.checked_pow(u32::try_from(exponent.max(0)).unwrap_or(u32::MAX));
    // At most 17 digits times 64 bits.
    let product = u128::from(digits) * n as u128;
    if product == 0 {
        return 0;
    }
    let Some(numerator) = power(scale).and_then(|power| power.checked_mul(product)) else {
        return usize::MAX;
    };
    // A denominator beyond u128 is far beyond the product, which is below 2¹²¹.
    let denominator = power(-scale).and_then(|power| power.checked_mul(d as u128)).unwrap_or(u128::MAX);
    if denominator == 0 {
        return usize::MAX;
    }
    let (whole, rest) = (numerator / denominator, numerator % denominator);
    let up = match rounding {
        Rounding::Up => rest > 0,
        Rounding::Down => false,
        Rounding::HalfEven => match rest.cmp(&(denominator - rest)) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => whole % 2 == 1,
            std::cmp::Ordering::Greater => true,
        },
    };
    usize::try_from(whole + u128::from(up)).unwrap_or(usize::MAX)
}

/// A number that is read as it is written, `1.25e-3`, so that nothing is allocated: `digits · 10^(exponent - point)`.
#[derive(Default)]
struct Decimal {
    digits: u64,
    /// Digits after the point.
    point: i32,
    exponent: i32,
    part: Part,
}

#[derive(Clone, Copy, Default)]
enum Part {
    #[default]
    Whole,
    Fraction,
    Exponent {
        sign: i32,
    },
}

impl fmt::Write for Decimal {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let digit = byte.wrapping_sub(b'0');
            match (byte, self.part) {
                (b'.', _) => self.part = Part::Fraction,
                (b'e', _) => self.part = Part::Exponent { sign: 1 },
                (b'-', Part::Exponent { .. }) => self.part = Part::Exponent { sign: -1 },
                (b'0'..=b'9', Part::Exponent { sign }) => {
                    self.exponent = 10 * self.exponent + sign * i32::from(digit);
                }
                (b'0'..=b'9', part) => {
                    self.digits = 10 * self.digits + u64::from(digit);
                    self.point += i32::from(matches!(part, Part::Fraction));
                }
                _ => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_ends() {
        use Rounding::{Down, HalfEven, Up};
        for (factor, n, d, [up, down, even]) in [
            (1.1, 100, 10, [11, 11, 11]),
            (f64::MIN_POSITIVE, 1, 1, [1, 0, 0]),
            (5e-324, usize::MAX, usize::MAX, [1, 0, 0]),
            (5e-324, 0, 1, [0, 0, 0]),
            (f64::MAX, 1, usize::MAX, [usize::MAX; 3]),
            (1.0, usize::MAX, 1, [usize::MAX; 3]),
            (1.0, 5, 0, [usize::MAX; 3]),
            (1.0, 0, 0, [0; 3]),
            (0.5, 5, 1, [3, 2, 2]),
            (0.5, 7, 1, [4, 3, 4]),
            (1e22, 3, 1, [usize::MAX; 3]),
            (1e15, 3, 1_000_000, [3_000_000_000; 3]),
            (123.456, 1_000, 1, [123_456; 3]),
            // Seventeen digits.
            (0.1 + 0.2, 10, 3, [2, 1, 1]),
        ] {
            let found = [Up, Down, HalfEven].map(|rounding| share(factor, n, d, rounding));
            assert_eq!(found, [up, down, even], "{factor:e} {n} {d}");
        }
    }
}
