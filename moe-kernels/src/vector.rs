//! Norms and softmax: the vectorised twins of definitions in [`moe_core::numerics`], bit for bit.

use moe_core::numerics::{LANES, padded};
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::Backend;
use crate::chunk::BLOCK_CHUNKS;
use crate::schedule::worth_threads;
use crate::simd::{Kernel, Simd};

/// The root-mean-square norm of every row: `out = weight ⊙ (x · 1/√(mean(x²) + eps))` (Zhang and Sennrich, 1910.07467).
///
/// `x` and `out` are `[T, D]`, `weight` is `[D]`. The sum of squares is a canonical dot product; the products are rounded in
/// the order written.
///
/// # Panics
///
/// If the shapes differ.
#[track_caller]
pub fn rms_norm(
    backend: Backend,
    x: ArrayView2<'_, f32>,
    weight: &[f32],
    eps: f32,
    mut out: ArrayViewMut2<'_, f32>,
) {
    assert_eq!(x.dim(), out.dim(), "shape of the output");
    assert_eq!(x.ncols(), weight.len(), "length of the weight");
    let parallel = worth_threads(x.len() * 4);
    let dim = weight.len().max(1);
    match (x.as_slice(), out.as_slice_mut()) {
        (Some(x), Some(out)) if parallel => x
            .par_chunks(dim)
            .zip(out.par_chunks_mut(dim))
            .for_each(|(x, out)| backend.run(RmsNorm { x, weight, eps, out })),
        (Some(x), Some(out)) => {
            x.chunks(dim)
                .zip(out.chunks_mut(dim))
                .for_each(|(x, out)| backend.run(RmsNorm { x, weight, eps, out }));
        }
        _ => {
            for (x, mut out) in x.axis_iter(Axis(0)).zip(out.axis_iter_mut(Axis(0))) {
                let mut row = vec![0.0; dim];
                backend.run(RmsNorm { x: &x.to_vec(), weight, eps, out: &mut row });
                out.iter_mut().zip(row).for_each(|(to, from)| *to = from);
            }
        }
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, weight, eps, out } = self;
        let squares = block_sums(s, x, |acc, v| s.fma(v, v, acc));
        let scale = s.splat(1.0 / (squares / x.len() as f32 + eps).sqrt());
        for_each_chunk(out, |i, to| {
            let (v, w) = (padded_at(x, i), padded_at(weight, i));
            s.store(s.mul(s.load(&w), s.mul(s.load(&v), scale)), to);
        });
    }
}

/// [`moe_core::numerics::softmax`]: `exp(x - max) / Σ exp(x - max)`, in place.
pub fn softmax(backend: Backend, x: &mut [f32]) {
    backend.run(Softmax(x));
}

struct Softmax<'a>(&'a mut [f32]);

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let top = s.splat(max(s, self.0));
        for_each_chunk(self.0, |_, v| s.store(s.exp(s.sub(s.load(v), top)), v));
        let total = s.splat(block_sums(s, self.0, |acc, v| s.add(acc, v)));
        for_each_chunk(self.0, |_, v| s.store(s.div(s.load(v), total), v));
    }
}

/// [`moe_core::numerics::exp`] of every value, in place.
pub fn exp(backend: Backend, x: &mut [f32]) {
    backend.run(Map::Exp(x));
}

/// [`moe_core::numerics::silu`] of every value, in place.
pub fn silu(backend: Backend, x: &mut [f32]) {
    backend.run(Map::Silu(x));
}

enum Map<'a> {
    Exp(&'a mut [f32]),
    Silu(&'a mut [f32]),
}

impl Kernel for Map<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self {
            Self::Exp(x) => for_each_chunk(x, |_, v| s.store(s.exp(s.load(v)), v)),
            Self::Silu(x) => for_each_chunk(x, |_, v| s.store(s.silu(s.load(v)), v)),
        }
    }
}

/// [`moe_core::numerics::max`].
#[inline(always)]
pub(crate) fn max<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut best = s.splat(f32::NEG_INFINITY);
    for v in whole {
        best = s.max(s.load(v), best);
    }
    let mut lanes = [0.0; LANES];
    s.store(best, &mut lanes);
    moe_core::numerics::max(&lanes).max(moe_core::numerics::max(rest))
}

/// Sums over a slice in the canonical order, each chunk taken into the chains by `step`.
#[inline(always)]
fn block_sums<S: Simd>(s: S, x: &[f32], step: impl Fn(S::F32x16, S::F32x16) -> S::F32x16) -> f32 {
    let mut sum = 0.0;
    for block in x.chunks(BLOCK_CHUNKS * LANES) {
        let (whole, rest) = block.as_chunks::<LANES>();
        let mut acc = s.splat(0.0);
        for v in whole {
            acc = step(acc, s.load(v));
        }
        if !rest.is_empty() {
            acc = step(acc, s.load(&padded(rest)));
        }
        sum += s.tree_sum(acc);
    }
    sum
}

/// Runs `f(index, chunk)` over a slice, its last part in a padded chunk of which only the part is kept.
#[inline(always)]
fn for_each_chunk(x: &mut [f32], f: impl Fn(usize, &mut [f32; LANES])) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let count = whole.len();
    for (i, v) in whole.iter_mut().enumerate() {
        f(i, v);
    }
    if !rest.is_empty() {
        let mut v = padded(rest);
        f(count, &mut v);
        rest.copy_from_slice(&v[..rest.len()]);
    }
}

/// Chunk `i` of a slice, padded.
#[inline(always)]
fn padded_at(x: &[f32], i: usize) -> [f32; LANES] {
    let x = &x[i * LANES..];
    match x.first_chunk() {
        Some(v) => *v,
        None => padded(x),
    }
}
