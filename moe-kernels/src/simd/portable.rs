//! The definition: sixteen lanes as an array, in safe code.

use half::{bf16, f16};
use moe_core::numerics::{LANES, scale_by_power_of_two, tree_sum};

use super::{Kernel, Simd};

/// Needs nothing. Not a fast path: without FMA in the target `mul_add` is a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

fn lanewise(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

fn two_bytes(from: &[u8; 32], lane: usize) -> [u8; 2] {
    [from[2 * lane], from[2 * lane + 1]]
}

impl Simd for Portable {
    type F32x16 = [f32; LANES];
    type Half = [f32; LANES];
    type HalfInMemory = [f32; LANES];
    const HALVES: usize = 1;
    const MANY_REGISTERS: bool = false;

    fn outlined<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    fn splat(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    fn load(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    fn store(self, lanes: [f32; LANES], to: &mut [f32; LANES]) {
        *to = lanes;
    }

    fn load_f32(self, from: &[u8; 64]) -> [f32; LANES] {
        lanewise(|i| f32::from_le_bytes([from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]]))
    }

    fn load_f16(self, from: &[u8; 32]) -> [f32; LANES] {
        lanewise(|i| f16::from_le_bytes(two_bytes(from, i)).to_f32())
    }

    fn load_bf16(self, from: &[u8; 32]) -> [f32; LANES] {
        lanewise(|i| bf16::from_le_bytes(two_bytes(from, i)).to_f32())
    }

    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| a[i] + b[i])
    }

    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| a[i] - b[i])
    }

    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| a[i] * b[i])
    }

    fn div(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| a[i] / b[i])
    }

    fn fma(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| a[i].mul_add(b[i], c[i]))
    }

    fn load_half(self, from: &[f32; LANES]) -> [f32; LANES] {
        *from
    }

    fn half(self, lanes: [f32; LANES], _: usize) -> [f32; LANES] {
        lanes
    }

    fn fma_half(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        self.fma(a, b, c)
    }

    fn splat_half(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    fn mul_half(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        self.mul(a, b)
    }

    fn floats_of(self, ints: [i32; LANES]) -> [f32; LANES] {
        ints.map(|v| v as f32)
    }

    fn store_half(self, lanes: [f32; LANES], to: &mut [f32; LANES]) {
        *to = lanes;
    }

    fn high_halves(self, lanes: [f32; LANES]) -> [f32; LANES] {
        lanes.map(|v| f32::from_bits(v.to_bits() & 0xffff_0000))
    }

    fn low_halves(self, lanes: [f32; LANES]) -> [f32; LANES] {
        lanes.map(|v| f32::from_bits(v.to_bits() << 16))
    }

    fn by_halves<const M: usize, const N: usize>(
        self,
        f: impl Fn(usize) -> [[[f32; LANES]; N]; M],
    ) -> [[[f32; LANES]; N]; M] {
        f(0)
    }

    fn max(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    fn min(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    fn scale_by_power_of_two(self, y: [f32; LANES], shifted: [f32; LANES]) -> [f32; LANES] {
        lanewise(|i| scale_by_power_of_two(y[i], shifted[i]))
    }

    fn tree_sum(self, lanes: [f32; LANES]) -> f32 {
        tree_sum(lanes)
    }
}
