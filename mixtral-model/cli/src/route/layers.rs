//! What came of the routing of several layers.

use std::fmt::Write as _;

use moe_router::RouterSpec;
use serde::Serialize;

use super::losses::Number;
use super::report::Report;
use crate::failure::Result;
use crate::output;

#[derive(Serialize)]
pub(super) struct Layers {
    router: RouterSpec,
    layers: Vec<Layer>,
    losses: OverAll,
}

#[derive(Serialize)]
struct Layer {
    tensor: String,
    #[serde(flatten)]
    report: Report,
}

/// Losses that are of all layers together.
#[derive(Serialize)]
struct OverAll {
    load_balance: Number,
}

impl Layers {
    /// `load_balance` is that over all layers.
    pub(super) fn new(spec: &RouterSpec, reports: Vec<(String, Report)>, load_balance: Number) -> Self {
        let layers = reports.into_iter().map(|(tensor, report)| Layer { tensor, report }).collect();
        Self { router: spec.clone(), layers, losses: OverAll { load_balance } }
    }

    pub(super) fn json(&self) -> Result<String> {
        output::json(self, false)
    }

    pub(super) fn table(&self) -> String {
        let widest = self.layers.iter().map(|layer| layer.tensor.chars().count()).max();
        let width = widest.unwrap_or(0).max("all layers".len());
        // Writing to a string cannot fail.
        let mut text = String::new();
        let _ = writeln!(text, "router     {}\n", self.router);
        let _ = writeln!(
            text,
            "{:width$}  max/mean      CV  entropy  idle  dropped  load_balance  load",
            "layer"
        );
        for Layer { tensor, report } in &self.layers {
            let stats = &report.stats;
            let load: Vec<String> = stats.load.iter().map(usize::to_string).collect();
            let _ = writeln!(
                text,
                "{tensor:width$}  {:>8.4}  {:>6.4}  {:>7.4}  {:>4}  {:>6.2}%  {:>12.6}  {}",
                stats.max_over_mean,
                stats.cv,
                stats.entropy,
                stats.idle,
                100.0 * stats.drop_rate,
                report.losses.load_balance().0,
                load.join(" ")
            );
        }
        // Under its heading.
        let blank = "  max/mean      CV  entropy  idle  dropped  ".len();
        let _ = writeln!(text, "{:width$}{:blank$}{:>12.6}", "all layers", "", self.losses.load_balance.0);
        text
    }
}
