//! What came of a routing: a table to read, or JSON.

use std::fmt::Write as _;

use moe_core::{Locality, PlanStats, RoutingPlan, memory};
use moe_router::RouterSpec;
use serde::Serialize;

use super::losses::{Basis, Losses};
use crate::failure::Result;
use crate::output;

#[derive(Serialize)]
pub(super) struct Report {
    router: RouterSpec,
    tokens: usize,
    padding: usize,
    sequences: usize,
    experts: usize,
    locality: &'static str,
    pub(super) stats: Stats,
    assignments: Vec<Assigned>,
    refused: Vec<Refused>,
    pub(super) losses: Losses,
}

/// [`PlanStats`] under its own names.
#[derive(Serialize)]
pub(super) struct Stats {
    rows: usize,
    pub(super) load: Vec<usize>,
    requested_load: Vec<usize>,
    importance: Vec<f32>,
    pub(super) max_over_mean: f32,
    pub(super) cv: f32,
    pub(super) entropy: f32,
    pub(super) idle: usize,
    pub(super) drop_rate: f32,
    rerouted: usize,
}

#[derive(Serialize)]
struct Assigned {
    token: usize,
    expert: usize,
    weight: f32,
}

#[derive(Serialize)]
struct Refused {
    token: u32,
    expert: u32,
}

impl Report {
    pub(super) fn new(
        spec: &RouterSpec,
        locality: Locality,
        plan: &RoutingPlan,
        basis: &Basis<'_>,
    ) -> Result<Self> {
        let routed = &basis.routed;
        let (mut refusals, mut refused, mut assignments) = (Vec::new(), Vec::new(), Vec::new());
        let count = plan.refused().len();
        memory::refill_from(&mut refusals, count, plan.refused().iter().copied(), "refusals")?;
        refusals.sort_unstable_by_key(|refusal| (refusal.token, refusal.rank));
        let each = refusals.iter().map(|r| Refused { token: r.token, expert: r.expert });
        memory::refill_from(&mut refused, count, each, "refusals")?;
        let each = (0..plan.tokens()).flat_map(|token| {
            let assigned = move |expert, weight| Assigned { token, expert, weight };
            plan.choices(token).map(move |choice| assigned(choice.expert, choice.weight))
        });
        memory::refill_from(&mut assignments, plan.rows(), each, "assignments")?;
        Ok(Self {
            router: spec.clone(),
            tokens: plan.tokens(),
            padding: routed.context.padding.unwrap_or(&[]).iter().filter(|&&padding| padding).count(),
            sequences: routed.context.sequences(),
            experts: plan.experts(),
            locality: match locality {
                Locality::Token => "token",
                Locality::Causal => "causal",
                Locality::Batch => "batch",
            },
            stats: Stats::of(plan),
            assignments,
            refused,
            losses: Losses::of(basis),
        })
    }

    pub(super) fn json(&self) -> Result<String> {
        output::json(self, false)
    }

    pub(super) fn table(&self) -> String {
        let Self { stats, losses, .. } = self;
        let locality = match self.locality {
            "token" => "token: a token's experts depend on it alone",
            "causal" => "causal: a token's experts depend on it and earlier ones of its sequence",
            _ => "batch: a token's experts depend on the others, later ones included",
        };
        // Writing to a string cannot fail.
        let mut text = String::new();
        let _ = writeln!(text, "router     {}", self.router);
        let _ = writeln!(text, "locality   {locality}");
        let _ = writeln!(
            text,
            "tokens     {}, of which padding {}; sequences {}",
            self.tokens, self.padding, self.sequences
        );
        let _ = writeln!(text, "experts    {}, of which idle {}\n", self.experts, stats.idle);
        let _ = writeln!(text, "expert      load  requested  weight received");
        for e in 0..self.experts {
            let (load, requested, importance) = (stats.load[e], stats.requested_load[e], stats.importance[e]);
            let _ = writeln!(text, "{e:>6}  {load:>8}  {requested:>9}  {importance:>15.4}");
        }
        let requested = stats.rows + self.refused.len();
        let rate = 100.0 * stats.drop_rate;
        let _ = writeln!(text, "{:>6}  {:>8}  {requested:>9}\n", "all", stats.rows);
        let _ = writeln!(text, "max/mean   {:.4}", stats.max_over_mean);
        let _ = writeln!(text, "CV         {:.4}", stats.cv);
        let _ = writeln!(text, "entropy    {:.4} of 1", stats.entropy);
        let _ = writeln!(text, "dropped    {} of {requested} ({rate:.2}%)", self.refused.len());
        let _ = writeln!(text, "rerouted   {}\n", stats.rerouted);
        for (name, value) in losses.named() {
            let _ = match value {
                Some(value) => writeln!(text, "{name:<26}  {:.6}", value.0),
                None => writeln!(text, "{name:<26}  not defined"),
            };
        }
        text
    }
}

impl Stats {
    fn of(plan: &RoutingPlan) -> Self {
        let PlanStats {
            load,
            requested_load,
            importance,
            drop_rate,
            rerouted,
            entropy,
            cv,
            max_over_mean,
            idle,
            ..
        } = plan.stats();
        let rows = plan.rows();
        Self { rows, load, requested_load, importance, max_over_mean, cv, entropy, idle, drop_rate, rerouted }
    }
}
