//! Second choices kept by chance, or if they weigh enough.

use moe_core::memory::refill;
use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router, TokenContext, Verdict};
use ndarray::ArrayViewMut2;

use crate::draw::{self, Stream, without_noise};

/// The choices of another router, those after the first kept by chance, in proportion to their weight: where `w > θ·u`.
///
/// GShard ([2006.16668]) has θ = 1/2, so that a second expert is kept with probability `min(1, 2·w)`, w being its share of the
/// two weights: `RandomSecond::new(Renormalized::new(TopK::new(2)?.normalized(OverAll)))`. The first choice keeps its weight,
/// as there. u is uniform in `0..1` for each token and expert: that of
/// [`TokenContext::noise`](moe_core::TokenContext), `[T, E]`, where the input has it, else drawn from (seed, layer, sequence,
/// position, expert).
///
/// What chance removes was never asked for: it is not refused, and takes no place of a [`Capped`](crate::Capped) around it.
/// (GShard draws for those choices only that find a place; a choice that is removed took none there either.)
///
/// Locality: the inner router's.
///
/// [2006.16668]: https://arxiv.org/abs/2006.16668
#[derive(Clone, Copy, Debug)]
pub struct RandomSecond<R> {
    inner: R,
    threshold: f32,
}

impl<R: Router> RandomSecond<R> {
    /// Keeps a later choice of weight w with probability `2·w`.
    pub fn new(inner: R) -> Self {
        Self { inner, threshold: 0.5 }
    }

    /// The same with probability `w / threshold`.
    ///
    /// # Errors
    ///
    /// If the threshold is not a finite number above 0.
    pub fn with_threshold(self, threshold: f32) -> Result<Self> {
        if threshold > 0.0 && threshold.is_finite() {
            return Ok(Self { threshold, ..self });
        }
        let expected = "a finite number above 0".into();
        Err(Error::Router { setting: "threshold", expected, found: threshold.to_string() })
    }

    /// The router whose choices these are.
    pub fn inner(&self) -> &R {
        &self.inner
    }
}

