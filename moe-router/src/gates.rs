//! Gates other than the linear one.

use moe_core::memory::held;
use moe_core::{Error, Gate, Result, Scratch, ScratchValue, TokenContext, numerics};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::select::MASKED;

/// Logits as cosines in a space of few dimensions: X-MoE (Chi et al., [2204.09179], equations 7 and 8).
///
/// ```text
/// lₑ = cos(P x, mₑ) / τ        P [d, D], mₑ a row of M [E, d]
/// ```
///
/// Lengths play no part, neither of hidden states nor of expert vectors, which counteracts the collapse of representations that a
/// linear gate invites. Logits lie in `±1/τ`, up to rounding. A token whose projection is zero has no direction; its logits are zero.
/// Where references keep a norm away from 0 by an epsilon, this one divides the projection by its largest magnitude first, so that
/// squares neither overflow nor vanish.
///
/// The paper learns τ, and has a constant in its place in the balance loss. Published code often divides by the lengths of the expert
/// vectors alone, which leaves that of the projection in the logits.
///
/// The matrix products are canonical dot products, so that a token's logits do not depend on its company.
///
/// [2204.09179]: https://arxiv.org/abs/2204.09179
#[derive(Clone, Debug)]
pub struct CosineGate {
    /// `[d, D]`.
    projection: Array2<f32>,
    /// `[E, d]`, rows of length 1.
    directions: Array2<f32>,
    temperature: f32,
}

/// The projection of one token, `[d]`.
#[derive(Default)]
struct Projected(Vec<f32>);

impl ScratchValue for Projected {
    fn bytes(&self) -> usize {
        held(&self.0)
    }
}

impl CosineGate {
    /// A gate with projection P `[d, D]`, expert vectors M `[E, d]` and temperature τ.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the two disagree on d; [`Error::Gate`] if τ is not a finite number above 0, or an expert vector is zero
    /// or not finite.
    pub fn new(projection: Array2<f32>, experts: Array2<f32>, temperature: f32) -> Result<Self> {
        Error::check_shape("expert vectors", &[experts.nrows(), projection.nrows()], experts.shape())?;
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::Gate {
                setting: "temperature",
                expected: "a finite number above 0".into(),
                found: temperature.to_string(),
            });
        }
        let mut directions = experts.as_standard_layout().into_owned();
        for (e, mut direction) in directions.rows_mut().into_iter().enumerate() {
            // In standard layout, so each row is a slice.
            let row = direction.as_slice_mut().unwrap_or(&mut []);
            if !row.iter().all(|v| v.is_finite()) || !normalize(row) {
                return Err(Error::Gate {
                    setting: "expert vectors",
                    expected: "finite, and not zero".into(),
                    found: format!("expert {e}: {:?}", experts.row(e).to_vec()),
                });
            }
        }
        let projection = projection.as_standard_layout().into_owned();
        Ok(Self { projection, directions, temperature })
    }
}

impl Gate for CosineGate {
    fn experts(&self) -> usize {
        self.directions.nrows()
    }

    fn dim(&self) -> usize {
        self.projection.ncols()
    }

    fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        _: &TokenContext<'_>,
        scratch: &mut Scratch,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        Error::check_shape("gate input", &[hidden.nrows(), self.dim()], hidden.shape())?;
        Error::check_shape("gate output", &[hidden.nrows(), self.experts()], out.shape())?;
        let Projected(projected) = scratch.of();
        let hidden = hidden.as_standard_layout();
        // All are in standard layout, so all rows are slices.
        for (x, mut logits) in hidden.rows().into_iter().zip(out.rows_mut()) {
            let x = x.as_slice().unwrap_or(&[]);
            projected.clear();
            let rows = self.projection.rows().into_iter();
            projected.extend(rows.map(|p| numerics::dot(p.as_slice().unwrap_or(&[]), x)));
            normalize(projected);
            for (direction, logit) in self.directions.rows().into_iter().zip(&mut logits) {
                *logit = numerics::dot(direction.as_slice().unwrap_or(&[]), projected) / self.temperature;
            }
        }
        Ok(())
    }
}

/// Divides a vector by its length; `false`, and nothing done, if that is zero. What is not finite makes everything NaN.
fn normalize(v: &mut [f32]) -> bool {
    let largest = v.iter().fold(0.0f32, |m, x| if x.abs() > m { x.abs() } else { m });
    if largest == 0.0 {
        // Zeros, or nothing but NaN, which stays.
        return false;
    }
    v.iter_mut().for_each(|x| *x /= largest);
    let length = numerics::dot(v, v).sqrt();
    v.iter_mut().for_each(|x| *x /= length);
    true
}

/// `cap · tanh(l / cap)`; what is masked stays so.
pub(crate) fn soft_cap(l: f32, cap: f32) -> f32 {
    if l == MASKED { l } else { cap * numerics::tanh(l / cap) }
}

/// The logits of another gate, bounded softly: `l ↦ cap · tanh(l / cap)`, within ±cap. Laguna does so.
///
/// A masked expert stays so: its logit is negative infinity before and after.
///
/// It wraps the gate and not the router, so that router, observers and losses all see the same logits.
#[derive(Clone, Debug)]
pub struct SoftCapped<G> {
    inner: G,
    cap: f32,
}

impl<G: Gate> SoftCapped<G> {
    /// Bounds the logits of `inner` by `cap`.
    ///
    /// # Errors
    ///
    /// [`Error::Gate`] unless `cap` is a finite number above 0.
    pub fn new(inner: G, cap: f32) -> Result<Self> {
        if !(cap.is_finite() && cap > 0.0) {
            return Err(Error::Gate {
                setting: "logit cap",
                expected: "a finite number above 0".into(),
                found: cap.to_string(),
            });
        }
        Ok(Self { inner, cap })
    }

    /// The gate whose logits are bounded.
    pub fn inner(&self) -> &G {
        &self.inner
    }
}

impl<G: Gate> Gate for SoftCapped<G> {
    fn experts(&self) -> usize {
        self.inner.experts()
    }

    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        context: &TokenContext<'_>,
        scratch: &mut Scratch,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.inner.logits(hidden, context, scratch, out.view_mut())?;
        out.mapv_inplace(|l| soft_cap(l, self.cap));
        Ok(())
    }
}
