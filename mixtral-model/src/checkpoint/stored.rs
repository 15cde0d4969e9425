//! One tensor as its file describes it.

use std::fmt;

use moe_kernels::{BlockType, Dtype, WeightFormat};

/// What a header says of one tensor; `begin..end` counts from the start of the file's data.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) stored: StoredType,
    pub(crate) shape: Vec<usize>,
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

/// An element type, as a kind of file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoredType {
    Safetensors(safetensors::Dtype),
    /// A number of ggml's.
    Ggml(u32),
}

/// Types that ggml has numbers for and kernels have no products for: number, name, bytes of an element where it has a fixed
/// number of them.
const OTHER_GGML_TYPES: [(u32, &str, Option<usize>); 15] = [
    (4, "Q4_2, withdrawn in 2023", None),
    (5, "Q4_3, withdrawn in 2023", None),
    (9, "Q8_1", None),
    (15, "Q8_K", None),
    (24, "I8", Some(1)),
    (25, "I16", Some(2)),
    (26, "I32", Some(4)),
    (27, "I64", Some(8)),
    (28, "F64", Some(8)),
    (31, "Q4_0_4_4, withdrawn in 2024: interleaved Q4_0", None),
    (32, "Q4_0_4_8, withdrawn in 2024: interleaved Q4_0", None),
    (33, "Q4_0_8_8, withdrawn in 2024: interleaved Q4_0", None),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (36, "IQ4_NL_4_4, withdrawn in 2024: interleaved IQ4_NL", None),
];

impl StoredType {
    /// The format of weights that it is, if it is one.
    pub(crate) fn format(self) -> Option<WeightFormat> {
        match self {
            Self::Safetensors(safetensors::Dtype::F32) | Self::Ggml(0) => Some(Dtype::F32.into()),
            Self::Safetensors(safetensors::Dtype::F16) | Self::Ggml(1) => Some(Dtype::F16.into()),
            Self::Safetensors(safetensors::Dtype::BF16) | Self::Ggml(30) => Some(Dtype::Bf16.into()),
            Self::Safetensors(_) => None,
            Self::Ggml(number) => BlockType::from_ggml_type(number).map(WeightFormat::from),
        }
    }

    /// Whether the bytes of a tensor of it can be told.
    pub(crate) fn is_known(self) -> bool {
        self.byte_len(&[BLOCK_MULTIPLE]).is_some()
    }

    /// The bytes of a tensor of this shape, rows last; `None` where rows are no whole blocks, or there is no such number.
    pub(crate) fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let (&columns, outer) = shape.split_last().unwrap_or((&1, &[]));
        let rows = outer.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        match (self, self.format()) {
            (Self::Safetensors(dtype), _) => {
                let bits = rows.checked_mul(columns)?.checked_mul(dtype.bitsize())?;
                bits.is_multiple_of(8).then_some(bits / 8)
            }
            (Self::Ggml(_), Some(format)) => rows.checked_mul(format.row_bytes(columns)?),
            (Self::Ggml(number), None) => {
                let (.., bytes) = OTHER_GGML_TYPES.into_iter().find(|(other, ..)| *other == number)?;
                rows.checked_mul(columns)?.checked_mul(bytes?)
            }
        }
    }

    /// The names of ggml's types that weights can have.
    pub(crate) fn supported() -> String {
        let blocks = BlockType::ALL.iter().map(|block| block.to_string().to_uppercase());
        ["F32".to_owned(), "F16".to_owned(), "BF16".to_owned()]
            .into_iter()
            .chain(blocks)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// A row of so many elements is whole blocks of every type.
const BLOCK_MULTIPLE: usize = 256;

impl fmt::Display for StoredType {
    /// As the file's kind spells it: `BF16`, `F8_E4M3`, `Q4_K`; for an unknown number of ggml's, `type 99`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.format()) {
            (Self::Safetensors(dtype), _) => dtype.fmt(f),
            (Self::Ggml(_), Some(format)) => f.write_str(&format.to_string().to_uppercase()),
            (Self::Ggml(number), None) => {
                write!(f, "type {number}")?;
                match OTHER_GGML_TYPES.iter().find(|(other, ..)| other == number) {
                    Some((_, name, _)) => write!(f, " ({name})"),
                    None => Ok(()),
                }
            }
        }
    }
}
