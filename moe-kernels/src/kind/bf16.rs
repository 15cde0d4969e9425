//! Products with activations rounded to bfloat16, for weights that are bfloat16.
//!
//! Where the processor multiplies pairs of bfloat16, a packed chunk is thirty-two activations, and a stored chunk of weights
//! is multiplied as it lies. Elsewhere thirty-two activations are two chunks, those of odd index and those of even, and
//! weights are widened likewise. The sweep is that of exact products.

use half::bf16;
use moe_core::numerics::{BF16_LEAST, LANES, PAIRS_BLOCK, round_to_bf16};
use rayon::prelude::*;

use super::exact;
use crate::chunk::{BLOCK_CHUNKS, Chunk};
use crate::element::{Element, OddsThenEvens, Pairs};
use crate::packed::{RowSource, Tile};
use crate::tile::store_in_tile;
use crate::{Error, Result, WeightView};

// A whole block of pairs is as many chunks as one of f32, each of twice as many terms.
const _: () = assert!(PAIRS_BLOCK == Pairs::ELEMENTS * BLOCK_CHUNKS);

/// Packs a tile, each chunk thirty-two activations.
pub(crate) fn pack_pairs(source: &impl RowSource, tile: Tile, to: &mut [Chunk]) {
    for_each_32(source, &tile, to, |to, rows, m, j, odd, even| {
        let pair = |i: usize| f32::from_bits(odd[i].to_bits() | even[i].to_bits() >> 16);
        store_in_tile(tile.halves, to, rows, m, j, &std::array::from_fn(pair));
    });
}

/// Packs a tile, each pair of chunks thirty-two activations.
pub(crate) fn pack_odds_then_evens(source: &impl RowSource, tile: Tile, to: &mut [Chunk]) {
    for_each_32(source, &tile, to, |to, rows, m, j, odd, even| {
        store_in_tile(tile.halves, to, rows, m, OddsThenEvens::X_CHUNKS * j, odd);
        store_in_tile(tile.halves, to, rows, m, OddsThenEvens::X_CHUNKS * j + 1, even);
    });
}

/// Calls `store(to, rows, m, j, odd, even)` with the j-th thirty-two activations of every row m of a tile, rounded.
#[inline(always)]
fn for_each_32(
    source: &impl RowSource,
    tile: &Tile,
    to: &mut [Chunk],
    store: impl Fn(&mut [Chunk], usize, usize, usize, &[f32; LANES], &[f32; LANES]),
) {
    let rows = tile.rows.len();
    let first = tile.b * PAIRS_BLOCK;
    let columns = PAIRS_BLOCK.min(source.columns() - first);
    for j in 0..columns.div_ceil(2 * LANES) {
        for m in 0..rows {
            let mut wide = [[0.0; LANES]; 2];
            for (i, wide) in wide.iter_mut().enumerate() {
                let chunk = first / LANES + 2 * j + i;
                if chunk * LANES < source.columns() {
                    source.read_chunk(tile.group, tile.rows.start + m, chunk, wide);
                }
            }
            let wide = wide.as_flattened();
            let every_other = |first: usize| std::array::from_fn(|i| round_to_bf16(wide[2 * i + first]));
            store(to, rows, m, j, &every_other(1), &every_other(0));
        }
    }
}

/// Finds the first weight that products of this kind do not allow: neither zero nor at least [`BF16_LEAST`] in magnitude.
/// Reads the whole matrix.
///
/// # Errors
///
/// [`Error::TooSmall`].
pub(crate) fn check(weight: WeightView<'_>) -> Result<()> {
    let Some(at) = first_too_small(weight.bytes()) else { return Ok(()) };
    Err(Error::TooSmall {
        row: at / weight.columns(),
        column: at % weight.columns(),
        value: bf16::from_le_bytes([weight.bytes()[2 * at], weight.bytes()[2 * at + 1]]).to_f32(),
    })
}

fn first_too_small(bytes: &[u8]) -> Option<usize> {
    const PIECE: usize = 1 << 16;
    let least = (BF16_LEAST.to_bits() >> 16) as u16;
    // Zero wraps around, and is large.
    let too_small = |b: &[u8; 2]| (u16::from_le_bytes(*b) & 0x7fff).wrapping_sub(1) < least - 1;
    let find = |(n, piece): (usize, &[u8])| {
        let (values, _) = piece.as_chunks();
        // Without an early exit the check runs at the speed of memory.
        let any = values.iter().fold(false, |any, b| any | too_small(b));
        any.then(|| n * PIECE / 2 + values.iter().position(too_small).unwrap_or(0))
    };
    bytes.par_chunks(PIECE).enumerate().filter_map(find).min()
}

/// Weights that instructions multiply as pairs.
pub(crate) type PairWeights = exact::Plain<Pairs>;
/// Weights whose odd and even elements are widened apart.
pub(crate) type OddEvenWeights = exact::Plain<OddsThenEvens>;
