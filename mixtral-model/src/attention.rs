//! The attention block of a decoder layer: grouped-query attention over the sessions' caches.
//!
//! T rows of one or several sessions, D model width.

use moe_kernels::attention::{AttentionScratch, AttentionShape, SequenceRows, attend_each};
use moe_kernels::{Backend, Linear, LinearScratch};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::batch::Batch;
use crate::layout::RowOrder;
use crate::rope::Rope;
use crate::workspace::{flat, matrix, matrix_of};
use crate::{Error, Result, Step};

/// The weights of the block, and the shape of its heads.
#[derive(Debug)]
pub(crate) struct Attention {
    /// D to heads · head_dim.
    pub(crate) q: Linear,
    /// D to kv_heads · head_dim.
    pub(crate) k: Linear,
    /// D to kv_heads · head_dim.
    pub(crate) v: Linear,
    /// heads · head_dim to D.
    pub(crate) o: Linear,
    /// Of the rows of `q` and `k`.
    pub(crate) order: RowOrder,
    pub(crate) shape: AttentionShape,
    pub(crate) backend: Backend,
}

/// A pass through a layer.
pub(crate) struct AttentionPass<'a, 's> {
    /// The layer, of whose cache keys and values are.
    pub(crate) layer: usize,
    pub(crate) rope: &'a Rope,
    /// Whether rows whose logits nobody wants get keys and values, and nothing more.
    pub(crate) only_wanted: bool,
    /// The rows of x.
    pub(crate) batch: &'a mut Batch,
    /// The sessions they are of.
    pub(crate) steps: &'a mut [Step<'s>],
}

/// The block's buffers.
#[derive(Debug, Default)]
pub(crate) struct AttentionBuffers {
    /// Queries, `[T, heads · head_dim]`.
    pub(crate) q: Vec<f32>,
    /// Keys, `[T, kv_heads · head_dim]`.
    pub(crate) k: Vec<f32>,
    /// Values, `[T, kv_heads · head_dim]`.
    pub(crate) v: Vec<f32>,
    /// One head of one row, `[head_dim]`.
    pub(crate) head: Vec<f32>,
    /// What attention gives, `[T, heads · head_dim]`.
    pub(crate) attended: Vec<f32>,
    pub(crate) scratch: AttentionScratch,
}

impl Attention {
    /// `y = o(attention(rotated q(x), cached rotated k(x), cached v(x)))`, after the keys and values of x joined the caches.
    ///
    /// x is `[T, D]`. The result, in `y`, has a row for each row of the batch, which narrows if the pass says so.
    ///
    /// # Errors
    ///
    /// [`Error::Weights`] where a matrix does not allow its kind of product; [`Error::OutOfMemory`].
    pub(crate) fn forward<'y>(
        &self,
        mut x: ArrayViewMut2<'_, f32>,
        pass: AttentionPass<'_, '_>,
        buffers: &mut AttentionBuffers,
        linear: &mut LinearScratch,
        y: &'y mut Vec<f32>,
    ) -> Result<ArrayViewMut2<'y, f32>> {
        let AttentionPass { layer, rope, only_wanted, batch, steps } = pass;
        let AttentionBuffers { q, k, v, head, attended, scratch } = buffers;
        let at = |matrix| Error::weights(Some(layer), matrix);
        let (q_width, kv_width) =
            (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim);
        for (map, name) in [(&self.q, "q_proj"), (&self.k, "k_proj"), (&self.v, "v_proj")] {
            map.check().map_err(at(name))?;
        }

        // k and v join the caches, k rotated; all three read x packed once
        let mut queries = matrix(q, batch.rows(), q_width)?;
        let mut keys = matrix(k, batch.rows(), kv_width)?;
        let mut values = matrix(v, batch.rows(), kv_width)?;
        let qkv = [queries.view_mut(), keys.view_mut(), values.view_mut()];
        if only_wanted {
            let [_, keys, values] = qkv;
            Linear::forward_each([&self.k, &self.v], x.view(), linear, [keys, values])
        } else {
            Linear::forward_each([&self.q, &self.k, &self.v], x.view(), linear, qkv)
        }
        .map_err(at("q_proj, k_proj, v_proj"))?;
        rope.rotate(batch.angles(), flat(&mut keys), kv_width, self.order, head)?;
        for (n, step) in steps.iter_mut().enumerate() {
            let (rows, position) = batch.step(n);
            let rows = rows.start * kv_width..rows.end * kv_width;
            let (keys, values) = (&flat(&mut keys)[rows.clone()], &flat(&mut values)[rows]);
            step.session.cache_mut().write(layer, position, keys, values);
        }

        if only_wanted {
            x = batch.wanted_of(x);
            batch.narrow();
            queries = matrix(q, batch.rows(), q_width)?;
            self.q.forward(x.view(), linear, queries.view_mut()).map_err(at("q_proj"))?;
        }
        rope.rotate(batch.angles(), flat(&mut queries), q_width, self.order, head)?;

        let mut attended = matrix(attended, batch.rows(), q_width)?;
        let (steps, batch) = (&*steps, &*batch);
        let sequence = |n: usize| {
            let (rows, first) = batch.step(n);
            SequenceRows { tokens: rows.len(), first, kv: steps[n].session.cache().rows(layer) }
        };
        let (q, y_view) = (queries.view(), attended.view_mut());
        attend_each(self.backend, &self.shape, q, steps.len(), &sequence, scratch, y_view)?;
        let mut y = matrix(y, batch.rows(), x.ncols())?;
        self.o.forward(attended.view(), linear, y.view_mut()).map_err(at("o_proj"))?;
        Ok(y)
    }

    /// What the last pass gave its output projection, `[rows, heads · head_dim]`.
    pub(crate) fn mixed<'b>(&self, buffers: &'b AttentionBuffers, rows: usize) -> ArrayView2<'b, f32> {
        matrix_of(&buffers.attended, rows, self.shape.heads * self.shape.head_dim)
    }
}
