//! Memory that forward passes reuse.

use moe_core::ScratchValue;
use moe_core::memory::{self, held};
use moe_kernels::LinearScratch;
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::Result;
use crate::attention::AttentionBuffers;
use crate::batch::Batch;

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
    /// Of the rows that are wanted, `[W, V]`.
    pub(crate) logits: Vec<f32>,
    pub(crate) linear: LinearScratch,
    pub(crate) attention: AttentionBuffers,
    pub(crate) moe: moe_core::Workspace,
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of memory that it holds on to.
    pub fn bytes(&self) -> usize {
        let Self { batch, hidden, normed, delta, logits, linear, attention, moe } = self;
        let AttentionBuffers { q, k, v, head, attended, scratch } = attention;
        let matrices =
            [hidden, normed, delta, logits, q, k, v, head, attended].map(held).iter().sum::<usize>();
        batch.bytes() + matrices + linear.bytes() + scratch.bytes() + moe.bytes()
    }
}

/// The first `rows · columns` floats of a buffer as a matrix; grows it if it must. Contents are unspecified.
pub(crate) fn matrix(buffer: &mut Vec<f32>, rows: usize, columns: usize) -> Result<ArrayViewMut2<'_, f32>> {
    Ok(memory::matrix(buffer, rows, columns, "buffers of a forward pass")?)
}

/// The floats of a buffer's matrix.
pub(crate) fn flat<'a>(matrix: &'a mut ArrayViewMut2<'_, f32>) -> &'a mut [f32] {
    matrix.as_slice_mut().expect("matrices of the workspace are contiguous")
}

/// The same to read, of a buffer that is long enough.
pub(crate) fn matrix_of(buffer: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    #[allow(clippy::unwrap_used, reason = "the slice has just the length of the shape")]
    ArrayView2::from_shape((rows, columns), &buffer[..rows * columns]).unwrap()
}
