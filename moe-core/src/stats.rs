//! Statistics of a plan.

use crate::RoutingPlan;
use crate::numerics;

/// How a plan spreads its work. Counts are exact; ratios are f32. Padding is in none of them, for no router of it makes
/// [assignments](crate::Router::route).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PlanStats {
    /// Rows each expert works on, `[E]`.
    pub load: Vec<usize>,
    /// Requests for each expert, `[E]`: refused ones included, and those that another expert took.
    pub requested_load: Vec<usize>,
    /// Sum of the combination weights each expert received, `[E]`.
    pub importance: Vec<f32>,
    /// Share of the requested pairs that were refused; 0 where none was requested.
    pub drop_rate: f32,
    /// Rows whose token was sent to another expert than the router asked for.
    pub rerouted: usize,
    /// Entropy of the load over ln E, in 0..=1: 1 is an even spread. 0 where there is no load; 1 for a single expert.
    pub entropy: f32,
    /// Population standard deviation of the load over its mean; 0 is an even spread, and no load.
    pub cv: f32,
    /// Largest load over mean load; 1 is an even spread, 0 no load.
    pub max_over_mean: f32,
    /// Experts without a row.
    pub idle: usize,
}

impl PlanStats {
    pub(crate) fn of(plan: &RoutingPlan) -> Self {
        let experts = plan.experts();
        let load: Vec<usize> = (0..experts).map(|e| plan.expert_rows(e).len()).collect();
        let mut requested_load = vec![0; experts];
        for &e in plan.row_requested() {
            requested_load[e as usize] += 1;
        }
        for r in plan.refused() {
            requested_load[r.expert as usize] += 1;
        }
        let weights = |e| plan.row_weights()[plan.expert_rows(e)].iter();
        // The sum of nothing by `sum` is -0.0.
        let importance = (0..experts).map(|e| weights(e).fold(0.0, |sum, w| sum + w)).collect();
        let requested = plan.rows() + plan.refused().len();
        let mean = plan.rows() as f32 / experts.max(1) as f32;
        let share = |n: usize| n as f32 / plan.rows() as f32;
        let variance = load.iter().map(|&n| (n as f32 - mean).powi(2)).sum::<f32>() / experts.max(1) as f32;
        let nats: f32 = load.iter().filter(|&&n| n > 0).map(|&n| -share(n) * numerics::ln(share(n))).sum();
        let some = plan.rows() > 0;
        Self {
            drop_rate: if requested == 0 { 0.0 } else { plan.refused().len() as f32 / requested as f32 },
            rerouted: plan.row_requested().iter().zip(plan.row_experts()).filter(|(a, e)| a != e).count(),
            entropy: match (some, experts) {
                (false, _) => 0.0,
                (true, 1) => 1.0,
                (true, _) => nats / numerics::ln(experts as f32),
            },
            cv: if some { variance.sqrt() / mean } else { 0.0 },
            max_over_mean: if some { load.iter().copied().max().unwrap_or(0) as f32 / mean } else { 0.0 },
            idle: load.iter().filter(|&&n| n == 0).count(),
            load,
            requested_load,
            importance,
        }
    }
}
