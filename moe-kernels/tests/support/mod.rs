//! Pseudo-random operands. Not every test uses all of it.
#![allow(dead_code, reason = "each test binary compiles its own copy")]

use moe_kernels::{BlockType, Dtype, WeightMatrix};
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

/// A matrix of pseudo-random blocks whose scales are small and finite.
pub(crate) fn random_blocks(block: BlockType, seed: u64, rows: usize, columns: usize) -> WeightMatrix {
    let random = Values::new(seed).take(rows * block.row_bytes(columns).unwrap());
    let mut bytes: Vec<u8> = random.iter().map(|v| (v * 128.0) as i8 as u8).collect();
    let f16_scales: &[usize] = match block {
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
        BlockType::Mxfp4 => &[],
        _ => &[0],
    };
    for bytes in bytes.chunks_exact_mut(block.bytes()) {
        // The upper byte of an f16 of either sign, 2^-11 to 2^-13, or of exponent 0.
        f16_scales
            .iter()
            .for_each(|at| bytes[at + 1] = [0x10, 0x94, 0x0b, 0x80][usize::from(bytes[at + 1] & 3)]);
        if block == BlockType::Mxfp4 {
            bytes[0] = 110 + bytes[0] % 12;
        }
    }
    WeightMatrix::new(bytes.into(), block, rows, columns).unwrap()
}
