//! Register tiles: some rows of x against some stored rows over one K block; and how many of each ([`Tiling`]).

use std::marker::PhantomData;

use moe_core::numerics::LANES;

use crate::chunk::{Chunk, floats_mut};
use crate::element::Element;
use crate::simd::{Kernel, Simd};

/// Bytes of a line of the cache.
const LINE: usize = size_of::<Chunk>();

/// How many weight rows meet the four rows of x of a register tile, and where these weights are widened. It changes no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiling {
    /// For sixteen registers: twelve sums, of weights that are widened into strips.
    Narrow,
    /// For thirty-two registers: sixteen sums, of weights that are widened in registers.
    Square,
    /// For thirty-two registers and two units that multiply all lanes of them: twenty-four sums, of weights that are widened
    /// into strips. The units then wait neither for widening, which is theirs to do, nor for loads, of which there are fewer
    /// a product.
    Wide,
}

/// Weight rows of a tile that is [`Tiling::Wide`].
pub(crate) const WIDE: usize = 6;

impl Tiling {
    /// Rows of x up to which weights are not worth a strip: it must be read that often to pay.
    const FEW: usize = 16;

    /// What a sweep does with so many rows of x.
    pub(crate) fn of_rows(self, rows: usize) -> Self {
        match self {
            // One row needs few registers.
            Self::Narrow if rows == 1 => Self::Square,
            Self::Wide if rows <= Self::FEW => Self::Square,
            other => other,
        }
    }

    /// The same in words: rows of x by rows of weights, and where weights are widened.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Narrow => "4 x 3, weights widened into strips",
            Self::Square => "4 x 4, weights widened in registers",
            Self::Wide => "4 x 6, weights widened into strips",
        }
    }

    /// Whether weights are widened into strips for so many rows of x, where they need not be.
    pub(crate) fn widens(self, rows: usize) -> bool {
        self != Self::Square && rows > Self::FEW
    }
}

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

    /// Asks for a line of row `n`.
    #[inline(always)]
    fn prefetch<S: Simd>(self, s: S, n: usize, line: usize) {
        if let Some(first) = self.bytes.get(n * self.stride + line * LINE) {
            s.prefetch(first);
        }
    }
}

/// Puts chunk `j` of row `m` into a tile of rows, whose index order is `[half][chunk][row]`: what a loop over one half reads
/// is then one stretch of memory.
#[inline(always)]
pub(crate) fn store_in_tile(
    halves: usize,
    tile: &mut [Chunk],
    rows: usize,
    m: usize,
    j: usize,
    chunk: &[f32; LANES],
) {
    match halves {
        1 => store_halves::<LANES>(tile, rows, m, j, chunk),
        _ => store_halves::<{ LANES / 2 }>(tile, rows, m, j, chunk),
    }
}

#[inline(always)]
fn store_halves<const HALF: usize>(
    tile: &mut [Chunk],
    rows: usize,
    m: usize,
    j: usize,
    chunk: &[f32; LANES],
) {
    let len = tile.len() / rows;
    let (tile, _) = floats_mut(tile).as_chunks_mut::<HALF>();
    for (half, from) in chunk.as_chunks().0.iter().enumerate() {
        tile[(half * len + j) * rows + m] = *from;
    }
}

/// Tiles of M rows of x against N rows of weights as they are stored.
pub(crate) struct StoredTiles<'a, E, const M: usize, const N: usize> {
    /// Tiles of x, as [`store_in_tile`] has them.
    pub(crate) x: &'a [Chunk],
    pub(crate) w: StoredRows<'a>,
    /// The N rows of weights that a later tile multiplies, to bring into the cache meanwhile.
    pub(crate) ahead: StoredRows<'a>,
    /// Chunks of a row of x.
    pub(crate) len: usize,
    /// What the products are added to, `[tile of x][row of the tile][N]`; tiles lie `out_stride` floats apart.
    pub(crate) out: &'a mut [f32],
    pub(crate) out_stride: usize,
    pub(crate) element: PhantomData<E>,
}

impl<E: Element, const M: usize, const N: usize> Kernel for StoredTiles<'_, E, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let pieces: &[S::HalfInMemory] = bytemuck::cast_slice(self.x);
        let len = self.len / E::X_CHUNKS;
        let w: [_; N] = std::array::from_fn(|n| self.w.row::<E>(n, len));
        let ahead: [_; N] = std::array::from_fn(|n| self.ahead.row::<E>(n, len));
        let x_tiles = pieces.chunks_exact(S::HALVES * M * self.len);
        for (x, out) in x_tiles.zip(self.out.chunks_mut(self.out_stride)) {
            let (x, _) = x.as_chunks::<M>();
            let acc = s.by_halves(
                #[inline(always)]
                |half| {
                    let x = &x[half * len * E::X_CHUNKS..(half + 1) * len * E::X_CHUNKS];
                    let mut acc = [[s.half(s.splat(0.0), half); N]; M];
                    for j in 0..len {
                        for i in 0..E::X_CHUNKS {
                            let mut b = [s.half(s.splat(0.0), half); N];
                            for n in 0..N {
                                if half + 1 == S::HALVES && i == 0 {
                                    s.prefetch(&ahead[n][j]);
                                }
                                b[n] = s.half(E::load(s, &w[n][j], i), half);
                            }
                            mul_add::<S, E, M, N>(s, &x[j * E::X_CHUNKS + i], b, &mut acc);
                        }
                    }
                    acc
                },
            );
            add_sums(s, acc, out);
        }
    }
}

