//! What this machine can do at most, measured with the same instructions that the kernels use.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::simd::{Kernel, Simd};
use crate::{Activations, Backend};

/// Floating-point operations a second of multiplications and additions that never leave the registers, on every thread of
/// the pool: of fused multiply-adds in f32, or, with bfloat16 activations, of whatever the backend multiplies those by.
pub fn fma_peak(backend: Backend, activations: Activations) -> f64 {
    let pairs = activations == Activations::Bf16 && backend.has_pairs();
    let threads = rayon::current_num_threads();
    let best = (0..5)
        .map(|_| {
            let begun = Instant::now();
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
                black_box(match pairs {
                    true => backend.run_pairs(Chains::<true>),
                    false => backend.run(Chains::<false>),
                });
            });
            begun.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    (threads * ROUNDS * CHAINS * 16 * if pairs { 4 } else { 2 }) as f64 / best
}

/// Enough to take milliseconds, few enough for the portable definition to finish.
const ROUNDS: usize = 200_000;

/// Independent chains: enough to hide the latency of one, few enough for sixteen registers of eight lanes.
const CHAINS: usize = 12;

struct Chains<const PAIRS: bool>;

impl<const PAIRS: bool> Kernel for Chains<PAIRS> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
        chains::<S, CHAINS, PAIRS>(s, a, b, ROUNDS)
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

/// Bytes a second at which every thread of the pool together reads `memory` once, adding it up.
///
/// Memory much larger than the caches measures the machine's; a second call over the same may differ by a factor of two on a
/// shared machine, so measure in the same round as what is to be compared.
pub fn read_bandwidth(backend: Backend, memory: &[u8]) -> f64 {
    let begun = Instant::now();
    let pieces = memory.par_chunks(1 << 20).map(|piece| backend.run(Sum { memory: piece }));
    black_box(pieces.reduce(|| 0.0, |a, b| a + b));
    memory.len() as f64 / begun.elapsed().as_secs_f64()
}

struct Sum<'a> {
    memory: &'a [u8],
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (pieces, _) = self.memory.as_chunks::<64>();
        let (fours, _) = pieces.as_chunks::<4>();
        let mut acc = [s.splat(0.0); 4];
        for four in fours {
            for i in 0..4 {
                acc[i] = s.add(acc[i], s.load_f32(&four[i]));
            }
        }
        acc.iter().fold(0.0, |sum, v| sum + s.tree_sum(*v))
    }
}
