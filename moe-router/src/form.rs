//! Numbers that are not logits yet.

use moe_core::{Error, Result, RouteInput, TokenContext};
use ndarray::{ArrayView1, ArrayViewMut2};

/// How far the sum of a row of probabilities is from 1 at most: bf16 rounds each to within a 512th.
const SUM_BOUND: f64 = 1.0 / 256.0;

/// What the numbers `[T, E]` of a recording are. Routers, losses and metrics take logits.
///
/// Some models give what their gate has become in place of the logits: the router of the `mixtral` family in some versions of
/// `transformers` returned probabilities as `router_logits`. Taken for logits these flatten everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitForm {
    /// Logits l.
    #[default]
    Logits,
    /// `p = softmax(l)`, which leaves l but for a constant of each token: it is taken so that `ln Σ exp(l)` is 0, and what looks at
    /// the size of logits (the z-loss, sigmoids) is not defined.
    Probabilities,
    /// `σ(l)`.
    Sigmoids,
}

impl LogitForm {
    /// Turns such numbers, `[T, E]`, into logits, in place: `ln p`, or `ln s - ln(1 - s)`, rounded from f64. A 0 masks the expert.
    /// Padding is not looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if a number is not from 0 to 1, or probabilities of a token do not sum to 1 within a 256th; the numbers are
    /// then as before.
    ///
    /// # Panics
    ///
    /// If the context's padding is of fewer tokens.
    #[track_caller]
    pub fn make_logits(self, context: &TokenContext<'_>, mut numbers: ArrayViewMut2<'_, f32>) -> Result<()> {
        let present = |t: &usize| !context.is_padding(*t);
        for t in (0..numbers.nrows()).filter(present) {
            self.check(t, numbers.row(t))?;
        }
        for t in (0..numbers.nrows()).filter(present) {
            numbers.row_mut(t).mapv_inplace(|x| {
                let wide = f64::from(x);
                match self {
                    Self::Logits => x,
                    Self::Probabilities => libm::log(wide) as f32,
                    Self::Sigmoids => (libm::log(wide) - libm::log1p(-wide)) as f32,
                }
            });
        }
        Ok(())
    }

    /// Whether what is taken for logits could well be probabilities: every row of several experts is in 0..=1 and sums to 1, and not
    /// all numbers are 0 or 1.
    pub fn looks_like_probabilities(input: &RouteInput<'_>) -> bool {
        let mut rows = input.present().map(|t| Self::Probabilities.check(t, input.logits.row(t))).peekable();
        let whole = |t| input.logits.row(t).iter().all(|l| [0.0, 1.0].contains(l));
        let several = input.experts() > 1 && rows.peek().is_some();
        several && rows.all(|checked| checked.is_ok()) && !input.present().all(whole)
    }

    fn check(self, t: usize, row: ArrayView1<'_, f32>) -> Result<()> {
        let setting = match self {
            Self::Logits => return Ok(()),
            Self::Probabilities => "probabilities",
            Self::Sigmoids => "sigmoids",
        };
        let wrong = |expected: &str, found| Err(Error::Router { setting, expected: expected.into(), found });
        if let Some((e, x)) = row.indexed_iter().find(|(_, x)| !(0.0..=1.0).contains(*x)) {
            return wrong("numbers from 0 to 1", format!("{x} for token {t}, expert {e}"));
        }
        let sum: f64 = row.iter().map(|&x| f64::from(x)).sum();
        if self == Self::Probabilities && (sum - 1.0).abs() > SUM_BOUND {
            return wrong("a sum of 1 for every token", format!("{sum} for token {t}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;
    use crate::losses::Entropy;

    #[test]
    fn back_to_logits() {
        let context = TokenContext::new().with_padding(&[false, true, false]);
        let mut p = array![[0.5, 0.25, 0.25], [f32::NAN, 7.0, -1.0], [1.0, 0.0, 0.0]];
        LogitForm::Probabilities.make_logits(&context, p.view_mut()).unwrap();
        assert_eq!(p[[0, 0]] - p[[0, 1]], std::f32::consts::LN_2);
        assert_eq!(p.row(2), array![0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        // 1.5 ln 2 and 0.
        let input = RouteInput::new(p.view(), context).unwrap();
        assert!((Entropy::of(&input).value() - 0.75 * 2f64.ln()).abs() < 1e-7);

        let mut s = array![[0.5, 0.75, 0.0]];
        LogitForm::Sigmoids.make_logits(&TokenContext::new(), s.view_mut()).unwrap();
        assert_eq!(s, array![[0.0, 3f32.ln(), f32::NEG_INFINITY]]);
        let mut logits = array![[-7.0f32, f32::NAN]];
        LogitForm::Logits.make_logits(&TokenContext::new(), logits.view_mut()).unwrap();
        assert_eq!(logits[[0, 0]], -7.0);
    }

    #[test]
    fn what_is_no_probability() {
        let error = |form: LogitForm, row: [f32; 2]| {
            let mut numbers = Array2::from(vec![row]);
            let error = form.make_logits(&TokenContext::new(), numbers.view_mut()).unwrap_err().to_string();
            let bits = |x: &f32| x.to_bits();
            assert!(numbers.iter().map(bits).eq(row.iter().map(bits)), "as before");
            error
        };
        assert_eq!(
            error(LogitForm::Probabilities, [0.5, 0.25]),
            "router: probabilities: expected a sum of 1 for every token, found 0.75 for token 0"
        );
        assert!(error(LogitForm::Sigmoids, [0.5, 1.5]).contains("found 1.5 for token 0, expert 1"));
        assert!(error(LogitForm::Sigmoids, [f32::NAN, 0.5]).contains("found NaN"));
        let looks = |rows: Array2<f32>| {
            LogitForm::looks_like_probabilities(&RouteInput::new(rows.view(), TokenContext::new()).unwrap())
        };
        assert!(looks(array![[0.5, 0.5], [0.0, 1.0]]));
        assert!(!looks(array![[0.5, 0.5], [0.1, 1.0]]));
        assert!(!looks(array![[1.0, 0.0], [0.0, 1.0]]));
        assert!(!looks(array![[1.5, -0.5]]) && !looks(array![[1.0]]) && !looks(Array2::zeros((0, 2))));
    }
}
