//! Blocks of 256 elements whose codes are numbers of points in a grid of eight or four dimensions: ggml's IQ1 to IQ3 types.
//!
//! A point gives the magnitudes of so many elements, and signs are stored beside it; or, with about one bit a weight, it gives
//! -1, 0 or 1, to which an eighth is added or subtracted.

mod iq1;
mod iq2;
mod iq3;
mod tables;

pub(crate) use iq1::{Iq1M, Iq1S};
pub(crate) use iq2::{Iq2S, Iq2Xs, Iq2Xxs};
pub(crate) use iq3::{Iq3S, Iq3Xxs};

/// The points of a grid, each a number of levels of `16 / N` bits, as the values of the levels.
const fn points<const N: usize, const E: usize>(packed: &[u16; E], levels: [i8; 8]) -> [[i8; N]; E] {
    let mut points = [[0; N]; E];
    let mut e = 0;
    while e < E {
        let mut i = 0;
        while i < N {
            points[e][i] = levels[(packed[e] >> (16 / N * i)) as usize % (1 << (16 / N)) % 8];
            i += 1;
        }
        e += 1;
    }
    points
}

/// Widens eight elements: `d` times the magnitude, negated where a bit of `signs` is set.
#[inline(always)]
fn signed(d: f32, magnitudes: [i8; 8], signs: u8, to: &mut [f32]) {
    for i in 0..8 {
        let value = d * f32::from(magnitudes[i]);
        to[i] = if signs & 1 << i == 0 { value } else { -value };
    }
}

/// Eight signs of seven bits: the eighth makes the number of those set even.
#[inline(always)]
fn even(seven: u32) -> u8 {
    let seven = seven & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// Gives `put` 32 elements, the `s`th of a block.
#[inline(always)]
fn put_32(s: usize, values: [f32; 32], put: &mut impl FnMut(usize, [f32; 16])) {
    let (halves, _) = values.as_chunks();
    put(2 * s, halves[0]);
    put(2 * s + 1, halves[1]);
}
