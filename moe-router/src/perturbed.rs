//! Noise on the logits.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router, TokenContext, numerics};
use ndarray::ArrayViewMut2;

use crate::changed;
use crate::draw::{self, Stream, without_noise};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Perturbation {
    Gaussian(f32),
    Learned,
    Jitter(f32),
}

/// Another router on logits with noise: whatever it decides, weights and scores too, is of the noisy logits
/// ([`Router::perturb`]). Which of the two losses are of, [`losses`](crate::losses#noise) says.
///
/// | constructor | noisy logits | paper |
/// |---|---|---|
/// | [`gaussian`](Self::gaussian) | `l + std·z` | V-MoE, [2106.05974], with std = 1/E |
/// | [`learned`](Self::learned) | `l + z·softplus(n)`, n being [`noise_logits`](moe_core::TokenContext) | noisy top-k of Shazeer et al., [1701.06538] |
/// | [`jitter`](Self::jitter) | `l·(1 - ε + 2ε·u)` | after Switch, [2101.03961] |
///
/// z is standard normal and u uniform in `0..1`, one for each token and expert: those of
/// [`TokenContext::noise`](moe_core::TokenContext), `[T, E]`, where the input has it, else drawn from (seed, layer, sequence,
/// position, expert). Given noise is used up: the inner router is handed an input without it, and draws if it needs to.
/// Finite logits stay finite: noise takes them no further than the greatest f32. Others stay as they are, so that no noise
/// unmasks an expert.
///
/// Switch multiplies the hidden states by its jitter, before the gate, one factor for each of the D features. Here the logits
/// are multiplied, one factor for each expert, for a router sees no hidden states.
///
/// Locality: the inner router's. A decoder that calls with one chunk at a time must say which
/// [positions](moe_core::TokenContext) it has come to, or every chunk draws as the first.
///
/// [1701.06538]: https://arxiv.org/abs/1701.06538
/// [2101.03961]: https://arxiv.org/abs/2101.03961
/// [2106.05974]: https://arxiv.org/abs/2106.05974
#[derive(Clone, Copy, Debug)]
pub struct Perturbed<R> {
    inner: R,
    by: Perturbation,
}

impl<R: Router> Perturbed<R> {
    /// Adds normal noise of a fixed standard deviation.
    ///
    /// # Errors
    ///
    /// If it is negative or not finite.
    pub fn gaussian(inner: R, std: f32) -> Result<Self> {
        check("standard deviation of noise", std, f32::MAX)?;
        Ok(Self { inner, by: Perturbation::Gaussian(std) })
    }

    /// Adds normal noise whose standard deviation is the softplus of a second gate's logits.
    pub fn learned(inner: R) -> Self {
        Self { inner, by: Perturbation::Learned }
    }

    /// Multiplies by a uniform number of `1 - epsilon` to `1 + epsilon`.
    ///
    /// # Errors
    ///
    /// If epsilon is not in 0..=1.
    pub fn jitter(inner: R, epsilon: f32) -> Result<Self> {
        check("jitter", epsilon, 1.0)?;
        Ok(Self { inner, by: Perturbation::Jitter(epsilon) })
    }

    /// The router on the noisy logits.
    pub fn inner(&self) -> &R {
        &self.inner
    }

    /// Makes logits `[T, E]` noisy.
    fn add_noise(&self, context: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        let experts = logits.ncols();
        draw::check_columns(context, experts)?;
        let scales = context.noise_logits;
        if self.by == Perturbation::Learned && scales.is_none_or(|n| n.columns() != experts) {
            return Err(Error::Router {
                setting: "noise logits",
                expected: format!("{experts} numbers a token"),
                found: scales.map_or("none".into(), |n| n.columns().to_string()),
            });
        }
        for ((t, e), logit) in logits.indexed_iter_mut() {
            let l = *logit;
            // What is masked stays so.
            if !l.is_finite() {
                continue;
            }
            let given = context.noise.map(|noise| noise.row(t)[e]);
            let drawn = || draw::uniform(context, Stream::Noise, t, e);
            let z = || given.unwrap_or_else(|| draw::normal(drawn()));
            let noisy = match self.by {
                Perturbation::Gaussian(std) => l + std * z(),
                Perturbation::Learned => l + z() * scales.map_or(0.0, |n| numerics::softplus(n.row(t)[e])),
                Perturbation::Jitter(epsilon) => {
                    let u = given.unwrap_or_else(drawn);
                    l * (1.0 - epsilon + 2.0 * epsilon * u)
                }
            };
            *logit = noisy.clamp(f32::MIN, f32::MAX);
        }
        Ok(())
    }
}

