//! Weights rounded to blocks.
//!
//! What is minimised is the weighted squared error of each block, by a search of this crate's own: see [`fit`] and
//! `docs/quantisation.md`.

mod fit;
mod levels;
mod pack;
mod search;

use fit::Elements;
use pack::{Pack, Parts};
use search::Half;

use super::with_integer_block;
use crate::simd::{Kernel, Simd};
use crate::{Backend, BlockType, Error, Result};

impl BlockType {
    /// Whether [`quantise_row`](Self::quantise_row) makes rows of this type.
    pub const fn can_be_made(self) -> bool {
        self.has_int8()
    }

    /// Rounds a row to blocks, such that `Σ importance[i] · (from[i] - widened[i])²` is small; an importance of 1 each, if none
    /// are given.
    ///
    /// The search is not exhaustive. Its result depends on the block's elements and importances alone, and is the same on
    /// every processor. Values beyond what a type can hold become its largest.
    ///
    /// # Errors
    ///
    /// [`Error::NotMade`] if this crate only widens the type; [`Error::PartialBlock`] and [`Error::RowBytes`] unless `from` is a
    /// whole number of blocks and `to` has exactly their bytes; [`Error::Importances`] unless there is one for each element;
    /// [`Error::NotFinite`] if an element is not finite, or an importance negative or not finite.
    pub fn quantise_row(self, from: &[f32], importance: Option<&[f32]>, to: &mut [u8]) -> Result<()> {
        if !self.can_be_made() {
            return Err(Error::NotMade { block: self, known: known() });
        }
        self.check_row(from.len(), to.len())?;
        if let Some(found) = importance.map(<[f32]>::len).filter(|n| *n != from.len()) {
            return Err(Error::Importances { expected: from.len(), found });
        }
        check("element", from, |v| v.is_finite())?;
        check("importance", importance.unwrap_or_default(), |v| v.is_finite() && *v >= 0.0)?;
        with_integer_block!(self, B => Backend::run_plain_code(Row::<B>::new(from, importance, to)), else => {});
        Ok(())
    }
}

/// The types that can be made, for an error.
fn known() -> String {
    let known = BlockType::ALL.iter().filter(|ty| ty.can_be_made());
    known.map(|ty| ty.name()).collect::<Vec<_>>().join(", ")
}

/// That all values are good.
fn check(what: &'static str, values: &[f32], good: impl Fn(&f32) -> bool) -> Result<()> {
    match values.iter().position(|v| !good(v)) {
        None => Ok(()),
        Some(column) => Err(Error::NotFinite { what, column, value: values[column] }),
    }
}

/// A row to be rounded to blocks `B`.
struct Row<'a, B> {
    from: &'a [f32],
    importance: Option<&'a [f32]>,
    to: &'a mut [u8],
    block: std::marker::PhantomData<B>,
}

impl<'a, B> Row<'a, B> {
    fn new(from: &'a [f32], importance: Option<&'a [f32]>, to: &'a mut [u8]) -> Self {
        Self { from, importance, to, block: std::marker::PhantomData }
    }
}

impl<B: Pack> Kernel for Row<'_, B> {
    type Output = ();

    /// Plain code, compiled for the instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (n, (from, to)) in
            self.from.chunks_exact(B::ELEMENTS).zip(self.to.chunks_exact_mut(B::BYTES)).enumerate()
        {
            let importance = self.importance.map(|all| &all[n * B::ELEMENTS..(n + 1) * B::ELEMENTS]);
            quantise::<B>(from, importance, to);
        }
    }
}

/// Smaller than what any f16 scale makes of any block but zeros.
const TINY: f32 = 1.0 / (1u64 << 40) as f32;

/// What counts least counts so much of what counts most, lest unimportant elements become anything at all.
const LEAST_WEIGHT: f32 = 1.0 / (1 << 20) as f32;

/// The largest magnitude.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, v| if v.abs() > most { v.abs() } else { most })
}

