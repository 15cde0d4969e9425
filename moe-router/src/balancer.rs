//! Balance by biases instead of a loss.

use moe_core::{Error, Result};

/// Loss-free balancing (Wang et al., [2408.15664], algorithm 1): a selection bias for each expert, moved after every batch.
///
/// ```text
/// bₑ ← bₑ + γ · sign(mean(load) - loadₑ)        sign(0) = 0
/// ```
///
/// An expert with more than its share of the choices gets a smaller bias, one with less a greater. The sign is that of the paper's
/// load violation error `mean - load`; the comparison is exact, in integers. DeepSeek-V3, [2412.19437], calls γ the bias update speed.
///
/// The load is that of a whole batch, all ranks together, and of the router's choices before any capacity
/// ([`PlanStats::requested_load`](moe_core::PlanStats)), which has no padding in it. Biases are used from the next batch on, so that no token's experts depend on
/// later tokens.
///
/// ```
/// use moe_router::{BiasBalancer, Score, ScoredTopK};
///
/// let mut router = ScoredTopK::new(2, Score::Sigmoid)?;
/// let mut balancer = BiasBalancer::new(4, 0.001)?;
/// balancer.update(&[9, 2, 5, 4])?;
/// assert_eq!(balancer.biases(), [-0.001, 0.001, 0.0, 0.001]);
/// router.set_bias(balancer.biases())?;
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// [2408.15664]: https://arxiv.org/abs/2408.15664
/// [2412.19437]: https://arxiv.org/abs/2412.19437
#[derive(Clone, Debug, PartialEq)]
pub struct BiasBalancer {
    biases: Vec<f32>,
    step: f32,
}

impl BiasBalancer {
    /// Biases of zero for `experts`, which move by `step` (γ; the paper uses 0.001).
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `step` is negative or not finite.
    pub fn new(experts: usize, step: f32) -> Result<Self> {
        Self::resume(vec![0.0; experts], step)
    }

    /// Goes on from the biases of a checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if `step` is negative, or it or a bias not finite.
    pub fn resume(biases: impl Into<Vec<f32>>, step: f32) -> Result<Self> {
        let biases = biases.into();
        let wrong = |setting, expected: &str, found: f32| {
            Err(Error::Router { setting, expected: expected.into(), found: found.to_string() })
        };
        if !(step.is_finite() && step >= 0.0) {
            return wrong("bias step", "a finite number, not negative", step);
        }
        match biases.iter().find(|b| !b.is_finite()) {
            Some(&bias) => wrong("selection bias", "finite numbers", bias),
            None => Ok(Self { biases, step }),
        }
    }

    /// Moves the biases by what a batch did: `load[e]` choices fell on expert e.
    ///
    /// # Errors
    ///
    /// [`Error::Length`] if there are more or fewer loads than experts; the biases then stay.
    pub fn update(&mut self, load: &[usize]) -> Result<()> {
        if load.len() != self.biases.len() {
            return Err(Error::Length {
                what: "expert load",
                expected: self.biases.len(),
                found: load.len(),
            });
        }
        // E · load against E · mean.
        let experts = load.len() as u128;
        let total: u128 = load.iter().map(|&n| n as u128).sum();
        for (bias, &load) in self.biases.iter_mut().zip(load) {
            match total.cmp(&(experts * load as u128)) {
                std::cmp::Ordering::Less => *bias -= self.step,
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Greater => *bias += self.step,
            }
        }
        Ok(())
    }

    /// The bias of each expert, `[E]`.
    pub fn biases(&self) -> &[f32] {
        &self.biases
    }

    /// How far a bias moves in a batch, γ.
    pub fn step(&self) -> f32 {
        self.step
    }
}
