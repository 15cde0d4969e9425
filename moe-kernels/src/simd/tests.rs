//! Operations on every backend, on every kind of number, with the definition's bits.

use moe_core::numerics::{LANES, ROUND_MAGIC, padded};

use super::{Kernel, Simd};
use crate::Backend;

/// Numbers that instructions may treat in ways of their own.
const ODD: [f32; 14] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    3.4e38,
    -3.4e38,
    f32::MIN_POSITIVE,
    -1.0e-39,
    1.0e-45,
    16_777_217.0,
    0.1,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// Sixteen of them from the i-th on, by steps.
fn odd(i: usize, step: usize) -> [f32; LANES] {
    std::array::from_fn(|lane| ODD[(i + lane * step) % ODD.len()])
}

/// Lanes whose sum is 2⁻²⁴ if lane i takes lane i + 8, then i + 4, i + 2, i + 1, and zero if two of these levels change places:
/// ones that must cancel before the small numbers are added to either, for each pair of levels and each place of the rest.
fn level_by_level() -> impl Iterator<Item = [f32; LANES]> {
    const SMALL: f32 = 1.0 / (1 << 25) as f32;
    let pairs = [(8, 4), (8, 2), (8, 1), (4, 2), (4, 1), (2, 1)];
    pairs.into_iter().flat_map(|(first, second)| {
        (0..LANES).filter(move |base| base & (first | second) == 0).map(move |base| {
            let mut lanes = [0.0; LANES];
            (lanes[base], lanes[base | first]) = (1.0, -1.0);
            (lanes[base | second], lanes[base | first | second]) = (SMALL, SMALL);
            lanes
        })
    })
}

#[test]
fn levels_of_the_tree_have_an_order() {
    for lanes in level_by_level() {
        assert_eq!(moe_core::numerics::tree_sum(lanes), 1.0 / (1 << 24) as f32, "{lanes:?}");
    }
}

/// The bits of everything, NaN as one where it is computed: its sign and payload are nobody's promise.
struct All;

impl Kernel for All {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut bits = Vec::new();
        let mut put = |lanes: S::F32x16, computed: bool| {
            let mut to = [0.0; LANES];
            s.store(lanes, &mut to);
            bits.extend(to.map(|v| if computed && v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }));
        };
        for start in (0..=u16::MAX).step_by(LANES) {
            let words: [u16; LANES] = std::array::from_fn(|lane| start + lane as u16);
            let bytes: [u8; 32] = std::array::from_fn(|i| words[i / 2].to_le_bytes()[i % 2]);
            put(s.load_f16(&bytes), false);
            put(s.load_bf16(&bytes), true);
        }
        for i in 0..ODD.len() {
            for step in 1..ODD.len() {
                let (a, b, c) = (odd(i, step), odd(2 * i, 1), odd(step, 3));
                put(s.load_f32(&bytemuck::cast(a.map(|v| v.to_bits().to_le()))), false);
                let (a, b, c) = (s.load(&a), s.load(&b), s.load(&c));
                put(s.max(a, b), false);
                put(s.min(a, b), false);
                put(s.add(a, b), true);
                put(s.sub(a, b), true);
                put(s.mul(a, b), true);
                put(s.div(a, b), true);
                put(s.fma(a, b, c), true);
                let parts = s.by_halves::<1, 4>(
                    #[inline(always)]
                    |half| {
                        let (a, b, c) = (s.half(a, half), s.half(b, half), s.half(c, half));
                        [[s.high_halves(a), s.low_halves(a), s.fma_half(a, b, c), s.fma_pairs(a, b, c)]]
                    },
                );
                put(parts[0][0], false);
                put(parts[0][1], false);
                put(parts[0][2], true);
                put(parts[0][3], true);
            }
        }
        for i in 0..LANES {
            // Most orders of additions round to another sum; those of the tree's levels are told apart below.
            let lanes = std::array::from_fn(|lane| {
                3_u32.pow(((i + 5 * lane) % LANES) as u32) as f32 * [0.1, -0.07][lane % 2]
            });
            put(s.splat(s.tree_sum(s.load(&lanes))), false);
            let some =
                |j: usize| s.load(&std::array::from_fn(|lane| lanes[(lane + j) % LANES] * (j + 1) as f32));
            let mut sums = [[0.3; LANES]; 3];
            let (fours, _) = sums[0].as_chunks_mut();
            s.add_tree_sums_4([some(0), some(1), some(2), some(3)], &mut fours[1]);
            let (eights, _) = sums[1].as_chunks_mut();
            s.add_tree_sums_8(std::array::from_fn(some), &mut eights[1]);
            s.add_tree_sums_16(std::array::from_fn(some), &mut sums[2]);
            for sums in &sums {
                put(s.load(sums), false);
            }
        }
        for lanes in level_by_level() {
            let lanes = s.load(&lanes);
            put(s.splat(s.tree_sum(lanes)), false);
            let mut sums = [0.0; LANES];
            s.add_tree_sums_16([lanes; LANES], &mut sums);
            put(s.load(&sums), false);
            let mut sums = [0.0; 8];
            s.add_tree_sums_8([lanes; 8], &mut sums);
            put(s.load(&padded(&sums)), false);
            let mut sums = [0.0; 4];
            s.add_tree_sums_4([lanes; 4], &mut sums);
            put(s.load(&padded(&sums)), false);
        }
        // Halves of these are exponents of normal numbers.
        for n in (-252..240).step_by(LANES) {
            let shifted = std::array::from_fn(|lane| ROUND_MAGIC + (n + lane as i32) as f32);
            put(s.scale_by_power_of_two(s.splat(1.171_875), s.load(&shifted)), false);
        }
        bits
    }
}

#[test]
fn every_operation_is_the_definition() {
    let expected = Backend::portable().run(All);
    for backend in Backend::available() {
        let found = backend.run(All);
        let first = expected.iter().zip(&found).position(|(expected, found)| expected != found);
        assert_eq!(first, None, "{backend}: of {} results", expected.len());
        assert_eq!(expected.len(), found.len(), "{backend}");
    }
}
