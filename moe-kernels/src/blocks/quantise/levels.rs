//! The levels that an element or a scale may have.

use crate::blocks::nonlinear::{E2M1, IQ4};

/// Adding and subtracting 1.5 · 2^23 rounds to an integer.
const MAGIC: f32 = 12_582_912.0;

/// A set of numbers, as multiples of a scale.
pub(super) trait Levels {
    /// The lowest.
    const LOW: f32;
    /// The highest.
    const HIGH: f32;

    /// The level nearest to a number; of two, one of them.
    fn nearest(v: f32) -> f32;
    /// What is stored for a level.
    fn code(level: f32) -> u8;
}

/// Integers from `LOW` to `HIGH`, stored as such plus `ZERO`.
pub(super) struct Integers<const LOW: i32, const HIGH: i32, const ZERO: i32>;

impl<const LOW: i32, const HIGH: i32, const ZERO: i32> Levels for Integers<LOW, HIGH, ZERO> {
    const LOW: f32 = LOW as f32;
    const HIGH: f32 = HIGH as f32;

    #[inline(always)]
    fn nearest(v: f32) -> f32 {
        let v = if v > Self::LOW { v } else { Self::LOW };
        let v = if v < Self::HIGH { v } else { Self::HIGH };
        v + MAGIC - MAGIC
    }

    #[inline(always)]
    fn code(level: f32) -> u8 {
        (level as i32 + ZERO) as u8
    }
}

/// A table's entries in ascending order; `code` gives the entry's number in the table as it is.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident, $table:expr, $count:literal, $order:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl $name {
            const ORDER: [u8; $count] = $order;

            const fn level(i: usize) -> f32 {
                $table[Self::ORDER[i] as usize] as f32
            }
        }

        impl Levels for $name {
            const LOW: f32 = Self::level(0);
            const HIGH: f32 = Self::level($count - 1);

            #[inline(always)]
            fn nearest(v: f32) -> f32 {
                let mut nearest = Self::LOW;
                for i in 1..$count {
                    let (below, here) = (Self::level(i - 1), Self::level(i));
                    nearest = if v > 0.5 * (below + here) { here } else { nearest };
                }
                nearest
            }

            #[inline(always)]
            fn code(level: f32) -> u8 {
                let mut code = Self::ORDER[0];
                for i in 1..$count {
                    code = if level >= Self::level(i) { Self::ORDER[i] } else { code };
                }
                code
            }
        }
    };
}

table!(
    /// The integers of the IQ4 types.
    Iq4Levels, IQ4, 16, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
);
table!(
    /// Twice the 4-bit floats.
    E2M1Levels, E2M1, 15, [15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7]
);
