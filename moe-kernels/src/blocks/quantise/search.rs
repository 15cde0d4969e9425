//! The search for a block's scales and codes.

use super::fit::{Elements, LINES, Lines, Moments, Shift, inverse, least};
use super::levels::Levels;
use super::pack::{Pack, Parts};
use crate::blocks::scale::{narrow_f16, widen_f16};

/// The f16 numbers, in units of a block: a power of two that is taken out of its elements.
#[derive(Clone, Copy)]
pub(super) struct Half {
    /// The unit.
    pub(super) unit: f32,
}

impl Half {
    /// The bits of the nearest f16.
    #[inline(always)]
    fn bits(self, value: f32) -> u16 {
        narrow_f16(value * self.unit)
    }

    /// The nearest f16.
    #[inline(always)]
    fn round(self, value: f32) -> f32 {
        widen_f16(self.bits(value)) / self.unit
    }
}

/// Rounds of levels and lines in turn.
const ROUNDS: usize = 2;
/// Rounds of the scales of sub-blocks and those of the block in turn.
const BLOCK_ROUNDS: usize = 3;

/// A block with one scale and no minimum.
pub(super) fn one_scale<B: Pack>(e: Elements<'_>, half: Half, parts: &mut Parts) -> f32 {
    let lines = e.through_zero::<B::Levels>(0.25, 0.15);
    let (scale, _, error) = e.best::<B::Levels>(lines, Shift::None, ROUNDS, |v| half.round(v));
    parts.scale = half.bits(scale);
    put_codes::<B>(e, scale, 0.0, &mut parts.codes);
    error
}

/// A block with one scale and one minimum.
pub(super) fn one_line<B: Pack>(e: Elements<'_>, half: Half, parts: &mut Parts) -> f32 {
    let lines = e.through_both_ends::<B::Levels>(Shift::Free, 1.0, 0.25);
    let (scale, shift, error) = e.best::<B::Levels>(lines, Shift::Free, ROUNDS, |v| half.round(v));
    parts.scale = half.bits(scale);
    parts.minimum = half.bits(-shift);
    put_codes::<B>(e, scale, shift, &mut parts.codes);
    error
}

/// A block whose scale is a power of two.
pub(super) fn power_of_two<B: Pack>(e: Elements<'_>, half: Half, parts: &mut Parts) -> f32 {
    // Of the element of largest magnitude, which is 1 to 2, levels are at most 12: the best scale is about 1/8. Above 2^124,
    // twelve of it would be infinite.
    let unit = (half.unit.to_bits() >> 23) as i32 - 127;
    let mut lines = Lines { scale: [0.0; LINES], shift: [0.0; LINES] };
    let exponent = |c: usize| (c as i32 - 8 + unit).clamp(-128, 124) - unit;
    for c in 0..LINES {
        lines.scale[c] = f32::from_bits(((127 + exponent(c)) as u32) << 23);
    }
    let (c, error) = least(&e.errors::<B::Levels>(&lines));
    parts.scale = (128 + exponent(c) + unit) as u16;
    put_codes::<B>(e, lines.scale[c], 0.0, &mut parts.codes);
    error
}

/// A block whose sub-blocks have scales.
pub(super) fn scaled<B: Pack>(e: Elements<'_>, half: Half, parts: &mut Parts) -> f32 {
    let count = B::ELEMENTS / B::SUB;
    let (mut wanted, mut weight) = ([0.0; 16], [0.0; 16]);
    for s in 0..count {
        let sub = e.part(s, B::SUB);
        let lines = sub.through_zero::<B::Levels>(0.25, 0.15);
        (wanted[s], _, _) = sub.best::<B::Levels>(lines, Shift::None, ROUNDS, |v| v);
        weight[s] = sub.moments::<B::Levels>(wanted[s], 0.0).ll;
    }
    let subs = Elements { x: &wanted[..count], weight: &weight[..count] };
    let lines = subs.through_zero::<B::Scales>(0.1, 0.1);
    let (mut d, _, _) = subs.best::<B::Scales>(lines, Shift::None, ROUNDS, |v| half.round(v));
    let (mut best, mut best_d, mut best_scales) = (f32::INFINITY, 0.0, [0.0; 16]);
    for _ in 0..BLOCK_ROUNDS {
        let (mut error, mut scales, mut lx, mut ll) = (0.0, [0.0; 16], 0.0, 0.0);
        for s in 0..count {
            let sub = e.part(s, B::SUB);
            let near = B::Scales::nearest(wanted[s] * inverse(d));
            let mut lines = Lines { scale: [0.0; LINES], shift: [0.0; LINES] };
            let scale = |c: usize| B::Scales::nearest(near + c as f32 - (LINES / 2) as f32);
            for c in 0..LINES {
                lines.scale[c] = d * scale(c);
            }
            let (c, off) = least(&sub.errors::<B::Levels>(&lines));
            error += off;
            scales[s] = scale(c);
            let m = sub.moments::<B::Levels>(lines.scale[c], 0.0);
            lx += scales[s] * m.lx;
            ll += scales[s] * scales[s] * m.ll;
        }
        if error < best {
            (best, best_d, best_scales) = (error, d, scales);
        }
        d = half.round(if ll > 0.0 { lx / ll } else { d });
    }
    parts.scale = half.bits(best_d);
    for s in 0..count {
        parts.scales[s] = best_scales[s] as i8;
        let codes = &mut parts.codes[s * B::SUB..(s + 1) * B::SUB];
        put_codes::<B>(e.part(s, B::SUB), best_d * best_scales[s], 0.0, codes);
    }
    best
}

