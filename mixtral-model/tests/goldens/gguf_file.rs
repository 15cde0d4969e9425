//! As much of a GGUF file as finding its tensors takes: header, infos, data. Trusts the file.

use std::fs;
use std::path::Path;

use moe_kernels::{BlockType, Dtype, WeightFormat, WeightView};

/// What the data begin at a multiple of, unless the file's metadata say otherwise, which those of these goldens do not.
const ALIGNMENT: usize = 32;

/// A file in memory.
pub(crate) struct GgufFile {
    bytes: Vec<u8>,
    tensors: Vec<Info>,
    /// Where the tensors' data begin.
    data: usize,
}

struct Info {
    name: String,
    /// Innermost, the columns, first.
    shape: Vec<usize>,
    format: WeightFormat,
    /// Within the data.
    offset: usize,
}

/// A tensor as a matrix: every index but the innermost counts rows, so that a vector is one row.
pub(crate) struct GgufTensor<'a> {
    pub(crate) name: &'a str,
    /// Innermost first.
    pub(crate) shape: &'a [usize],
    pub(crate) matrix: WeightView<'a>,
}

impl GgufFile {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut fields = Fields { bytes: &bytes, at: 0 };
        assert_eq!(fields.take(4), b"GGUF");
        assert_eq!(fields.u32(), 3, "version");
        let (tensors, entries) = (fields.u64(), fields.u64());
        for _ in 0..entries {
            let key = fields.string();
            assert_ne!(key, "general.alignment");
            let kind = fields.u32();
            fields.skip_value(kind);
        }
        let tensors = (0..tensors)
            .map(|_| Info {
                name: fields.string(),
                shape: (0..fields.u32()).map(|_| fields.u64()).collect(),
                format: format(fields.u32()),
                offset: fields.u64(),
            })
            .collect();
        let data = fields.at.next_multiple_of(ALIGNMENT);
        Self { bytes, tensors, data }
    }

    /// The tensors in the file's order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = GgufTensor<'_>> {
        self.tensors.iter().map(|Info { name, shape, format, offset }| {
            let (columns, rows) = (shape[0], shape[1..].iter().product());
            let (begin, length) = (self.data + offset, rows * format.row_bytes(columns).unwrap());
            let matrix = WeightView::new(&self.bytes[begin..begin + length], *format, rows, columns).unwrap();
            GgufTensor { name, shape, matrix }
        })
    }
}

fn format(ggml_type: u32) -> WeightFormat {
    match ggml_type {
        0 => Dtype::F32.into(),
        1 => Dtype::F16.into(),
        number => BlockType::from_ggml_type(number).unwrap_or_else(|| panic!("type {number}")).into(),
    }
}

/// Little-endian fields that follow each other.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        self.at += length;
        &self.bytes[self.at - length..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()).try_into().unwrap()
    }

    fn string(&mut self) -> String {
        let length = self.u64();
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn skip_value(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            10..=12 => drop(self.take(8)),
            8 => drop(self.string()),
            9 => {
                let kind = self.u32();
                (0..self.u64()).for_each(|_| self.skip_value(kind));
            }
            _ => panic!("value of type {kind}"),
        }
    }
}
