//! The keys and values of the positions a session may still look at.

use std::ops::Range;

use moe_core::memory;
use moe_kernels::attention::{AttentionShape, KvRows};
use moe_kernels::{Dtype, narrow_row, padded_row_bytes};

use crate::Result;

/// A session's cache over all layers: position p of a head is row `p % capacity`, for keys and for values.
///
/// It grows by doubling, up to what its window needs: a chunk of n tokens wants window + n - 1 positions, since writing the
/// chunk must not take away keys that its first query sees.
#[derive(Debug)]
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    dtype: Dtype,
}

#[derive(Debug)]
struct LayerCache {
    /// Of the layer's attention.
    shape: AttentionShape,
    /// Rows a head.
    capacity: usize,
    /// The earliest position that no later one was written over.
    first: usize,
    /// `[kv_heads, capacity, head_dim]`, rows padded.
    keys: Vec<u8>,
    /// The same.
    values: Vec<u8>,
}

impl KvCache {
    /// A cache for attention of these shapes, layer by layer.
    pub(crate) fn new(layers: impl Iterator<Item = AttentionShape>, dtype: Dtype) -> Self {
        let empty = |shape| LayerCache { shape, capacity: 0, first: 0, keys: Vec::new(), values: Vec::new() };
        Self { layers: layers.map(empty).collect(), dtype }
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.keys.len() + layer.values.len()).sum()
    }

    /// Makes room for `tokens` more after the first `position` positions. `context` is the most there will ever be.
    pub(crate) fn reserve(&mut self, position: usize, tokens: usize, context: usize) -> Result<()> {
        for layer in &mut self.layers {
            // Each layer knows its own capacity, so that running out of memory midway leaves all of them whole.
            layer.reserve(self.dtype, position, tokens, context)?;
        }
        Ok(())
    }

    /// Stores the keys and values of consecutive positions from `first` on, rounded to the cache's type. Both are
    /// `[T, kv_heads · head_dim]`.
    pub(crate) fn write(&mut self, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        let layer = &mut self.layers[layer];
        let LayerCache { shape, capacity, first: intact, keys: key_rows, values: value_rows } = layer;
        let (heads, row_bytes) = (shape.kv_heads, padded_row_bytes(self.dtype, shape.head_dim));
        let end = first + keys.len() / (heads * shape.head_dim);
        *intact = (*intact).max(end.saturating_sub(*capacity));
        for (rows, from) in [(key_rows, keys), (value_rows, values)] {
            for (i, head) in from.chunks(shape.head_dim).enumerate() {
                let (t, h) = (i / heads, i % heads);
                let at = (h * *capacity + (first + t) % *capacity) * row_bytes;
                narrow_row(self.dtype, head, &mut rows[at..at + row_bytes]);
            }
        }
    }

    /// Forgets everything; memory is kept.
    pub(crate) fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.first = 0);
    }

    /// The least position that a sequence can be taken back to, but for 0: whatever its next token sees is there still.
    pub(crate) fn earliest(&self) -> usize {
        let of_layer = |layer: &LayerCache| match layer.shape.window {
            Some(window) if layer.first > 0 => layer.first.saturating_add(window - 1),
            _ => layer.first,
        };
        self.layers.iter().map(of_layer).max().unwrap_or(0)
    }

    /// What the token at `position` and those after it see of the positions before it, in memory of its own.
    pub(crate) fn copy(&self, position: usize) -> Result<Self> {
        let dtype = self.dtype;
        let layers = self.layers.iter().map(|layer| layer.copy(dtype, position));
        Ok(Self { layers: layers.collect::<Result<_>>()?, dtype })
    }

    /// What each layer has: the shape of its attention, and the positions before `position` that are there and may be seen from there on.
    pub(crate) fn live(
        &self,
        position: usize,
    ) -> impl ExactSizeIterator<Item = (AttentionShape, Range<usize>)> + '_ {
        self.layers.iter().map(move |layer| (layer.shape, layer.live(position)))
    }

    /// Keys, or values, of the [live](Self::live) positions of a layer, `[kv_heads, positions, head_dim]` without padding, row by row.
    pub(crate) fn export(&self, layer: usize, position: usize, values: bool, row: &mut dyn FnMut(&[u8])) {
        let layer = &self.layers[layer];
        let (padded, live) = (padded_row_bytes(self.dtype, layer.shape.head_dim), layer.live(position));
        let bytes = layer.shape.head_dim * self.dtype.bytes();
        let rows = if values { &layer.values } else { &layer.keys };
        for head in 0..layer.shape.kv_heads {
            for position in live.clone() {
                let at = (head * layer.capacity + position % layer.capacity) * padded;
                row(&rows[at..at + bytes]);
            }
        }
    }

    /// Takes back what [`export`](Self::export) gave of a layer whose sequence stood at `position`: the rows of all keys, then of all
    /// values. There is [room](Self::reserve) for them.
    pub(crate) fn import<'a>(
        &mut self,
        layer: usize,
        position: usize,
        mut rows: impl Iterator<Item = &'a [u8]>,
    ) {
        let layer = &mut self.layers[layer];
        let (padded, live) = (padded_row_bytes(self.dtype, layer.shape.head_dim), layer.live(position));
        layer.first = live.start;
        for to in [&mut layer.keys, &mut layer.values] {
            for head in 0..layer.shape.kv_heads {
                for position in live.clone() {
                    let at = (head * layer.capacity + position % layer.capacity) * padded;
                    if let Some(row) = rows.next() {
                        to[at..at + row.len()].copy_from_slice(row);
                    }
                }
            }
        }
    }

    /// What a layer's attention reads.
    pub(crate) fn rows(&self, layer: usize) -> KvRows<'_> {
        let layer = &self.layers[layer];
        KvRows { keys: &layer.keys, values: &layer.values, dtype: self.dtype, capacity: layer.capacity }
    }
}

