//! What capacities would turn away of choices that were made without one.

use moe_core::{Assignments, Error, Locality, Result, RouteInput, Router, RoutingPlan, TokenContext};
use ndarray::aview0;

use crate::{Capacity, Capped};

/// What one capacity turns away.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Dropped {
    /// The capacity.
    pub capacity: Capacity,
    /// Choices in all, those of padding left out.
    pub requested: usize,
    /// Those that found no place.
    pub dropped: usize,
    /// Tokens that made choices and lost all of them.
    pub tokens_without: usize,
}

impl Dropped {
    /// The share of choices that found no place; 0 without choices.
    pub fn rate(&self) -> f64 {
        if self.requested == 0 { 0.0 } else { self.dropped as f64 / self.requested as f64 }
    }
}

/// How many of the recorded choices of a layer each capacity would drop, as [`Capped`] grants them: for each sequence of the context,
/// rank by rank, in order of position.
///
/// `choices` are pairs of token and expert, tokens in any order and a token's own from its best choice down. `tokens` and
/// `experts` say how many there are of either.
///
/// ```
/// use moe_core::TokenContext;
/// use moe_router::{Capacity, metrics::capacity_sweep};
///
/// // Three of four tokens choose expert 0. With a factor of 1 there are two places an expert.
/// let choices = [(0, 0), (1, 0), (2, 0), (3, 1)];
/// let factors = [1.0, 1.5].map(Capacity::factor_of_choices);
/// let dropped = capacity_sweep(&choices, 4, 2, TokenContext::new(), factors)?;
/// assert_eq!((dropped[0].dropped, dropped[1].dropped), (1, 0));
/// # Ok::<(), moe_core::Error>(())
/// ```
///
/// # Errors
///
/// If a capacity is [not valid](Capacity::check) or leaves no place, a token or an expert is out of range, a token chose an
/// expert twice, or the context does not fit the tokens; [`Error::OutOfMemory`].
pub fn capacity_sweep(
    choices: &[(u32, u32)],
    tokens: usize,
    experts: usize,
    context: TokenContext<'_>,
    capacities: impl IntoIterator<Item = Capacity>,
) -> Result<Vec<Dropped>> {
    // Nobody looks at the values of the logits, so one stands for all.
    let logits = aview0(&0.0);
    let found = tokens.saturating_mul(experts);
    let logits =
        logits.broadcast((tokens, experts)).ok_or(Error::TooLarge { what: "tokens times experts", found })?;
    let input = RouteInput::new(logits, context)?;
    let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
    let sweep = capacities.into_iter().map(|capacity| {
        out.reset(tokens, experts)?;
        Capped::new(Recorded(choices), capacity)?.route(&input, &mut out)?;
        plan.seal(&out)?;
        let lost_all = |t: &usize| plan.choices(*t).len() == 0 && plan.requested(*t).next().is_some();
        Ok(Dropped {
            capacity,
            requested: plan.rows() + plan.refused().len(),
            dropped: plan.refused().len(),
            tokens_without: (0..tokens).filter(lost_all).count(),
        })
    });
    sweep.collect()
}

/// Chooses what was chosen before.
struct Recorded<'a>(&'a [(u32, u32)]);

impl Router for Recorded<'_> {
    fn route(&self, _: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        self.0.iter().for_each(|&(token, expert)| out.assign(token as usize, expert as usize, 1.0));
        Ok(())
    }

    fn locality(&self) -> Locality {
        Locality::Batch
    }
}
