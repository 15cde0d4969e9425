//! A scan of all weights for values that are not finite.

use moe_kernels::{Dtype, WeightFormat, WeightView};
use rayon::prelude::*;

use super::{Checkpoint, brief_shape, tensor_error};
use crate::Result;

/// Bytes one task looks at: a multiple of every element size.
const TASK_BYTES: usize = 1 << 20;

impl Checkpoint {
    /// Looks at every weight for NaN and infinities, of block-quantised ones as they are dequantised. This reads all files once.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`](crate::Error::Tensor) naming the first such tensor, in the order of
    /// [`entries`](Checkpoint::entries), and the index of its first such element, row-major;
    /// [`Error::Io`](crate::Error::Io) if reading fails.
    pub fn check_values(&self) -> Result<()> {
        for stored in self.tensors.iter().filter(|stored| stored.stored.format().is_some()) {
            let view = self.view(stored)?;
            let columns = view.shape.last().copied().unwrap_or(1);
            let found = match view.format {
                WeightFormat::Plain(dtype) => first_not_finite(&view.bytes, dtype),
                blocks => first_not_finite_in_blocks(&view.bytes, blocks, columns),
            };
            if let Some((index, value)) = found {
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

/// The same of a matrix of blocks.
fn first_not_finite_in_blocks(bytes: &[u8], format: WeightFormat, columns: usize) -> Option<(usize, f32)> {
    let row_bytes = format.row_bytes(columns).filter(|&bytes| bytes > 0)?;
    let matrix = WeightView::new(bytes, format, bytes.len() / row_bytes, columns).ok()?;
    let rows = (0..matrix.rows()).into_par_iter();
    rows.map_init(
        || vec![0.0; columns],
        |row, i| {
            matrix.widen_row(i, row);
            let at = row.iter().position(|value| !value.is_finite())?;
            Some((i * columns + at, row[at]))
        },
    )
    .find_map_first(|found| found)
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
