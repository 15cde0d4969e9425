//! Register tiles: some rows of x against some stored rows over one K block.

use std::marker::PhantomData;

use crate::element::Element;
use crate::simd::{Chunk, Kernel, Simd};

/// Floats from one row of a tile's output to the next.
pub(crate) const OUT_STRIDE: usize = 48;

/// Stored rows over one block: row i begins `i · stride` bytes in.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
}

impl<'a> StoredRows<'a> {
    /// The rows from `n` on.
    #[inline(always)]
    pub(crate) fn from(self, n: usize) -> Self {
        Self { bytes: &self.bytes[n * self.stride..], stride: self.stride }
    }

    /// The first `len` chunks of row `n`.
    #[inline(always)]
    pub(crate) fn row<E: Element>(self, n: usize, len: usize) -> &'a [E::Stored] {
        &E::chunks(&self.bytes[n * self.stride..]).0[..len]
    }
}

/// Adds the products of M rows of x and N weight rows over one block to `out`.
pub(crate) struct Tile<'a, E, A, const M: usize, const N: usize> {
    /// The chunks of M rows, in turn.
    pub(crate) x: &'a [Chunk],
    pub(crate) w: StoredRows<'a>,
    /// Weights to ask for meanwhile, as many.
    pub(crate) ahead: StoredRows<'a>,
    pub(crate) out: &'a mut [f32],
    pub(crate) types: PhantomData<(E, A)>,
}

impl<E: Element, A: Element, const M: usize, const N: usize> Kernel for Tile<'_, E, A, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, _) = self.x.as_chunks::<M>();
        let len = x.len() / E::CHUNKS;
        let x = &x[..len * E::CHUNKS];
        // Where E is A widened, of which there are more.
        let apart = A::CHUNKS / E::CHUNKS;
        let w: [_; N] = std::array::from_fn(|n| self.w.row::<E>(n, len));
        let ahead: [_; N] = std::array::from_fn(|n| self.ahead.row::<A>(n, len / apart));
        let acc = s.by_parts(
            #[inline(always)]
            |part| {
                let mut acc = [[s.part(s.splat(0.0), part); N]; M];
                for j in 0..len {
                    for i in 0..E::CHUNKS {
                        let x = &x[j * E::CHUNKS + i];
                        let mut b = [s.part(s.splat(0.0), part); N];
                        for n in 0..N {
                            if part + 1 == S::PARTS && i == 0 && j % apart == 0 {
                                s.prefetch(&ahead[n][j / apart]);
                            }
                            b[n] = s.part(E::load(s, &w[n][j], i), part);
                        }
                        for m in 0..M {
                            let a = s.part(s.load(&x[m]), part);
                            for n in 0..N {
                                acc[m][n] = E::mul_add(s, a, b[n], acc[m][n]);
                            }
                        }
                    }
                }
                acc
            },
        );
        let out = &mut self.out[..(M - 1) * OUT_STRIDE + N];
        add_sums(s, acc, |m, n, sum| out[m * OUT_STRIDE + n] += sum);
    }
}

/// Hands out the tree sums of a tile.
#[inline(always)]
fn add_sums<S: Simd, const M: usize, const N: usize>(
    s: S,
    acc: [[S::F; N]; M],
    mut add: impl FnMut(usize, usize, f32),
) {
    let flat = |i: usize| acc[i.min(M * N - 1) / N][i.min(M * N - 1) % N];
    let mut i = 0;
    while i < M * N {
        let four = s.tree_sum4([flat(i), flat(i + 1), flat(i + 2), flat(i + 3)]);
        for k in 0..4.min(M * N - i) {
            add((i + k) / N, (i + k) % N, four[k]);
        }
        i += 4;
    }
}
