//! Another router on logits that are a fixed function of those given.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router, TokenContext};
use ndarray::{ArrayViewMut1, ArrayViewMut2};

use crate::changed;
use crate::gates::soft_cap;
use crate::select::MASKED;

#[derive(Clone, Debug, PartialEq)]
enum Map {
    Scaled(f32),
    SoftCapped(f32),
    Steered { on: Vec<u32>, off: Vec<u32> },
}

/// Another router on changed logits: whatever it decides, weights and scores too, is of these, and they are what the router
/// [decides on](Router::perturb), so that losses may be of them.
///
/// | constructor | logits | from |
/// |---|---|---|
/// | [`scaled`](Self::scaled) | `c·l` | a temperature of 1/c; Muse Spark's `output_multiplier` |
/// | [`soft_capped`](Self::soft_capped) | `c·tanh(l/c)` | Laguna, which has it in the [gate](crate::SoftCapped) |
/// | [`steered`](Self::steered) | some experts on, some off | SteerMoE, [2509.09660] |
///
/// A masked expert stays masked, whatever the function. Finite logits stay finite: a product goes no further than the greatest
/// f32. NaN stays NaN.
///
/// Locality: the inner router's.
///
/// [2509.09660]: https://arxiv.org/abs/2509.09660
#[derive(Clone, Debug, PartialEq)]
pub struct MappedLogits<R> {
    inner: R,
    map: Map,
}

/// What is added to the greatest logit for an expert that is on, relative to the greatest magnitude of the token's logits where
/// that is above 1: an f32 of that size does not absorb it.
const ABOVE: f32 = 0.01;

impl<R: Router> MappedLogits<R> {
    /// Multiplies logits by `by`: above 1 sharpens a softmax, below 1 flattens it.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `by` is a finite number above 0.
    pub fn scaled(inner: R, by: f32) -> Result<Self> {
        check("scale of logits", by)?;
        Ok(Self { inner, map: Map::Scaled(by) })
    }

    /// Bounds logits softly, within ±`cap`.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `cap` is a finite number above 0.
    pub fn soft_capped(inner: R, cap: f32) -> Result<Self> {
        check("logit cap", cap)?;
        Ok(Self { inner, map: Map::SoftCapped(cap) })
    }

    /// Forces the experts `on` and omits the experts `off`, for every token.
    ///
    /// ```text
    /// lₑ ← m + 0.01·max(1, max |l|)    e in on, m the greatest finite logit of the token
    /// lₑ ← -∞                          e in off: masked
    /// ```
    ///
    /// A router that takes the k greatest logits takes up to k of the experts that are on, ties to the lower expert, and then
    /// the best of the others. One that chooses by a bias, by groups or by chance may not, and one whose score saturates may
    /// not. An expert that is masked for a token, or whose logit is NaN, is not forced. The paper does the same to the logarithms of the softmax, which
    /// differ from the logits by one number a token, with a constant in place of 0.01 times the greatest magnitude; it
    /// sets those that are off just below the least, where they may yet be chosen for want of others and keep a little of a
    /// softmax over all.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if an expert is both.
    pub fn steered(inner: R, on: impl Into<Vec<u32>>, off: impl Into<Vec<u32>>) -> Result<Self> {
        let (on, off) = (on.into(), off.into());
        if let Some(both) = on.iter().find(|e| off.contains(e)) {
            return Err(Error::Router {
                setting: "steered experts",
                expected: "each either on or off".into(),
                found: format!("expert {both} in both"),
            });
        }
        Ok(Self { inner, map: Map::Steered { on, off } })
    }

    /// The router on the changed logits.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Changes the logits `[T, E]`.
    fn apply(&self, mut logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        match &self.map {
            Map::Scaled(by) => logits.mapv_inplace(|l| match l.is_finite() {
                true => (by * l).clamp(f32::MIN, f32::MAX),
                false => l,
            }),
            Map::SoftCapped(cap) => logits.mapv_inplace(|l| soft_cap(l, *cap)),
            Map::Steered { on, off } => {
                let experts = logits.ncols();
                if let Some(e) = on.iter().chain(off).find(|e| **e as usize >= experts) {
                    let expected = format!("experts below {experts}");
                    return Err(Error::Router { setting: "steered experts", expected, found: e.to_string() });
                }
                logits.rows_mut().into_iter().for_each(|row| steer(row, on, off));
            }
        }
        Ok(())
    }
}

/// Steers one token's logits, `[E]`.
fn steer(mut logits: ArrayViewMut1<'_, f32>, on: &[u32], off: &[u32]) {
    let finite = || logits.iter().copied().filter(|l| l.is_finite());
    let greatest = finite().fold(f32::MIN, f32::max);
    let size = finite().fold(1.0, |size: f32, l| size.max(l.abs()));
    let forced = (greatest + ABOVE * size).min(f32::MAX);
    for &e in on {
        let logit = &mut logits[e as usize];
        if *logit != MASKED && !logit.is_nan() {
            *logit = forced;
        }
    }
    for &e in off {
        logits[e as usize] = MASKED;
    }
}

impl<R: Router> Router for MappedLogits<R> {
    /// Lets the inner router decide on the changed logits.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if an expert to steer is not there; what the inner router reports.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        changed::route(&self.inner, input, input.context, out, |logits| self.apply(logits))
    }

    fn locality(&self) -> Locality {
        self.inner.locality()
    }

    /// Changes the logits, then does what the inner router does to that.
    fn perturb(&self, context: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.apply(logits.view_mut())?;
        self.inner.perturb(context, logits)
    }

    /// The inner router's scores of the changed logits; of those given where experts to steer are not there.
    fn scores(&self, context: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) {
        // Routing reports what is wrong here.
        let _ = self.apply(logits.view_mut());
        self.inner.scores(context, logits);
    }
}

fn check(setting: &'static str, value: f32) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    let expected = "a finite number above 0".into();
    Err(Error::Router { setting, expected, found: value.to_string() })
}
