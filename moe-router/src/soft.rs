//! Soft MoE: every slot of an expert is a mixture of all tokens.

use moe_core::numerics;
use ndarray::{Array2, ArrayView2};

/// The dispatch weights of Soft MoE (Puigcerver et al., [2308.00951]): softmax over the tokens, for each slot.
///
/// `logits` is `[T, S]` for one group of T tokens and S slots (experts times slots an expert); so is the result D, whose columns
/// sum to 1. Slot s gets the row `Σₜ D[t, s]·x[t]`: the experts work on `Dᵀ·X`, `[S, D]`, grouped by expert.
///
/// This is not a [`Router`](moe_core::Router), nor can it be: a router says which tokens an expert works on, and a plan's row is
/// one token. Here a row is a mixture of all of them, so that nothing is chosen, nothing dropped, and every token depends on
/// every other, later ones included: not for decoders.
///
/// Padding takes no part if its logits are negative infinity, or if its rows are left out. NaN in a column makes it NaN.
///
/// [2308.00951]: https://arxiv.org/abs/2308.00951
pub fn soft_dispatch_weights(logits: ArrayView2<'_, f32>) -> Array2<f32> {
    softmax_rows(logits.reversed_axes()).reversed_axes()
}

/// The combine weights of Soft MoE: softmax over all slots, for each token.
///
/// `logits` is `[T, S]`, and so is the result C, whose rows sum to 1. With the slots' outputs O, `[S, D]`, the layer's is
/// `Y = C·O`. See [`soft_dispatch_weights`].
pub fn soft_combine_weights(logits: ArrayView2<'_, f32>) -> Array2<f32> {
    softmax_rows(logits)
}

fn softmax_rows(logits: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut weights = Array2::from_shape_fn(logits.dim(), |at| logits[at]);
    let columns = weights.ncols().max(1);
    if let Some(all) = weights.as_slice_mut() {
        all.chunks_exact_mut(columns).for_each(numerics::softmax);
    }
    weights
}
