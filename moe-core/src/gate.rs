//! The learned projection from hidden states to router logits.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::numerics;
use crate::{Error, Result, Scratch, TokenContext};

/// A layer's gate: `[T, D]` hidden states to `[T, E]` logits.
pub trait Gate: Send + Sync {
    /// Number of experts, E.
    fn experts(&self) -> usize;

    /// Width of a hidden state, D.
    fn dim(&self) -> usize;

    /// Computes the logits of every token; `out` is `[T, E]` and is overwritten.
    ///
    /// Scratch that should outlive the call is taken from `scratch`.
    ///
    /// # Errors
    ///
    /// Whatever the gate may run into ([`Error::gate`]).
    fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        context: &TokenContext<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()>;
}

/// What a pointer to a gate does: as its target.
macro_rules! forward_to_target {
    ($($pointer:ty),*) => {$(
        impl<T: Gate + ?Sized> Gate for $pointer {
            fn experts(&self) -> usize {
                (**self).experts()
            }

            fn dim(&self) -> usize {
                (**self).dim()
            }

            fn logits(
                &self,
                hidden: ArrayView2<'_, f32>,
                context: &TokenContext<'_>,
                scratch: &mut Scratch,
                out: ArrayViewMut2<'_, f32>,
            ) -> Result<()> {
                (**self).logits(hidden, context, scratch, out)
            }
        }
    )*};
}

forward_to_target!(&T, Box<T>, Arc<T>);

/// The linear gate by its definition: `logits = hidden · Wᵀ`, each a canonical dot product, plus a bias where there is one.
///
/// For layers without the kernels crate, whose linear map gives the same bits from weights of any type.
#[derive(Clone, Debug)]
pub struct LinearGate {
    weight: Array2<f32>,
    /// `[E]`, or nothing.
    bias: Vec<f32>,
}

impl LinearGate {
    /// A gate with weight `[E, D]`.
    pub fn new(weight: Array2<f32>) -> Self {
        Self { weight: weight.as_standard_layout().into_owned(), bias: Vec::new() }
    }

    /// The same with a bias `[E]` added to the logits, as gpt-oss has it.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if there is not one for each expert.
    pub fn with_bias(self, bias: impl Into<Vec<f32>>) -> Result<Self> {
        let bias = bias.into();
        Error::check_shape("gate bias", &[self.experts()], &[bias.len()])?;
        Ok(Self { bias, ..self })
    }
}

impl Gate for LinearGate {
    fn experts(&self) -> usize {
        self.weight.nrows()
    }

    fn dim(&self) -> usize {
        self.weight.ncols()
    }

    fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        _: &TokenContext<'_>,
        _: &mut Scratch,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        Error::check_shape("gate input", &[hidden.nrows(), self.dim()], hidden.shape())?;
        Error::check_shape("gate output", &[hidden.nrows(), self.experts()], out.shape())?;
        let hidden = hidden.as_standard_layout();
        for (x, mut logits) in hidden.rows().into_iter().zip(out.rows_mut()) {
            for (w, logit) in self.weight.rows().into_iter().zip(&mut logits) {
                // Both are in standard layout, so both rows are slices.
                *logit = numerics::dot(x.as_slice().unwrap_or(&[]), w.as_slice().unwrap_or(&[]));
            }
            logits.iter_mut().zip(&self.bias).for_each(|(logit, bias)| *logit += bias);
        }
        Ok(())
    }
}
