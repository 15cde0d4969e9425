//! A routing as the reference data write it: for each token its choices, best first.

use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
use ndarray::ArrayView2;

/// One choice of a token; refused ones have no weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: usize,
    pub(crate) weight: Option<f32>,
}

/// Routes, seals, and lists each token's choices by rank.
pub(crate) fn choices(
    router: &dyn Router,
    logits: ArrayView2<'_, f32>,
    context: TokenContext<'_>,
) -> Vec<Vec<Choice>> {
    let mut out = Assignments::new();
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    router.route(&RouteInput::new(logits, context).unwrap(), &mut out).unwrap();
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    let granted = |t| plan.choices(t).map(|c| (c.rank, c.expert, Some(c.weight)));
    let refused = |t| {
        let of_token = plan.refused().iter().filter(move |r| r.token as usize == t);
        of_token.map(|r| (r.rank as usize, r.expert as usize, None))
    };
    let by_rank = |t| {
        let mut all: Vec<_> = granted(t).chain(refused(t)).collect();
        all.sort_by_key(|&(rank, ..)| rank);
        all.into_iter().map(|(_, expert, weight)| Choice { expert, weight }).collect()
    };
    (0..plan.tokens()).map(by_rank).collect()
}

/// Boundaries of groups of equal length.
pub(crate) fn equal_groups(groups: usize, length: usize) -> Vec<usize> {
    (0..=groups).map(|g| g * length).collect()
}
