//! Experts that cost nothing.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayViewMut2, Axis, Slice};

use crate::numerics;
use crate::{Dispatch, Error, Expected, Experts, Reserve, Result, RowWork, Scratch};

/// What an expert without a network does with a row x.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum NullExpert {
    /// `0`: the token skips the layer but for its residual (AdaMoE, [2406.13233](https://arxiv.org/abs/2406.13233); MoE++).
    Zero,
    /// `x`.
    Copy,
    /// `α₁·x + α₂·v` with `[α₁, α₂] = softmax(W·x)`: a learned vector, and how much of it.
    Constant {
        /// The vector v, `[D]`.
        vector: Vec<f32>,
        /// The mixing weight W, `[2, D]` row by row.
        mixing: Vec<f32>,
    },
}

/// A bank followed by null experts: expert e below the bank's number is the bank's, the next are `nulls` in order.
///
/// Zero, copy and constant experts are those of MoE++ ([2410.07348](https://arxiv.org/abs/2410.07348)); gate and router then
/// have a column for each null expert too.
#[derive(Debug)]
pub struct NullExperts<X> {
    bank: X,
    nulls: Vec<NullExpert>,
}

impl<X: Experts> NullExperts<X> {
    /// `bank` with null experts after its own.
    ///
    /// # Errors
    ///
    /// If a constant's vector or mixing weight does not fit the bank's width.
    pub fn new(bank: X, nulls: Vec<NullExpert>) -> Result<Self> {
        for null in &nulls {
            if let NullExpert::Constant { vector, mixing } = null {
                Error::check_shape("constant expert's vector", &[bank.dim()], &[vector.len()])?;
                Error::check_shape("constant expert's mixing weight", &[2 * bank.dim()], &[mixing.len()])?;
            }
        }
        Ok(Self { bank, nulls })
    }

    /// The bank of true experts.
    pub fn bank(&self) -> &X {
        &self.bank
    }
}

impl<X: Experts> Experts for NullExperts<X> {
    fn experts(&self) -> usize {
        self.bank.experts() + self.nulls.len()
    }

    fn dim(&self) -> usize {
        self.bank.dim()
    }

    fn forward(
        &self,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        dispatch.check(self, &out)?;
        let own = dispatch.of_experts(0..self.bank.experts());
        self.bank.forward(own, scratch, out.slice_axis_mut(Axis(0), Slice::from(0..own.rows())))?;
        for (null, e) in self.nulls.iter().zip(self.bank.experts()..) {
            let range = dispatch.rows_of(e);
            null.forward(&dispatch, range.clone(), out.slice_axis_mut(Axis(0), Slice::from(range)));
        }
        Ok(())
    }

    /// Tells the bank of its own.
    fn expect(&self, layer: usize, experts: &[Expected]) {
        let own = |x: &Expected| x.expert < self.bank.experts();
        for alike in experts.chunk_by(|a, b| own(a) == own(b)) {
            if own(&alike[0]) {
                self.bank.expect(layer, alike);
            }
        }
    }

    fn reserve(&self, request: &Reserve, scratch: &mut Scratch) -> Result<()> {
        self.bank.reserve(request, scratch)
    }

    fn release(&self, scratch: &mut Scratch) {
        self.bank.release(scratch);
    }

    fn over_rows(&self, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> Result<()> {
        self.bank.over_rows(rows, work)
    }
}

impl NullExpert {
    fn forward(&self, dispatch: &Dispatch<'_>, range: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        match self {
            Self::Zero => out.fill(0.0),
            Self::Copy => dispatch.gather(range, out),
            Self::Constant { vector, mixing } => {
                let (to_row, to_vector) = mixing.split_at(vector.len());
                dispatch.gather(range, out.view_mut());
                for mut row in out.rows_mut() {
                    let mut mix = {
                        // Mostly a slice already; a copy serves whoever brings others.
                        let row = row.as_standard_layout();
                        let x = row.as_slice().unwrap_or(&[]);
                        [numerics::dot(to_row, x), numerics::dot(to_vector, x)]
                    };
                    numerics::softmax(&mut mix);
                    row.zip_mut_with(&ArrayView1::from(vector), |x, v| *x = mix[0] * *x + mix[1] * v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayView2, array};

    use super::*;
    use crate::{Expert, PerExpert};

    struct Double;

    impl Expert for Double {
        fn dim(&self) -> usize {
            2
        }

        fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
            out.zip_mut_with(&rows, |out, x| *out = 2.0 * x);
            Ok(())
        }
    }

    #[test]
    fn each_kind_after_the_bank() {
        let bank = || PerExpert::new(vec![Double]).unwrap();
        // Mixing logits 21 and 21 - ln 3: three quarters of the row, a quarter of the vector.
        let constant =
            NullExpert::Constant { vector: vec![10.0, 20.0], mixing: vec![3.0, 0.0, 3.0, -3f32.ln() / 8.0] };
        let nulls = vec![NullExpert::Zero, NullExpert::Copy, constant];
        let all = NullExperts::new(bank(), nulls).unwrap();
        assert_eq!((all.experts(), all.dim()), (4, 2));
        let rows = array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]];
        let mut out = Array2::from_elem((4, 2), f32::NAN);
        let dispatch = Dispatch::new(rows.view(), &[0, 1, 2, 3], &[0, 1, 2, 3, 4]).unwrap();
        all.forward(dispatch, &mut Scratch::default(), out.view_mut()).unwrap();
        let expected = array![[2.0, 4.0], [0.0, 0.0], [5.0, 6.0], [7.75, 11.0]];
        assert!((&out - &expected).iter().all(|off: &f32| off.abs() < 1e-5), "{out}");
        let wrong = NullExpert::Constant { vector: vec![1.0], mixing: vec![1.0; 4] };
        assert!(NullExperts::new(bank(), vec![wrong]).is_err());
    }
}
