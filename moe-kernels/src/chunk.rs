//! The unit of memory that kernels work on.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};
use moe_core::memory;
use moe_core::numerics::{BLOCK, LANES};

use crate::Result;

/// Sixteen f32 in memory: the unit in which packed rows are laid out. A chunk is one line of the cache, as a load that
/// crosses two takes twice the time.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Chunk(pub(crate) [f32; LANES]);

/// Chunks of f32 in a whole K block of a canonical dot product.
pub(crate) const BLOCK_CHUNKS: usize = BLOCK / LANES;

impl Chunk {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

impl Deref for Chunk {
    type Target = [f32; LANES];

    #[inline(always)]
    fn deref(&self) -> &[f32; LANES] {
        &self.0
    }
}

impl DerefMut for Chunk {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [f32; LANES] {
        &mut self.0
    }
}

/// The floats of chunks.
#[inline(always)]
pub(crate) fn floats(chunks: &[Chunk]) -> &[f32] {
    bytemuck::cast_slice(chunks)
}

/// The floats of chunks.
#[inline(always)]
pub(crate) fn floats_mut(chunks: &mut [Chunk]) -> &mut [f32] {
    bytemuck::cast_slice_mut(chunks)
}

/// Number of chunks that hold `columns` floats.
pub(crate) fn chunks_of(columns: usize) -> usize {
    columns.div_ceil(LANES)
}

/// Makes a buffer, which is `what`, at least so long. Contents are unspecified.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
pub(crate) fn grow(buffer: &mut Vec<Chunk>, len: usize, what: &'static str) -> Result<()> {
    Ok(memory::grow(buffer, len, Chunk::ZERO, what)?)
}