impl LayerCache {
    /// The positions before `position` that are there and that the token there, or one after it, sees.
    fn live(&self, position: usize) -> Range<usize> {
        let seen = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        seen.max(self.first).min(position)..position
    }

    /// The same with the [live](Self::live) positions alone.
    fn copy(&self, dtype: Dtype, position: usize) -> Result<Self> {
        let (live, heads) = (self.live(position), self.shape.kv_heads);
        let row_bytes = padded_row_bytes(dtype, self.shape.head_dim);
        let capacity = live.len().next_power_of_two().max(64).min(self.capacity.max(live.len()));
        let copy = |rows| regrow(rows, heads, row_bytes, self.capacity, capacity, live.clone());
        let (keys, values) = (copy(&self.keys)?, copy(&self.values)?);
        Ok(Self { shape: self.shape, capacity, first: live.start, keys, values })
    }

    /// Makes room for `tokens` more after the first `position` positions.
    fn reserve(&mut self, dtype: Dtype, position: usize, tokens: usize, context: usize) -> Result<()> {
        let all = position + tokens;
        let most = |window: usize| window.saturating_add(tokens.saturating_sub(1));
        let needed = self.shape.window.map_or(all, |window| most(window).min(all));
        if needed <= self.capacity {
            return Ok(());
        }
        let limit = self.shape.window.map_or(context, |window| most(window).min(context));
        let capacity = needed.next_power_of_two().max(64).min(limit).max(needed);
        self.grow(padded_row_bytes(dtype, self.shape.head_dim), capacity, position)
    }

    /// Moves the latest of `position` positions into larger rings.
    fn grow(&mut self, row_bytes: usize, capacity: usize, position: usize) -> Result<()> {
        let live = self.first.max(position.saturating_sub(self.capacity))..position;
        let heads = self.shape.kv_heads;
        let larger = |rows| regrow(rows, heads, row_bytes, self.capacity, capacity, live.clone());
        (self.keys, self.values) = (larger(&self.keys)?, larger(&self.values)?);
        self.capacity = capacity;
        Ok(())
    }
}

/// The rows of `live` positions in a larger ring, zeros elsewhere.
fn regrow(
    rows: &[u8],
    heads: usize,
    row_bytes: usize,
    old: usize,
    new: usize,
    live: Range<usize>,
) -> Result<Vec<u8>> {
    let mut grown = Vec::new();
    memory::grow(&mut grown, heads.saturating_mul(new).saturating_mul(row_bytes), 0, "key/value cache")?;
    for head in 0..heads {
        for position in live.clone() {
            let from = (head * old + position % old) * row_bytes;
            let to = (head * new + position % new) * row_bytes;
            grown[to..to + row_bytes].copy_from_slice(&rows[from..from + row_bytes]);
        }
    }
    Ok(grown)
}

#[cfg(test)]
mod tests {
    use moe_kernels::widen_row;

    use super::*;

    fn shape(window: Option<usize>) -> AttentionShape {
        AttentionShape { heads: 2, kv_heads: 2, head_dim: 2, scale: 1.0, window }
    }

    fn row(dtype: Dtype, stored: &[u8]) -> [f32; 2] {
        let mut wide = [0.0; 2];
        widen_row(dtype, stored, &mut wide);
        wide
    }

    /// Values between two that the type has, at the place of their position and head.
    #[test]
    fn what_is_stored_is_rounded_to_nearest() {
        for (dtype, step) in [(Dtype::Bf16, 2f32.powi(-7)), (Dtype::F16, 2f32.powi(-10)), (Dtype::F32, 0.0)] {
            let mut cache = KvCache::new([shape(Some(3))].into_iter(), dtype);
            cache.reserve(0, 2, 100).unwrap();
            let [up, tie, down] = [0.75, 0.5, 0.25].map(|part| 1.0 + part * step);
            cache.write(0, 5, &[up, -up, tie, 3.0, down, -tie, up, down], &[0.5; 8]);
            let kv = cache.rows(0);
            let bytes = padded_row_bytes(dtype, 2);
            let at = |position: usize, head: usize| {
                row(dtype, &kv.keys[(head * kv.capacity + position % kv.capacity) * bytes..][..bytes])
            };
            let next = 1.0 + step;
            assert_eq!([at(5, 0), at(5, 1)], [[next, -next], [1.0, 3.0]], "{dtype}");
            assert_eq!([at(6, 0), at(6, 1)], [[1.0, -1.0], [next, 1.0]], "{dtype}");
            assert_eq!(row(dtype, &kv.values[5 % kv.capacity * bytes..][..bytes]), [0.5; 2]);
        }
    }

    /// A ring holds what the first query of a chunk sees besides the chunk, and not one position less.
    #[test]
    fn a_ring_has_room_for_window_and_chunk() {
        for window in [1, 2, 63, 64, 65, 70, 128, 200] {
            let mut cache = KvCache::new([shape(Some(window))].into_iter(), Dtype::F32);
            let (mut position, mut most) = (0, 0);
            for chunk in [window.max(2) - 1, window, window, 1, window + 1, 3 * window] {
                cache.reserve(position, chunk, 1 << 20).unwrap();
                let first = (position + 1).saturating_sub(window);
                let seen = position + chunk - first;
                let capacity = cache.rows(0).capacity;
                assert!(capacity >= seen, "{capacity} for {seen}");
                // Nor more than the longest chunk so far wants.
                most = most.max(window + chunk - 1);
                assert!(capacity <= most, "{capacity} for {most}");
                position += chunk;
            }
        }
    }
}
