//! Lines through weights: the scale and the shift that leave the least squared error.
//!
//! An element x is to become `scale · l + shift`, where l is one of a few levels. For given levels the best line has a closed
//! form (weighted least squares), and for a given line the best levels are the nearest. The two steps in turn never increase
//! the error, but where they end depends on where they begin. So sixteen lines are followed at a time, one in a lane, and the
//! one with the least error wins.
//!
//! Every sum has one order, so the result is the same on every instruction set.

use super::levels::Levels;

/// Lines followed at a time.
pub(super) const LINES: usize = 16;

/// A number for each line.
pub(super) type Lanes = [f32; LINES];

/// Elements, and how much an error of each counts.
#[derive(Clone, Copy)]
pub(super) struct Elements<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
}

/// Which shifts a line may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shift {
    None,
    NotAboveZero,
    Free,
}

/// Sixteen lines.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) scale: Lanes,
    pub(super) shift: Lanes,
}

/// Weighted sums of levels l and elements x that a least squares fit needs.
#[derive(Clone, Copy, Default)]
pub(super) struct Moments {
    pub(super) one: f32,
    pub(super) x: f32,
    pub(super) l: f32,
    pub(super) ll: f32,
    pub(super) lx: f32,
}

/// 1 / x, and 0 for 0.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