/// A block whose sub-blocks have scales and minima.
pub(super) fn scaled_lines<B: Pack>(e: Elements<'_>, half: Half, parts: &mut Parts) -> f32 {
    let count = B::ELEMENTS / B::SUB;
    let (mut wanted, mut weight) = ([[0.0; 16]; 2], [[0.0; 16]; 2]);
    for s in 0..count {
        let sub = e.part(s, B::SUB);
        let lines = sub.through_both_ends::<B::Levels>(Shift::NotAboveZero, 1.0, 0.25);
        let (scale, shift, _) = sub.best::<B::Levels>(lines, Shift::NotAboveZero, ROUNDS, |v| v);
        let m = sub.moments::<B::Levels>(scale, shift);
        (wanted[0][s], wanted[1][s]) = (scale, -shift);
        (weight[0][s], weight[1][s]) = (m.ll, m.one);
    }
    let [mut d, mut dmin] = [0, 1].map(|i| {
        let subs = Elements { x: &wanted[i][..count], weight: &weight[i][..count] };
        let lines = subs.through_zero::<B::Scales>(0.1, 0.1);
        subs.best::<B::Scales>(lines, Shift::None, ROUNDS, |v| half.round(v)).0
    });
    let mut best = (f32::INFINITY, 0.0, 0.0, [0.0; 16], [0.0; 16]);
    for _ in 0..BLOCK_ROUNDS {
        let (mut error, mut scales, mut minima) = (0.0, [0.0; 16], [0.0; 16]);
        let mut both = Both::default();
        for s in 0..count {
            let sub = e.part(s, B::SUB);
            let near = B::Scales::nearest(wanted[0][s] * inverse(d));
            let low = B::Scales::nearest(wanted[1][s] * inverse(dmin));
            let scale = |c: usize| B::Scales::nearest(near + (c % 4) as f32 - 1.0);
            let minimum = |c: usize| B::Scales::nearest(low + (c / 4) as f32 - 1.0);
            let mut lines = Lines { scale: [0.0; LINES], shift: [0.0; LINES] };
            for c in 0..LINES {
                lines.scale[c] = d * scale(c);
                lines.shift[c] = -(dmin * minimum(c));
            }
            let (c, off) = least(&sub.errors::<B::Levels>(&lines));
            error += off;
            (scales[s], minima[s]) = (scale(c), minimum(c));
            both.add(scales[s], minima[s], sub.moments::<B::Levels>(lines.scale[c], lines.shift[c]));
        }
        if error < best.0 {
            best = (error, d, dmin, scales, minima);
        }
        (d, dmin) = both.fit(d, dmin);
        (d, dmin) = (half.round(d), half.round(dmin));
    }
    let (error, d, dmin, scales, minima) = best;
    (parts.scale, parts.minimum) = (half.bits(d), half.bits(dmin));
    for s in 0..count {
        (parts.scales[s], parts.minima[s]) = (scales[s] as i8, minima[s] as u8);
        let codes = &mut parts.codes[s * B::SUB..(s + 1) * B::SUB];
        put_codes::<B>(e.part(s, B::SUB), d * scales[s], -(dmin * minima[s]), codes);
    }
    error
}

/// The least squares fit of the two scales of a block, its integers given.
#[derive(Default)]
struct Both {
    dd: f32,
    dm: f32,
    mm: f32,
    dx: f32,
    mx: f32,
}

impl Both {
    #[inline(always)]
    fn add(&mut self, scale: f32, minimum: f32, m: Moments) {
        self.dd += scale * scale * m.ll;
        self.dm -= scale * minimum * m.l;
        self.mm += minimum * minimum * m.one;
        self.dx += scale * m.lx;
        self.mx -= minimum * m.x;
    }

    #[inline(always)]
    fn fit(&self, d: f32, dmin: f32) -> (f32, f32) {
        let det = self.dd * self.mm - self.dm * self.dm;
        if det > 1e-6 * self.dd * self.mm {
            let (d, dmin) = (self.dx * self.mm - self.mx * self.dm, self.mx * self.dd - self.dx * self.dm);
            if d > 0.0 && dmin >= 0.0 {
                return (d / det, dmin / det);
            }
        }
        if self.mm == 0.0 && self.dd > 0.0 { (self.dx / self.dd, dmin) } else { (d, dmin) }
    }
}

/// Writes the code of each element's nearest level.
fn put_codes<B: Pack>(e: Elements<'_>, scale: f32, shift: f32, to: &mut [u8]) {
    let inverse = inverse(scale);
    for (x, to) in e.x.iter().zip(to) {
        *to = B::Levels::code(B::Levels::nearest((x - shift) * inverse));
    }
}
