//! A scan of all weights for values that are not finite.

use moe_kernels::Dtype;
use rayon::prelude::*;

use super::header::{brief_shape, tensor_error};
use super::{Checkpoint, weight_dtype};
use crate::Result;

/// Bytes one task looks at: a multiple of every element size.
const TASK_BYTES: usize = 1 << 20;

impl Checkpoint {
    /// Looks at every F32, F16 and BF16 value for NaN and infinities. This reads all files once.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`](crate::Error::Tensor) naming the first such tensor, in the order of
    /// [`entries`](Checkpoint::entries), and the index of its first such element, row-major;
    /// [`Error::Io`](crate::Error::Io) if reading fails.
    pub fn check_values(&self) -> Result<()> {
        for stored in self.tensors.iter().filter(|stored| weight_dtype(stored.dtype).is_some()) {
            let view = self.view(stored)?;
            if let Some((index, value)) = first_not_finite(&view.bytes, view.dtype) {
                let found = format!("{value} at element {index} of {}", brief_shape(view.shape));
                return Err(tensor_error(view.path, view.name, "finite values".to_owned(), found));
            }
        }
        Ok(())
    }
}

/// Index and value of the first element that is NaN or infinite.
fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<(usize, f32)> {
    let tasks = bytes.par_chunks(TASK_BYTES).enumerate();
    tasks.find_map_first(|(task, bytes)| {
        let found = match dtype {
            Dtype::F32 => {
                find(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000, f32::from_le_bytes)
            }
            Dtype::F16 => find(
                bytes,
                |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00,
                |b| half::f16::from_le_bytes(b).to_f32(),
            ),
            Dtype::Bf16 => find(
                bytes,
                |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80,
                |b| half::bf16::from_le_bytes(b).to_f32(),
            ),
            _ => None,
        };
        found.map(|(index, value)| (task * (TASK_BYTES / dtype.bytes()) + index, value))
    })
}

/// The first element for which `is_bad` holds: an exponent of all ones. Blocks are tested without branching, so that
/// the loop runs at the speed of memory, and searched only if the test hits.
fn find<const N: usize>(
    bytes: &[u8],
    is_bad: impl Fn([u8; N]) -> bool,
    widen: impl Fn([u8; N]) -> f32,
) -> Option<(usize, f32)> {
    let (elements, _) = bytes.as_chunks::<N>();
    let blocks = elements.chunks(1024).enumerate();
    let hit = |block: &[[u8; N]]| block.iter().fold(false, |bad, &element| bad | is_bad(element));
    let (at, block) = blocks.into_iter().find(|(_, block)| hit(block))?;
    let index = block.iter().position(|&element| is_bad(element))?;
    Some((at * 1024 + index, widen(block[index])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_of_every_kind() {
        let count = TASK_BYTES + 4099;
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let encode = |value: f32| match dtype {
                Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                _ => value.to_le_bytes().to_vec(),
            };
            let mut bytes = encode(-65280.0).repeat(count);
            assert_eq!(first_not_finite(&bytes, dtype).map(|(index, _)| index), None, "{dtype}");
            for index in [count - 1, count - 5000, 1024, 1023, 0] {
                for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let at = index * dtype.bytes();
                    bytes[at..at + dtype.bytes()].copy_from_slice(&encode(value));
                    let (found, what) = first_not_finite(&bytes, dtype).unwrap();
                    assert_eq!((found, what.to_bits()), (index, value.to_bits()), "{dtype} {value}");
                }
            }
        }
    }
}
