//! Blocks of quantised weights against the `gguf` package, by goldens of `tests/data/make_blocks.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, HashSet};

use moe_kernels::BlockType;

/// FNV-1a, 64 bits, over the values' bits in little-endian order, every NaN being the same.
fn digest(values: &[f32]) -> u64 {
    values
        .iter()
        .flat_map(|v| if v.is_nan() { 0x7fc0_0000_u32 } else { v.to_bits() }.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The stream of random bytes that the generator of the goldens has.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = count.div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}

/// f16 scales: zeros, subnormals, the smallest and largest normal, one, infinities, NaNs.
const ENDS: [u16; 13] =
    [0x0000, 0x8000, 0x0001, 0x83ff, 0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e01, 0xffff];

/// Name of a case, and its blocks: random ones, then such that begin and end, where scales are, with each of [`ENDS`].
fn cases(ty: BlockType) -> Vec<(String, Vec<u8>)> {
    let (size, mut numbers) = (ty.bytes(), SplitMix(ty.ggml_type().into()));
    let mut cases = vec![("random".to_owned(), (0..64).flat_map(|_| numbers.bytes(size)).collect())];
    for end in ENDS {
        let twice = [end.to_le_bytes(), end.to_le_bytes()].concat();
        let mut blocks = Vec::new();
        for _ in 0..4 {
            let mut block = numbers.bytes(size);
            block[..4].copy_from_slice(&twice);
            block[size - 4..].copy_from_slice(&twice);
            blocks.extend(block);
        }
        blocks.extend(end.to_le_bytes().into_iter().cycle().take(size));
        cases.push((format!("ends-{end:04x}"), blocks));
    }
    cases
}

fn widened(ty: BlockType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; bytes.len() / ty.bytes() * ty.elements()];
    ty.dequantise_row(bytes, &mut values).unwrap();
    values
}

/// Lines of `tests/data/blocks.tsv`: type, case, number of blocks, digest.
fn goldens() -> impl Iterator<Item = (BlockType, &'static str, usize, u64)> {
    include_str!("data/blocks.tsv").lines().filter(|line| !line.starts_with('#')).map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let digest = u64::from_str_radix(fields[3], 16).unwrap();
        (fields[0].parse().unwrap(), fields[1], fields[2].parse().unwrap(), digest)
    })
}

#[test]
fn random_and_extreme_blocks_are_widened_to_the_bits_of_gguf() {
    let goldens: HashMap<_, _> = goldens().map(|(ty, case, _, digest)| ((ty, case), digest)).collect();
    for &ty in BlockType::ALL {
        for (case, bytes) in cases(ty) {
            assert_eq!(digest(&widened(ty, &bytes)), goldens[&(ty, case.as_str())], "{ty} {case}");
        }
    }
}

#[test]
fn blocks_of_models_are_widened_to_the_bits_of_gguf() {
    let mut rest: &[u8] = include_bytes!("data/blocks.bin");
    let mut types = HashSet::new();
    for (ty, case, blocks, golden) in goldens().filter(|golden| golden.1.contains('/')) {
        let bytes = rest.split_off(..blocks * ty.bytes()).unwrap();
        assert_eq!(digest(&widened(ty, bytes)), golden, "{ty} {case}");
        types.insert(ty);
    }
    assert!(rest.is_empty());
    assert_eq!(types.len(), 13);
}

#[test]
fn names_and_numbers_are_those_of_ggml() {
    for &ty in BlockType::ALL {
        assert_eq!(ty.name().parse::<BlockType>().unwrap(), ty);
        assert_eq!(ty.to_string(), ty.name());
        assert_eq!(BlockType::from_ggml_type(ty.ggml_type()), Some(ty));
    }
    assert_eq!(BlockType::Q4K.ggml_type(), 12);
    for number in [0, 1, 9, 30, u32::MAX] {
        assert_eq!(BlockType::from_ggml_type(number), None, "{number}");
    }
    let error = "q4_2".parse::<BlockType>().unwrap_err().to_string();
    assert!(error.starts_with("block type: expected one of q8_0, q4_0"), "{error}");
}

#[test]
fn a_row_is_whole_blocks() {
    assert_eq!(BlockType::Q8_0.row_bytes(96), Some(102));
    assert_eq!(BlockType::Q6K.row_bytes(0), Some(0));
    assert_eq!(BlockType::Q6K.row_bytes(96), None);
    assert_eq!(BlockType::Q8_0.row_bytes(usize::MAX - 31), None);
    let error = BlockType::Q6K.dequantise_row(&[0; 210], &mut [0.0; 96]).unwrap_err();
    assert_eq!(error.to_string(), "q6_k row: expected a multiple of 256 columns, found 96");
    let error = BlockType::Q8_0.dequantise_row(&[0; 35], &mut [0.0; 32]).unwrap_err();
    assert_eq!(error.to_string(), "q8_0 row of 32 columns: expected 34 bytes, found 35");
}