impl<R: Router> Router for Perturbed<R> {
    /// Lets the inner router decide on the noisy logits.
    ///
    /// # Errors
    ///
    /// If given noise, or the noise logits that [`learned`](Self::learned) needs, are not `[T, E]`; what the inner router
    /// reports.
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        let context = without_noise(&input.context);
        changed::route(&self.inner, input, context, out, |logits| self.add_noise(&input.context, logits))
    }

    fn locality(&self) -> Locality {
        self.inner.locality()
    }

    /// Adds the noise, then whatever the inner router adds to that.
    fn perturb(&self, context: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.add_noise(context, logits.view_mut())?;
        self.inner.perturb(&without_noise(context), logits)
    }

    /// The inner router's scores of the noisy logits, as V-MoE prioritises; of the plain ones where the noise cannot be used.
    fn scores(&self, context: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) {
        let inner = match self.add_noise(context, logits.view_mut()) {
            Ok(()) => without_noise(context),
            Err(_) => *context,
        };
        self.inner.scores(&inner, logits);
    }
}

fn check(setting: &'static str, value: f32, most: f32) -> Result<()> {
    if (0.0..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Router { setting, expected: format!("a number from 0 to {most}"), found: value.to_string() })
}

#[cfg(test)]
mod tests {
    use moe_core::TokenRows;
    use ndarray::array;

    use super::*;
    use crate::Relu;

    /// The noisy logits, as ReLU routing passes them on.
    fn noisy(router: Perturbed<Relu>, context: TokenContext<'_>) -> Result<Vec<f32>> {
        let logits = array![[10.0, 20.0], [30.0, 40.0]];
        let mut out = Assignments::new();
        out.reset(2, 2)?;
        router.route(&RouteInput::new(logits.view(), context)?, &mut out)?;
        let mut weights = vec![0.0; 4];
        for p in out.granted() {
            weights[(p.token * 2 + p.expert) as usize] = p.weight;
        }
        Ok(weights)
    }

    #[test]
    fn given_noise() {
        let z = [1.0, -1.0, 0.5, 0.0];
        let context = TokenContext::new().with_noise(TokenRows::new(&z, 2).unwrap());
        let gaussian = Perturbed::gaussian(Relu::new(), 2.0).unwrap();
        assert_eq!(noisy(gaussian, context).unwrap(), [12.0, 18.0, 31.0, 40.0]);
        let jitter = Perturbed::jitter(Relu::new(), 0.5).unwrap();
        let u = [0.0, 1.0, 0.5, 0.25];
        let given = TokenContext::new().with_noise(TokenRows::new(&u, 2).unwrap());
        assert_eq!(noisy(jitter, given).unwrap(), [5.0, 30.0, 30.0, 30.0]);
        let learned = Perturbed::learned(Relu::new());
        assert!(noisy(learned, context).unwrap_err().to_string().contains("noise logits: expected 2"));
        let scale = [100.0, 8.0, -200.0, 3.0];
        let with_scale = context.with_noise_logits(TokenRows::new(&scale, 2).unwrap());
        let found = noisy(learned, with_scale).unwrap();
        assert_eq!((found[0], found[2], found[3]), (110.0, 30.0, 40.0));
        assert!((found[1] - (20.0 - 8.000_336)).abs() < 1e-5, "{found:?}");
        let one = TokenContext::new().with_noise(TokenRows::new(&z[..2], 1).unwrap());
        assert!(
            noisy(gaussian, one)
                .unwrap_err()
                .to_string()
                .contains("noise: expected 2 numbers a token, found 1")
        );
    }

    #[test]
    fn drawn_noise_depends_on_seed_layer_sequence_and_position() {
        let router = Perturbed::gaussian(Relu::new(), 1.0).unwrap();
        let base = TokenContext::new().with_seed(1);
        let first = noisy(router, base).unwrap();
        assert_eq!(noisy(router, base).unwrap(), first);
        assert_ne!(noisy(router, base.with_seed(2)).unwrap()[0], first[0]);
        assert_ne!(noisy(router, base.at_layer(1)).unwrap()[0], first[0]);
        assert_ne!(noisy(router, base.with_sequence_ids(&[1])).unwrap()[0], first[0]);
        assert_ne!(noisy(router, base.with_positions(&[1, 0])).unwrap()[0], first[0]);
        for wrong in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(Perturbed::gaussian(Relu::new(), wrong).is_err());
            assert!(Perturbed::jitter(Relu::new(), wrong).is_err());
        }
    }
}
