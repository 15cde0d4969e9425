//! The keys and values of the positions a session may still look at.

use moe_core::memory;
use moe_kernels::attention::KvRows;
use moe_kernels::{Dtype, narrow_row, padded_row_bytes};

use crate::{Config, Result};

/// A session's cache over all layers: position p of a head is row `p % capacity`, for keys and for values.
///
/// It grows by doubling, up to what its window needs: a chunk of n tokens wants window + n - 1 positions, since writing the
/// chunk must not take away keys that its first query sees.
#[derive(Debug)]
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    dtype: Dtype,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

#[derive(Debug, Default)]
struct LayerCache {
    /// Rows a head.
    capacity: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl KvCache {
    pub(crate) fn new(config: &Config, dtype: Dtype) -> Self {
        Self {
            layers: (0..config.layers).map(|_| LayerCache::default()).collect(),
            dtype,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            window: config.sliding_window,
        }
    }

    /// Whether it holds what a model of this config writes and reads.
    pub(crate) fn fits(&self, config: &Config) -> bool {
        let Self { layers, kv_heads, head_dim, window, .. } = self;
        (layers.len(), *kv_heads, *head_dim, *window)
            == (config.layers, config.kv_heads, config.head_dim, config.sliding_window)
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
        let all = position + tokens;
        let most = |window: usize| window.saturating_add(tokens.saturating_sub(1));
        let needed = self.window.map_or(all, |window| most(window).min(all));
        if self.layers.iter().all(|layer| needed <= layer.capacity) {
            return Ok(());
        }
        let limit = self.window.map_or(context, |window| most(window).min(context));
        let capacity = needed.next_power_of_two().max(64).min(limit).max(needed);
        let row_bytes = padded_row_bytes(self.dtype, self.head_dim);
        for layer in &mut self.layers {
            // Each layer knows its own capacity, so that running out of memory midway leaves all of them whole.
            layer.grow(self.kv_heads, row_bytes, capacity, position)?;
        }
        Ok(())
    }

    /// Stores the keys and values of consecutive positions from `first` on, rounded to the cache's type. Both are
    /// `[T, kv_heads · head_dim]`.
    pub(crate) fn write(&mut self, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        let row_bytes = padded_row_bytes(self.dtype, self.head_dim);
        let layer = &mut self.layers[layer];
        let capacity = layer.capacity;
        for (rows, from) in [(&mut layer.keys, keys), (&mut layer.values, values)] {
            for (i, head) in from.chunks(self.head_dim).enumerate() {
                let (t, h) = (i / self.kv_heads, i % self.kv_heads);
                let at = (h * capacity + (first + t) % capacity) * row_bytes;
                narrow_row(self.dtype, head, &mut rows[at..at + row_bytes]);
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
    /// Moves the latest of `position` positions into larger rings, unless these are large enough.
    fn grow(&mut self, heads: usize, row_bytes: usize, capacity: usize, position: usize) -> Result<()> {
        if capacity <= self.capacity {
            return Ok(());
        }
        let live = position.saturating_sub(self.capacity)..position;
        let larger = |rows| regrow(rows, heads, row_bytes, self.capacity, capacity, live.clone());
        *self = Self { capacity, keys: larger(&self.keys)?, values: larger(&self.values)? };
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
    live: std::ops::Range<usize>,
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
