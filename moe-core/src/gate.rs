//! The learned projection from hidden states to router logits.

use std::any::Any;
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

    /// The gate itself, where a layer that owns it may [give it out to be changed](crate::MoeLayer::gate_mut); by default it may
    /// not. A gate with weights that are trained says `Some(self)`.
    fn as_any_mut(&mut self) -> Option<&mut dyn Any> {
        None
    }
}

/// What a pointer to a gate does: as its target, with whatever more is said of it.
macro_rules! forward_to_target {
    ($($pointer:ty { $($more:item)* })*) => {$(
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

            $($more)*
        }
    )*};
}

forward_to_target! {
    &T {}
    Box<T> {
        fn as_any_mut(&mut self) -> Option<&mut dyn Any> {
            (**self).as_any_mut()
        }
    }
    Arc<T> {}
}

/// The linear gate by its definition: `logits = hidden · Wᵀ`, each a canonical dot product, plus a bias where there is one.
///
/// For layers without the kernels crate, whose linear map gives the same bits from weights of any type, and for training: its
/// weight may be changed in place, also [in a layer](crate::MoeLayer::gate_mut).
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

    /// The weight, `[E, D]`.
    pub fn weight(&self) -> ArrayView2<'_, f32> {
        self.weight.view()
    }

    /// The weight, `[E, D]`, to be changed in place: by a step of gradient descent, say.
    ///
    /// Nothing is checked here. Logits that are not finite in consequence are an error of the layer's next pass.
    pub fn weight_mut(&mut self) -> ArrayViewMut2<'_, f32> {
        self.weight.view_mut()
    }

    /// Takes another weight `[E, D]`, into the memory of the one it has.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if it has another shape, [`Error::Gate`] where a number is not finite; the weight is then as before.
    pub fn set_weight(&mut self, weight: ArrayView2<'_, f32>) -> Result<()> {
        Error::check_shape("gate weight", self.weight.shape(), weight.shape())?;
        check_finite("weight", weight.iter().copied())?;
        self.weight.assign(&weight);
        Ok(())
    }

    /// The bias, `[E]`; empty for a gate without one.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// The bias, as [`weight_mut`](Self::weight_mut).
    pub fn bias_mut(&mut self) -> &mut [f32] {
        &mut self.bias
    }

    /// Takes another bias `[E]`, or none for an empty one.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if it has another length, [`Error::Gate`] where a number is not finite; the bias is then as before.
    pub fn set_bias(&mut self, bias: &[f32]) -> Result<()> {
        if !bias.is_empty() {
            Error::check_shape("gate bias", &[self.experts()], &[bias.len()])?;
        }
        check_finite("bias", bias.iter().copied())?;
        self.bias.clear();
        self.bias.extend_from_slice(bias);
        Ok(())
    }
}

fn check_finite(setting: &'static str, mut values: impl Iterator<Item = f32>) -> Result<()> {
    match values.find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(v) => Err(Error::Gate { setting, expected: "finite numbers".to_owned(), found: v.to_string() }),
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

    fn as_any_mut(&mut self) -> Option<&mut dyn Any> {
        Some(self)
    }
}