/// Tiles of M rows of x against tiles of N rows of weights, all as [`store_in_tile`] has them.
pub(crate) struct PackedTiles<'a, E, const M: usize, const N: usize> {
    /// Tiles of x.
    pub(crate) x: &'a [Chunk],
    /// Tiles of weights, widened.
    pub(crate) w: &'a [Chunk],
    /// Chunks of a row.
    pub(crate) len: usize,
    /// As many rows of weights that come next, as they are stored, to bring into the cache meanwhile; and the bytes of each.
    pub(crate) ahead: StoredRows<'a>,
    pub(crate) stored: usize,
    /// What the products are added to, `[tile of x][tile of weights][row of x][N]`; tiles of x lie `out_stride` floats apart.
    pub(crate) out: &'a mut [f32],
    pub(crate) out_stride: usize,
    pub(crate) element: PhantomData<E>,
}

impl<E: Element, const M: usize, const N: usize> Kernel for PackedTiles<'_, E, M, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let pieces = |chunks| bytemuck::cast_slice::<Chunk, S::HalfInMemory>(chunks);
        let len = self.len;
        // Lines of a weight row, and how many of them are asked for with every tile of x.
        let lines = self.stored.div_ceil(LINE);
        let share = lines.div_ceil(self.x.len() / (M * len));
        let x_tiles = pieces(self.x).chunks_exact(S::HALVES * M * len);
        let next_tiles = x_tiles.clone().cycle().skip(1);
        let outs = self.out.chunks_mut(self.out_stride);
        for (i, ((x, next), out)) in x_tiles.zip(next_tiles).zip(outs).enumerate() {
            for n in 0..self.w.len() / len {
                for line in i * share..lines.min((i + 1) * share) {
                    self.ahead.prefetch(s, n, line);
                }
            }
            let outs = out.chunks_exact_mut(M * N);
            for (w, out) in pieces(self.w).chunks_exact(S::HALVES * N * len).zip(outs) {
                let acc = s.by_halves(
                    #[inline(always)]
                    |half| {
                        let (x, _) = x[half * M * len..(half + 1) * M * len].as_chunks::<M>();
                        let (w, _) = w[half * N * len..(half + 1) * N * len].as_chunks::<N>();
                        let (next, _) = next[half * M * len..(half + 1) * M * len].as_chunks::<M>();
                        let mut acc = [[s.half(s.splat(0.0), half); N]; M];
                        for ((x, w), next) in x.iter().zip(w).zip(next) {
                            if N == WIDE {
                                // Multiplied so fast that the second-level cache would be too late.
                                for m in 0..M {
                                    s.prefetch_near(&next[m]);
                                }
                            }
                            let mut b = [s.half(s.splat(0.0), half); N];
                            for n in 0..N {
                                b[n] = s.load_half(&w[n]);
                            }
                            mul_add::<S, E, M, N>(s, x, b, &mut acc);
                        }
                        acc
                    },
                );
                add_sums(s, acc, out);
            }
        }
    }
}

/// Adds products to the chains of a tile.
#[inline(always)]
fn mul_add<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    x: &[S::HalfInMemory; M],
    w: [S::Half; N],
    acc: &mut [[S::Half; N]; M],
) {
    for m in 0..M {
        let a = s.load_half(&x[m]);
        for n in 0..N {
            acc[m][n] = E::mul_add(s, a, w[n], acc[m][n]);
        }
    }
}

/// Adds the tree sums of a tile to its output.
#[inline(always)]
fn add_sums<S: Simd, const M: usize, const N: usize>(s: S, acc: [[S::F32x16; N]; M], out: &mut [f32]) {
    const { assert!(M * N <= 24, "so many sums at most are added below") };
    // -0 changes no sum.
    let nothing = s.splat(-0.0);
    let lanes = |i: usize| if i < M * N { acc[i / N][i % N] } else { nothing };
    let out = &mut out[..M * N];
    let (sixteens, rest) = out.as_chunks_mut();
    if let Some(out) = sixteens.first_mut() {
        s.add_tree_sums_16(std::array::from_fn(lanes), out);
    }
    let (eights, rest) = rest.as_chunks_mut();
    if let Some(out) = eights.first_mut() {
        let first = M * N / 16 * 16;
        s.add_tree_sums_8(std::array::from_fn(|i| lanes(first + i)), out);
    }
    let (fours, rest) = rest.as_chunks_mut();
    let first = M * N / 8 * 8;
    if let Some(out) = fours.first_mut() {
        s.add_tree_sums_4(std::array::from_fn(|i| lanes(first + i)), out);
    }
    if !rest.is_empty() {
        let first = M * N / 4 * 4;
        let mut sums = [-0.0; 4];
        s.add_tree_sums_4(std::array::from_fn(|i| lanes(first + i)), &mut sums);
        rest.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
    }
}
