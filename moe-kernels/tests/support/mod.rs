//! Pseudo-random operands. Not every test uses all of it.
#![allow(dead_code, reason = "each test binary compiles its own copy")]

use moe_kernels::Dtype;
use ndarray::Array2;

pub(crate) const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// A fixed pseudo-random sequence (a 64-bit linear congruence), the same on every machine.
pub(crate) struct Values(u64);

impl Values {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Values in -1..1, with 24 random bits each.
    pub(crate) fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                self.0 =
                    self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }
}

pub(crate) fn bits(a: &Array2<f32>) -> Vec<u32> {
    a.iter().map(|v| v.to_bits()).collect()
}

/// The tokens of rows that lie in the experts' order already.
pub(crate) fn in_order(rows: usize) -> Vec<u32> {
    (0..rows as u32).collect()
}