impl<R: Router> Router for RandomSecond<R> {
    /// Lets the inner router push, then removes.
    ///
    /// # Errors
    ///
    /// If given noise is not `[T, E]`; what the inner router reports.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        draw::check_columns(&input.context, input.experts())?;
        let mut without = *input;
        without.context = without_noise(&input.context);
        let mark = out.mark();
        self.inner.route(&without, out)?;
        out.review(mark, |review| {
            for (pair, verdict) in review.pairs.iter().zip(review.verdicts) {
                let (t, e) = (pair.token as usize, pair.expert as usize);
                // What is out of range stays; sealing reports it.
                if pair.rank == 0 || t >= input.tokens() || e >= input.experts() {
                    continue;
                }
                let u = match input.context.noise {
                    Some(noise) => noise.row(t)[e],
                    None => draw::uniform(&input.context, Stream::SecondChoice, t, e),
                };
                // A NaN stays too, for sealing to report.
                if pair.weight <= self.threshold * u {
                    *verdict = Verdict::Forget;
                }
            }
        })
    }

    fn locality(&self) -> Locality {
        self.inner.locality()
    }

    fn perturb(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.inner.perturb(&without_noise(context), logits)
    }

    fn scores(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.inner.scores(&without_noise(context), logits);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Least {
    Ratio(f32),
    Weight(f32),
}

/// The choices of another router without those that weigh little.
///
/// | constructor | removes | paper |
/// |---|---|---|
/// | [`by_ratio`](Self::by_ratio)`(β)` | `w < β · max w` | dynamic skipping of NAEE, [2402.14800]: a second expert of Mixtral is skipped |
/// | the same, [`keeping`](Self::keeping)`(n)` | the same, but never the first n choices | smart expert reduction of ik_llama.cpp, pull request 239 |
/// | [`by_weight`](Self::by_weight)`(θ)` | `w < θ` | the threshold policy for second experts of GShard's successors, ST-MoE ([2202.08906]) among them |
///
/// The first choice always stays. The weights of those that stay do not change; [`Renormalized`](crate::Renormalized) around
/// this one shares out what was removed. What is removed was never asked for: it is not refused.
///
/// Locality: the inner router's.
///
/// [2202.08906]: https://arxiv.org/abs/2202.08906
/// [2402.14800]: https://arxiv.org/abs/2402.14800
#[derive(Clone, Copy, Debug)]
pub struct SkipLight<R> {
    inner: R,
    least: Least,
    keep: u32,
}

impl<R: Router> SkipLight<R> {
    /// Removes choices that weigh less than `ratio` times the token's greatest weight.
    ///
    /// # Errors
    ///
    /// If the ratio is not in 0..=1.
    pub fn by_ratio(inner: R, ratio: f32) -> Result<Self> {
        Self::new(inner, ratio, Least::Ratio(ratio))
    }

    /// Removes choices that weigh less than `weight`.
    ///
    /// # Errors
    ///
    /// If the weight is not in 0..=1.
    pub fn by_weight(inner: R, weight: f32) -> Result<Self> {
        Self::new(inner, weight, Least::Weight(weight))
    }

    fn new(inner: R, value: f32, least: Least) -> Result<Self> {
        if !(0.0..=1.0).contains(&value) {
            let expected = "a number from 0 to 1".into();
            return Err(Error::Router { setting: "least weight", expected, found: value.to_string() });
        }
        Ok(Self { inner, least, keep: 1 })
    }

    /// The same, but never removes a token's first `choices`, nor in any case its first one.
    pub fn keeping(self, choices: usize) -> Self {
        Self { keep: u32::try_from(choices).unwrap_or(u32::MAX).max(1), ..self }
    }

    /// The router whose choices these are.
    pub fn inner(&self) -> &R {
        &self.inner
    }
}

impl<R: Router> Router for SkipLight<R> {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let mark = out.mark();
        self.inner.route(input, out)?;
        out.with_scratch(|out, scratch| {
            let greatest = &mut scratch.values;
            refill(greatest, input.tokens(), f32::NEG_INFINITY, "greatest weights")?;
            out.review(mark, |review| {
                for pair in &*review.pairs {
                    if let Some(greatest) = greatest.get_mut(pair.token as usize) {
                        *greatest = greatest.max(pair.weight);
                    }
                }
                for (pair, verdict) in review.pairs.iter().zip(review.verdicts) {
                    let Some(greatest) = greatest.get(pair.token as usize) else { continue };
                    let least = match self.least {
                        Least::Ratio(ratio) => ratio * greatest,
                        Least::Weight(weight) => weight,
                    };
                    if pair.rank >= self.keep && pair.weight < least {
                        *verdict = Verdict::Forget;
                    }
                }
            })
        })
    }

    fn locality(&self) -> Locality {
        self.inner.locality()
    }

    fn perturb(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.inner.perturb(context, logits)
    }

    fn scores(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.inner.scores(context, logits);
    }
}

/// The choices of another router without those of the experts from `true_experts` on.
///
/// For null experts that give zero ([`moe_core::NullExpert::Zero`]): a token that chose them does without. AdaMoE
/// ([2406.13233](https://arxiv.org/abs/2406.13233)) shares the weights out over the true experts that are left:
/// `Renormalized::new(WithoutNulls::new(TopK::new(k)?, true_experts))`. Nulls that copy or are constant are kept and worked on.
///
/// What is removed is not refused. A token whose choices all were null has no expert. Locality: the inner router's.
#[derive(Clone, Copy, Debug)]
pub struct WithoutNulls<R> {
    inner: R,
    true_experts: usize,
}

impl<R: Router> WithoutNulls<R> {
    /// Keeps only the choices of experts below `true_experts`.
    pub fn new(inner: R, true_experts: usize) -> Self {
        Self { inner, true_experts }
    }
}

impl<R: Router> Router for WithoutNulls<R> {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let mark = out.mark();
        self.inner.route(input, out)?;
        let nulls = self.true_experts..input.experts();
        out.review(mark, |review| {
            for (pair, verdict) in review.pairs.iter().zip(review.verdicts) {
                if nulls.contains(&(pair.expert as usize)) {
                    *verdict = Verdict::Forget;
                }
            }
        })
    }

    fn locality(&self) -> Locality {
        self.inner.locality()
    }

    fn perturb(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.inner.perturb(context, logits)
    }

    fn scores(&self, context: &TokenContext<'_>, logits: ArrayViewMut2<'_, f32>) {
        self.inner.scores(context, logits);
    }
}