/// Rounds a block.
fn quantise<B: Pack>(from: &[f32], importance: Option<&[f32]>, to: &mut [u8]) {
    let most = largest(from);
    // The power of two at or below it; of a subnormal, the smallest that is none.
    let unit = f32::from_bits((most.to_bits() & 0xff << 23).max(1 << 23));
    let (mut x, mut weight) = ([0.0; 256], [1.0; 256]);
    for i in 0..B::ELEMENTS {
        x[i] = from[i] / unit;
    }
    if let Some(importance) = importance {
        let most = largest(importance);
        for i in 0..B::ELEMENTS {
            weight[i] = if most > 0.0 { (importance[i] / most).max(LEAST_WEIGHT) } else { 1.0 };
        }
    }
    let e = Elements { x: &x[..B::ELEMENTS], weight: &weight[..B::ELEMENTS] };
    let zeros = Parts::zeros::<B::Levels>();
    let (mut parts, half) = (zeros, Half { unit });
    let error = match (B::SCALE_IS_F16, B::SCALED, B::MINIMA) {
        (false, _, _) => search::power_of_two::<B>(e, half, &mut parts),
        (_, false, false) => search::one_scale::<B>(e, half, &mut parts),
        (_, false, true) => search::one_line::<B>(e, half, &mut parts),
        (_, true, false) => search::scaled::<B>(e, half, &mut parts),
        (_, true, true) => search::scaled_lines::<B>(e, half, &mut parts),
    };
    // Scales that are too coarse for elements so small.
    let useless = error > e.x.iter().zip(e.weight).map(|(x, w)| w * (x * x)).sum();
    let out_of_reach = B::SCALE_IS_F16 && most < TINY;
    let parts = if useless || out_of_reach { zeros } else { parts };
    to.fill(0);
    B::pack(&parts, to);
}

#[cfg(test)]
mod tests {
    use super::levels::Levels;
    use super::*;
    use crate::blocks::sixteen::OneBlock;
    use crate::simd::Portable;

    fn as_without_vectors<B: Pack>(from: &[f32], importance: &[f32]) {
        for importance in [None, Some(importance)] {
            let mut rows = [vec![0; from.len() / B::ELEMENTS * B::BYTES], Vec::new()];
            rows[1] = rows[0].clone();
            Backend::run_plain_code(Row::<B>::new(from, importance, &mut rows[0]));
            Row::<B>::new(from, importance, &mut rows[1]).run(Portable);
            assert_eq!(rows[0], rows[1], "{}", B::TYPE);
        }
    }

    #[test]
    fn vectors_make_the_same_blocks() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let from: Vec<f32> = (0..1024).map(|_| next() * next() * next()).collect();
        let importance: Vec<f32> = (0..1024).map(|_| next().abs()).collect();
        for &ty in BlockType::ALL {
            with_integer_block!(ty, B => as_without_vectors::<B>(&from, &importance), else => {});
        }
    }

    fn are_taken_apart_again<B: Pack>(next: &mut impl FnMut() -> u32) {
        let (count, zero) = (B::ELEMENTS / B::SUB, B::ZERO);
        let mut any = |low: f32, high: f32| {
            let (low, high) = (low as i32, high as i32);
            low + (next() >> 8) as i32 % (high - low + 1)
        };
        let mut parts = Parts { scale: 0x1234, minimum: 0x2345, ..Parts::zeros::<B::Levels>() };
        if !B::SCALE_IS_F16 {
            parts.scale = 0x56;
        }
        for i in 0..B::ELEMENTS {
            parts.codes[i] = match B::TABLE {
                Some(_) => any(0.0, 15.0) as u8,
                None => (any(B::Levels::LOW, B::Levels::HIGH) + zero) as u8,
            };
        }
        for s in 0..16 {
            parts.scales[s] = any(B::Scales::LOW, B::Scales::HIGH) as i8;
            parts.minima[s] = if B::SCALED { any(0.0, B::Scales::HIGH) as u8 } else { 1 };
        }
        let mut block = vec![0; B::BYTES];
        B::pack(&parts, &mut block);
        let (mut codes, mut scales, mut minima) = (vec![0; B::ELEMENTS], vec![0; count], vec![0; count]);
        B::unpack(&OneBlock(&block), |g, sixteen| {
            codes[16 * g..16 * (g + 1)].copy_from_slice(&sixteen);
        });
        B::scales(&block, &mut scales);
        B::minima(&block, &mut minima);
        assert_eq!(B::scale_bits(&block), parts.scale, "{}", B::TYPE);
        assert_eq!(codes, parts.codes[..B::ELEMENTS], "{}", B::TYPE);
        assert_eq!(scales, parts.scales[..count], "{}", B::TYPE);
        if B::MINIMA {
            assert_eq!(B::minimum_bits(&block), parts.minimum, "{}", B::TYPE);
            assert_eq!(minima, parts.minima[..count], "{}", B::TYPE);
        }
    }

    #[test]
    fn what_is_packed_is_taken_apart_again() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        for &ty in BlockType::ALL {
            with_integer_block!(ty, B => are_taken_apart_again::<B>(&mut next), else => {});
        }
    }
}