impl Elements<'_> {
    /// The `n`th so many elements.
    #[inline(always)]
    pub(super) fn part(&self, n: usize, count: usize) -> Self {
        let range = n * count..(n + 1) * count;
        Self { x: &self.x[range.clone()], weight: &self.weight[range] }
    }

    /// The element of the largest magnitude.
    #[inline(always)]
    pub(super) fn extreme(&self) -> f32 {
        self.x.iter().fold(0.0, |extreme: f32, x| if x.abs() > extreme.abs() { *x } else { extreme })
    }

    /// The moments of the levels nearest to one line.
    pub(super) fn moments<L: Levels>(&self, scale: f32, shift: f32) -> Moments {
        let inverse = inverse(scale);
        let mut m = Moments::default();
        for (&x, &w) in self.x.iter().zip(self.weight) {
            let l = L::nearest((x - shift) * inverse);
            m.one += w;
            m.x += w * x;
            m.l += w * l;
            m.ll += w * l * l;
            m.lx += w * l * x;
        }
        m
    }

    /// The weighted squared error of each line with the levels nearest to it.
    pub(super) fn errors<L: Levels>(&self, lines: &Lines) -> Lanes {
        let inverse = lines.scale.map(inverse);
        let mut errors = [0.0; LINES];
        for (&x, &w) in self.x.iter().zip(self.weight) {
            for c in 0..LINES {
                let l = L::nearest((x - lines.shift[c]) * inverse[c]);
                let off = x - (lines.scale[c] * l + lines.shift[c]);
                errors[c] += w * (off * off);
            }
        }
        errors
    }

    /// Moves each line to the best one for the levels that are nearest to it now.
    pub(super) fn refit<L: Levels>(&self, lines: &mut Lines, shift: Shift) {
        let inverse = lines.scale.map(inverse);
        let (mut one, mut sum) = (0.0, 0.0);
        let (mut l1, mut ll, mut lx) = ([0.0; LINES], [0.0; LINES], [0.0; LINES]);
        for (&x, &w) in self.x.iter().zip(self.weight) {
            one += w;
            sum += w * x;
            for c in 0..LINES {
                let l = L::nearest((x - lines.shift[c]) * inverse[c]);
                l1[c] += w * l;
                ll[c] += w * l * l;
                lx[c] += w * l * x;
            }
        }
        for c in 0..LINES {
            let moments = Moments { one, x: sum, l: l1[c], ll: ll[c], lx: lx[c] };
            let (scale, at) = moments.line(shift, lines.scale[c], lines.shift[c]);
            lines.scale[c] = scale;
            lines.shift[c] = at;
        }
    }

    /// Follows lines for some rounds, lets `round` make them what can be stored, and returns the best: scale, shift, error.
    pub(super) fn best<L: Levels>(
        &self,
        mut lines: Lines,
        shift: Shift,
        rounds: usize,
        round: impl Fn(f32) -> f32,
    ) -> (f32, f32, f32) {
        for _ in 0..rounds {
            self.refit::<L>(&mut lines, shift);
        }
        for c in 0..LINES {
            lines.scale[c] = round(lines.scale[c]);
            lines.shift[c] = round(lines.shift[c]);
        }
        let (c, error) = least(&self.errors::<L>(&lines));
        (lines.scale[c], lines.shift[c], error)
    }

    /// Lines without a shift that take the extreme element to about the lowest or the highest level: at most the part `inside`
    /// of the way to zero short of it, or the part `outside` beyond.
    pub(super) fn through_zero<L: Levels>(&self, inside: f32, outside: f32) -> Lines {
        let extreme = self.extreme();
        let mut lines = Lines { scale: [0.0; LINES], shift: [0.0; LINES] };
        for c in 0..LINES {
            // Where no level is below zero, all lines go to the highest.
            let (end, step) = if L::LOW == 0.0 {
                (L::HIGH, c as f32 / (LINES - 1) as f32)
            } else {
                (if c % 2 == 0 { L::LOW } else { L::HIGH }, (c / 2) as f32 / (LINES / 2 - 1) as f32)
            };
            lines.scale[c] = extreme / (end * (1.0 - inside + step * (inside + outside)));
        }
        lines
    }

    /// Lines whose lowest and highest levels lie about the lowest and the highest element: at most so many steps between levels
    /// inside of them, or outside.
    pub(super) fn through_both_ends<L: Levels>(&self, shift: Shift, inside: f32, outside: f32) -> Lines {
        let (mut low, mut high) = (self.x[0], self.x[0]);
        for &x in self.x {
            low = if x < low { x } else { low };
            high = if x > high { x } else { high };
        }
        if shift == Shift::NotAboveZero && low > 0.0 {
            low = 0.0;
        }
        let step = (high - low) / (L::HIGH - L::LOW);
        let mut lines = Lines { scale: [0.0; LINES], shift: [0.0; LINES] };
        for c in 0..LINES {
            let by = |n: usize| (n as f32 / 3.0 * (inside + outside) - outside) * step;
            let (from, to) = (low + by(c % 4), high - by(c / 4));
            let from = if shift == Shift::NotAboveZero && from > 0.0 { 0.0 } else { from };
            lines.scale[c] = (to - from) / (L::HIGH - L::LOW);
            lines.shift[c] = from - L::LOW * lines.scale[c];
        }
        lines
    }
}

impl Moments {
    /// The line of least error; where that is none, or none of the kind allowed, what was.
    #[inline(always)]
    fn line(&self, allowed: Shift, scale: f32, shift: f32) -> (f32, f32) {
        let through_zero = if self.ll > 0.0 { self.lx / self.ll } else { scale };
        if allowed == Shift::None {
            return (through_zero, 0.0);
        }
        let det = self.one * self.ll - self.l * self.l;
        let fits = det > 1e-6 * self.one * self.ll;
        let free = (self.one * self.lx - self.x * self.l) / if fits { det } else { 1.0 };
        let at = (self.x - free * self.l) / self.one;
        let (free, at) = if fits && free > 0.0 { (free, at) } else { (scale, shift) };
        if allowed == Shift::NotAboveZero && at > 0.0 { (through_zero, 0.0) } else { (free, at) }
    }
}

/// The first of the least errors, and which it is.
#[inline(always)]
pub(super) fn least(errors: &Lanes) -> (usize, f32) {
    let mut best = 0;
    for c in 1..LINES {
        if errors[c] < errors[best] {
            best = c;
        }
    }
    (best, errors[best])
}
