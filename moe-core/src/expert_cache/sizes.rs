//! The experts of a model by number, and their bytes.

use crate::memory::{refill, refill_from};
use crate::{Error, OutOfMemory, Result};

/// One expert of one layer. Keys are ordered by layer, then by expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExpertKey {
    /// The layer.
    pub layer: usize,
    /// The expert of the layer.
    pub expert: usize,
}

impl ExpertKey {
    /// The expert of the layer.
    pub fn new(layer: usize, expert: usize) -> Self {
        Self { layer, expert }
    }
}

/// The bytes of each expert of a model of so many layers and experts a layer.
///
/// Layers of a model may differ in the number of experts: `experts` is then the greatest, and those that a layer lacks are of
/// 0 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertSizes {
    layers: usize,
    experts: usize,
    /// `[layers, experts]`.
    bytes: Vec<u64>,
}

impl ExpertSizes {
    /// Experts of one size.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn equal(layers: usize, experts: usize, bytes: u64) -> Result<Self> {
        let keys = check_keys(layers, experts)?;
        let mut list = Vec::new();
        refill(&mut list, keys, bytes, WHAT)?;
        Self::of(layers, experts, list)
    }

    /// Experts of the sizes listed, `[layers, experts]` by layer.
    ///
    /// # Errors
    ///
    /// [`Error::Residency`] if there are no layers or experts, the list has another length, or the bytes of all of them are more
    /// than a `u64` counts; [`Error::TooLarge`] beyond 32-bit indices; [`Error::OutOfMemory`].
    pub fn new(layers: usize, experts: usize, bytes: &[u64]) -> Result<Self> {
        let keys = check_keys(layers, experts)?;
        if bytes.len() != keys {
            let expected = format!("{keys} for {layers} layers of {experts} experts");
            return Err(Error::residency("expert sizes", expected, bytes.len()));
        }
        let mut list = Vec::new();
        refill_from(&mut list, keys, bytes.iter().copied(), WHAT)?;
        Self::of(layers, experts, list)
    }

    fn of(layers: usize, experts: usize, bytes: Vec<u64>) -> Result<Self> {
        let sum = bytes.iter().try_fold(0u64, |sum, &bytes| sum.checked_add(bytes));
        match sum {
            Some(_) => Ok(Self { layers, experts, bytes }),
            None => Err(Error::residency("expert sizes", "a sum below 2^64 bytes", "more")),
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Number of experts of a layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The bytes of an expert; none if there is no such expert.
    pub fn bytes(&self, key: ExpertKey) -> Option<u64> {
        self.index(key).map(|i| self.bytes[i])
    }

    /// The bytes of all experts.
    pub fn total(&self) -> u64 {
        self.bytes.iter().sum()
    }

    /// Whether all experts that have bytes have the same number of them.
    pub fn are_equal(&self) -> bool {
        let mut some = self.bytes.iter().filter(|&&bytes| bytes > 0);
        let first = some.next();
        some.all(|bytes| Some(bytes) == first)
    }

    /// The bytes of each expert of a layer, which is there.
    pub(super) fn of_layer(&self, layer: usize) -> &[u64] {
        &self.bytes[layer * self.experts..][..self.experts]
    }

    /// The bytes of the expert of an index, which is there.
    pub(super) fn at(&self, index: usize) -> u64 {
        self.bytes[index]
    }

    /// Number of keys.
    pub(super) fn keys(&self) -> usize {
        self.bytes.len()
    }

    /// The place of a key in the order of keys.
    pub(super) fn index(&self, key: ExpertKey) -> Option<usize> {
        let there = key.layer < self.layers && key.expert < self.experts;
        there.then(|| key.layer * self.experts + key.expert)
    }

    /// The place of a key, or the error that says what is out of range.
    pub(super) fn checked_index(&self, key: ExpertKey) -> Result<usize> {
        self.index(key).ok_or_else(|| {
            let expected = format!("a layer below {} and an expert below {}", self.layers, self.experts);
            Error::residency("expert cache", expected, format!("layer {}, expert {}", key.layer, key.expert))
        })
    }

    /// The key at a place.
    pub(super) fn key(&self, index: usize) -> ExpertKey {
        ExpertKey::new(index / self.experts, index % self.experts)
    }
}

const WHAT: &str = "expert sizes";

/// The number of keys, which 32 bits must hold.
fn check_keys(layers: usize, experts: usize) -> Result<usize> {
    if layers == 0 || experts == 0 {
        let found = format!("{layers} layers of {experts} experts");
        return Err(Error::residency(WHAT, "at least one layer of one expert", found));
    }
    let keys = layers.checked_mul(experts).ok_or(OutOfMemory::of::<u64>(WHAT, usize::MAX))?;
    match u32::try_from(keys) {
        Ok(n) if n < u32::MAX => Ok(keys),
        _ => Err(Error::TooLarge { what: "experts of all layers", found: keys }),
    }
}
