//! Memory that forward passes reuse.

use moe_kernels::LinearScratch;
use moe_kernels::attention::AttentionScratch;
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::batch::Batch;
use crate::{Error, Result};

/// The buffers of a forward pass, whatever the model and the sessions. It only grows.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(crate) batch: Batch,
    /// The residual stream, `[T, D]`.
    pub(crate) hidden: Vec<f32>,
    /// A norm's output, `[T, D]`.
    pub(crate) normed: Vec<f32>,
    /// What is added to the residual stream, `[T, D]`.
    pub(crate) delta: Vec<f32>,
    /// Queries, `[T, heads · head_dim]`.
    pub(crate) q: Vec<f32>,
    /// Keys, `[T, kv_heads · head_dim]`.
    pub(crate) k: Vec<f32>,
    /// Values, `[T, kv_heads · head_dim]`.
    pub(crate) v: Vec<f32>,
    /// What attention gives, `[T, heads · head_dim]`.
    pub(crate) attended: Vec<f32>,
    /// Of the rows that are wanted, `[W, V]`.
    pub(crate) logits: Vec<f32>,
    pub(crate) linear: LinearScratch,
    pub(crate) attention: AttentionScratch,
    pub(crate) moe: moe_core::Workspace,
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }
}

/// The first `rows · columns` floats of a buffer as a matrix; grows it if it must. Contents are unspecified.
pub(crate) fn matrix(buffer: &mut Vec<f32>, rows: usize, columns: usize) -> Result<ArrayViewMut2<'_, f32>> {
    let out_of_memory = Error::OutOfMemory { what: "buffers of a forward pass", positions: rows };
    let Some(len) = rows.checked_mul(columns) else { return Err(out_of_memory) };
    if buffer.len() < len {
        buffer.try_reserve_exact(len - buffer.len()).map_err(|_| out_of_memory)?;
        buffer.resize(len, 0.0);
    }
    #[allow(clippy::unwrap_used, reason = "the slice has just the length of the shape")]
    Ok(ArrayViewMut2::from_shape((rows, columns), &mut buffer[..len]).unwrap())
}

/// The same to read, of a buffer that is long enough.
pub(crate) fn matrix_of(buffer: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    #[allow(clippy::unwrap_used, reason = "the slice has just the length of the shape")]
    ArrayView2::from_shape((rows, columns), &buffer[..rows * columns]).unwrap()
}
