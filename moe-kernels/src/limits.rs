//! What this machine can do at most, measured with the same instructions that the kernels use.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

use rayon::prelude::*;

use crate::chunk::Chunk;
use crate::simd::{Bytes, Kernel, Simd};
use crate::{Activations, Backend};

/// Operations a second of multiplications and additions that never leave the registers, on every thread of the pool: of
/// fused multiply-adds in f32, or, with activations that are rounded, of whatever the backend multiplies those by.
pub fn fma_peak(backend: Backend, activations: Activations) -> f64 {
    let threads = rayon::current_num_threads();
    let pairs = activations == Activations::Bf16 && backend.has_pairs();
    let run = || match activations {
        Activations::Int8 => backend.run_bytes(ByteChains),
        Activations::Bf16 if pairs => backend.run_pairs(Chains::<true>(ROUNDS)),
        Activations::Bf16 | Activations::F32 => backend.run(Chains::<false>(ROUNDS)),
    };
    let best = (0..5)
        .map(|_| {
            let begun = Instant::now();
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                black_box(run());
            });
            begun.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    let of_lane = match activations {
        Activations::Int8 => 8,
        _ if pairs => 4,
        _ => 2,
    };
    (threads * ROUNDS * CHAINS * 16 * of_lane) as f64 / best
}

/// Enough to take milliseconds, few enough for the portable definition to finish.
const ROUNDS: usize = 200_000;

/// Independent chains: enough to hide the latency of one, few enough for sixteen registers of eight lanes.
const CHAINS: usize = 12;

/// Whether multiply-adds of sixteen lanes run at twice the rate of those of eight, measured once (half a millisecond):
/// processors with AVX-512 have one unit for the former or two, and nothing that they say of themselves tells.
pub(crate) fn two_wide_units() -> bool {
    /// Tens of microseconds: to read the clock takes up to one, which must not make a fast unit look slow.
    const SOME: usize = 16_000;
    static TWO: OnceLock<bool> = OnceLock::new();
    *TWO.get_or_init(|| {
        let (Some(sixteen), Some(eight)) = (Backend::avx512(), Backend::avx2()) else { return false };
        let seconds = |backend: Backend| {
            let begun = Instant::now();
            black_box(backend.run(Chains::<false>(SOME)));
            begun.elapsed().as_secs_f64()
        };
        // Wide units take some microseconds to wake, and whoever shares the processor disturbs: the best of several.
        let best = (0..5)
            .fold([f64::INFINITY; 2], |best, _| [best[0].min(seconds(sixteen)), best[1].min(seconds(eight))]);
        best[0] < 0.75 * best[1]
    })
}

/// Products of four bytes a lane, added to chains of integers.
struct ByteChains;

impl Kernel for ByteChains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let [w, ..] = s.spread_bits(&black_box(Chunk([1e-3; 16])));
        // One for each chain, and read anew in each round: otherwise the products would be made once, where only adding is left.
        let (x, none) = ([0x0102_0301; CHAINS], s.splat_ints(0));
        let mut total = 0.0;
        for half in 0..S::HALVES {
            let mut chains = [none; CHAINS];
            for _ in 0..ROUNDS {
                for (chain, x) in chains.iter_mut().zip(black_box(&x)) {
                    *chain = s.dot_unpacked(*chain, [w], half, Bytes::Unsigned { bits: 4 }, &[*x]);
                }
            }
            let mut sum = none;
            for chain in chains {
                sum = s.add_ints(sum, chain);
            }
            let mut lanes = [Chunk::ZERO];
            let halves: &mut [S::HalfInMemory] = bytemuck::cast_slice_mut(&mut lanes);
            s.store_half(s.floats_of(sum), &mut halves[half]);
            total += lanes[0][8 * half];
        }
        total
    }
}

/// So many rounds of multiply-adds, of f32 or of pairs of bfloat16.
struct Chains<const PAIRS: bool>(usize);

impl<const PAIRS: bool> Kernel for Chains<PAIRS> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        chains::<S, CHAINS, PAIRS>(s, a, b, self.0)
    }
}

#[inline(always)]
fn chains<S: Simd, const N: usize, const PAIRS: bool>(
    s: S,
    a: S::F32x16,
    b: S::F32x16,
    rounds: usize,
) -> f32 {
    let acc = s.by_halves(
        #[inline(always)]
        |half| {
            let (a, b) = (s.half(a, half), s.half(b, half));
            let mut acc = [s.half(s.splat(1.0), half); N];
            for _ in 0..rounds {
                for v in &mut acc {
                    *v = if PAIRS { s.fma_pairs(a, b, *v) } else { s.fma_half(*v, a, b) };
                }
            }
            [acc]
        },
    );
    acc[0].iter().fold(0.0, |sum, v| sum + s.tree_sum(*v))
}

/// Bytes a second at which every thread of the pool together reads `memory` once, adding it up, in the best of several ways:
/// one stretch after another or four in step, with and without asking for what comes next. One stretch alone leaves some
/// processors waiting, and four in step others.
///
/// Memory much larger than the caches measures the machine's; a second call over the same may differ by a factor of two on a
/// shared machine, so measure in the same round as what is to be compared.
pub fn read_bandwidth(backend: Backend, memory: &[u8]) -> f64 {
    let ways = [(1, 0), (1, 1 << 10), (4, 0), (4, 1 << 10)];
    ways.into_iter().map(|(streams, ahead)| read(backend, memory, streams, ahead)).fold(0.0, f64::max)
}

fn read(backend: Backend, memory: &[u8], streams: usize, ahead: usize) -> f64 {
    let begun = Instant::now();
    let pieces = memory.par_chunks(1 << 20).map(|piece| backend.run(Sum { memory: piece, streams, ahead }));
    black_box(pieces.reduce(|| 0.0, |a, b| a + b));
    memory.len() as f64 / begun.elapsed().as_secs_f64()
}

struct Sum<'a> {
    memory: &'a [u8],
    /// Stretches that are read in step: 1 or 4.
    streams: usize,
    /// Bytes by which what comes next is asked for; 0 is not at all.
    ahead: usize,
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (lines, _) = self.memory.as_chunks::<64>();
        let (lines, ahead) = (&lines[..lines.len() / 16 * 16], self.ahead / 64);
        let quarter = lines.len() / 4;
        let mut acc = [s.splat(0.0); 4];
        // Four lines at a time: neighbours, or one of each quarter.
        for i in 0..quarter {
            let first = if self.streams == 4 { i } else { 4 * i };
            for (j, acc) in acc.iter_mut().enumerate() {
                let at = if self.streams == 4 { first + j * quarter } else { first + j };
                if ahead > 0
                    && let Some(line) = lines.get(at + ahead)
                {
                    s.prefetch(line);
                }
                *acc = s.add(*acc, s.load_f32(&lines[at]));
            }
        }
        acc.iter().fold(0.0, |sum, v| sum + s.tree_sum(*v))
    }
}
