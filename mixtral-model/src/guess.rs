//! Which experts the next layer is likely to want.

use moe_core::{Expected, Scratch, ScratchValue, TokenContext, memory};
use moe_kernels::vector;
use ndarray::{ArrayView2, Axis, Slice};

use crate::Result;
use crate::model::{Compute, Layer};
use crate::workspace::matrix;

/// Tokens of a pass that are looked at: of more, nearly all experts are wanted, and these say which of them most.
const TOKENS: usize = 64;

/// What guessing needs, kept from layer to layer.
#[derive(Debug, Default)]
pub(crate) struct Guess {
    /// `[T, E]`.
    logits: Vec<f32>,
    /// A token's experts, the best first.
    best: Vec<usize>,
    expected: Vec<Expected>,
}

impl ScratchValue for Guess {
    fn bytes(&self) -> usize {
        memory::held(&self.logits) + memory::held(&self.best) + memory::held(&self.expected)
    }
}

/// Has the bank of a layer hear which experts it is likely to be asked for: those that the layer's gate chooses for hidden states that have
/// yet to pass through the experts of the layer before it, `chosen` for each token ([2312.17238], section 3.2). No result depends on it.
///
/// `hidden` is `[T, D]`; `normed` is overwritten.
///
/// # Errors
///
/// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
///
/// [2312.17238]: https://arxiv.org/abs/2312.17238
pub(crate) fn expect(
    layer: &Layer,
    chosen: usize,
    (compute, eps): (Compute, f32),
    hidden: ArrayView2<'_, f32>,
    normed: &mut Vec<f32>,
    scratch: &mut Scratch,
) -> Result<()> {
    let (tokens, experts) = (hidden.nrows().min(TOKENS), layer.moe.experts());
    let hidden = hidden.slice_axis(Axis(0), Slice::from(..tokens));
    let mut normed = matrix(normed, tokens, hidden.ncols())?;
    vector::rms_norm(compute.backend, hidden, &layer.moe_norm, eps, normed.view_mut());
    let mut guess = std::mem::take(scratch.of::<Guess>());
    let mut logits = matrix(&mut guess.logits, tokens, experts)?;
    // A gate that needs to know more of a token than its state gives no hint.
    let gate = layer.moe.gate();
    if gate.logits(normed.view(), &TokenContext::new(), scratch, logits.view_mut()).is_ok() {
        rank(logits.view(), chosen, &mut guess.best, &mut guess.expected)?;
        layer.moe.expect(&guess.expected);
    }
    *scratch.of() = guess;
    Ok(())
}

/// The experts that are among the `chosen` best of any token, with the share of tokens as how sure that is.
fn rank(
    logits: ArrayView2<'_, f32>,
    chosen: usize,
    best: &mut Vec<usize>,
    expected: &mut Vec<Expected>,
) -> Result<()> {
    let (tokens, experts) = logits.dim();
    memory::reserve(best, experts, "guessed experts")?;
    memory::reserve(expected, experts, "guessed experts")?;
    best.clear();
    best.extend(0..experts);
    expected.clear();
    expected.extend((0..experts).map(|expert| Expected { expert, certainty: 0.0 }));
    // Short of 1, which is for what is certain.
    let share = 0.99 / tokens.max(1) as f32;
    for row in logits.rows() {
        best.sort_unstable_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        best.iter().take(chosen).for_each(|&expert| expected[expert].certainty += share);
    }
    expected.retain(|expected| expected.certainty > 0.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn experts_of_any_token_by_how_many_want_them() {
        let logits = array![[3.0, 1.0, 2.0, f32::NEG_INFINITY], [0.0, 0.0, 9.0, -1.0], [1.0, 1.0, 1.0, 1.0]];
        let mut expected = Vec::new();
        rank(logits.view(), 2, &mut Vec::new(), &mut expected).unwrap();
        let found: Vec<_> = expected.iter().map(|e| (e.expert, (e.certainty * 3.0 / 0.99).round())).collect();
        assert_eq!(found, [(0, 3.0), (1, 1.0), (2, 2.0)]);
        assert!(expected.iter().all(|e| e.certainty < 1.0));
    }
}
