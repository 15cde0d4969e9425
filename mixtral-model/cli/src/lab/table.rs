//! A comparison as a table, JSON or comma-separated values.

use std::fmt::Write as _;

use mixtral_model::PerplexityOptions;
use mixtral_model::lab::{BlockMean, Comparison, Routing};
use moe_core::Locality;
use serde::Serialize;

use crate::failure::Result;

/// Heads of the columns that people read.
const HEADS: [&str; 15] = [
    "router",
    "perplexity",
    "+-",
    "nats",
    "+-",
    "KL",
    "same top",
    "dropped",
    "experts",
    "CV",
    "max",
    "distinct",
    "MB",
    TIME,
    "causal",
];

/// The head of the column that is another on every machine.
pub(super) const TIME: &str = "tokens/s";

#[derive(Serialize)]
pub(super) struct Table {
    tokens: usize,
    window: usize,
    stride: usize,
    chunk: usize,
    pub(super) windows: usize,
    pub(super) windows_read: usize,
    predicted_tokens: usize,
    interrupted: bool,
    routers: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// None is the model's own.
    router: Option<String>,
    locality: &'static str,
    note: Option<&'static str>,
    perplexity: f64,
    perplexity_low: Option<f64>,
    perplexity_high: Option<f64>,
    nll: f64,
    nll_difference: f64,
    nll_difference_half_width: Option<f64>,
    kl: f64,
    same_top: f64,
    drop_rate: f64,
    experts_per_token: f64,
    load_cv: f64,
    load_max_over_mean: f64,
    distinct_experts_per_pass: f64,
    expert_bytes_per_pass: f64,
    tokens_per_second: f64,
}

impl Table {
    pub(super) fn new(found: &Comparison<'_>, tokens: usize, options: &PerplexityOptions) -> Self {
        let mut windows = options.windows(tokens);
        let read = windows.by_ref().take(found.windows).map(|window| window.scored.len()).sum();
        Self {
            tokens,
            window: options.window,
            stride: options.stride,
            chunk: options.chunk,
            windows: found.windows + windows.count(),
            windows_read: found.windows,
            predicted_tokens: read,
            interrupted: found.stopped,
            routers: found.routings.iter().enumerate().map(|(n, routing)| Row::new(n, routing)).collect(),
        }
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self).map_err(std::io::Error::other)? + "\n")
    }

    pub(super) fn csv(&self) -> String {
        let mut text = Row::NAMES.join(",") + "\n";
        for row in &self.routers {
            text += &(row.fields().join(",") + "\n");
        }
        text
    }

    /// Heads and rows of cells; of the columns, that of time depends on the machine.
    pub(super) fn lines(&self) -> Vec<Vec<String>> {
        let mut lines = vec![HEADS.map(str::to_owned).to_vec()];
        lines.extend(self.routers.iter().map(Row::cells));
        lines
    }

    /// What was read.
    pub(super) fn read(&self) -> String {
        format!(
            "{} of {} tokens predicted in {} of {} windows of {}",
            self.predicted_tokens, self.tokens, self.windows_read, self.windows, self.window
        )
    }

    /// What is to be known of some rows.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        for said in [REPLAYED, CAUSAL, BATCH] {
            let rows = self.routers.iter().filter(|row| row.note == Some(said)).map(Row::name);
            let names: Vec<_> = rows.collect();
            if !names.is_empty() {
                notes.push(format!("{}: {said}", names.join(", ")));
            }
        }
        if self.interrupted {
            notes.push("interrupted: of the windows above only".to_owned());
        }
        notes
    }

    pub(super) fn text(&self) -> String {
        let lines = self.lines();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..HEADS.len()).map(width).collect();
        let mut text = self.read() + "\n";
        for line in &lines {
            let mut out = format!("{:<1$}", line[0], widths[0]);
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                // Writing to a string cannot fail.
                let _ = write!(out, "  {cell:>width$}");
            }
            text += out.trim_end();
            text.push('\n');
        }
        for note in self.notes() {
            text += &(note + "\n");
        }
        text
    }
}

impl Row {
    const NAMES: [&'static str; 18] = [
        "router",
        "locality",
        "note",
        "perplexity",
        "perplexity_low",
        "perplexity_high",
        "nll",
        "nll_difference",
        "nll_difference_half_width",
        "kl",
        "same_top",
        "drop_rate",
        "experts_per_token",
        "load_cv",
        "load_max_over_mean",
        "distinct_experts_per_pass",
        "expert_bytes_per_pass",
        "tokens_per_second",
    ];

    fn new(n: usize, routing: &Routing<'_>) -> Self {
        let Routing {
            name, locality, replays, nll, nll_difference, kl, same_top, cost, tokens, time, ..
        } = routing;
        let mean = nll.mean();
        let (locality, note) = verdict(*locality, *replays);
        let bound = |sign: f64| nll.half_width().map(|half| (mean + sign * half).exp());
        Self {
            router: (n > 0).then(|| name.clone()),
            locality,
            note,
            perplexity: mean.exp(),
            perplexity_low: bound(-1.0),
            perplexity_high: bound(1.0),
            nll: mean,
            nll_difference: nll_difference.mean(),
            nll_difference_half_width: nll_difference.half_width(),
            kl: kl.mean(),
            same_top: BlockMean::mean(same_top),
            drop_rate: cost.drop_rate(),
            experts_per_token: cost.experts_per_token(),
            load_cv: cost.load_cv(),
            load_max_over_mean: cost.load_max_over_mean(),
            distinct_experts_per_pass: cost.distinct_experts(),
            expert_bytes_per_pass: cost.bytes_per_pass(),
            tokens_per_second: *tokens as f64 / time.as_secs_f64(),
        }
    }

    fn name(&self) -> &str {
        self.router.as_deref().unwrap_or("the model's own")
    }

    /// Cells of the table.
    fn cells(&self) -> Vec<String> {
        let half = self.perplexity_high.zip(self.perplexity_low).map(|(high, low)| (high - low) / 2.0);
        let difference = |value: f64| match self.nll_difference_half_width {
            Some(half) if value != 0.0 && value.abs() <= half => format!("{value:+.4}~"),
            _ => format!("{value:+.4}"),
        };
        let or_dash =
            |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let per_second = self.tokens_per_second;
        let digits = if per_second < 10.0 { 2 } else { 0 };
        vec![
            self.name().to_owned(),
            format!("{:.3}", self.perplexity),
            or_dash(half, 3),
            difference(self.nll_difference),
            or_dash(self.nll_difference_half_width, 4),
            format!("{:.4}", self.kl),
            format!("{:.1}%", 100.0 * self.same_top),
            format!("{:.1}%", 100.0 * self.drop_rate),
            format!("{:.2}", self.experts_per_token),
            format!("{:.2}", self.load_cv),
            format!("{:.2}", self.load_max_over_mean),
            format!("{:.2}", self.distinct_experts_per_pass),
            format!("{:.1}", self.expert_bytes_per_pass / 1e6),
            format!("{per_second:.digits$}"),
            match self.locality {
                "token" if self.note.is_some() => "trace".to_owned(),
                "token" => "yes".to_owned(),
                "causal" => "call".to_owned(),
                _ => "no".to_owned(),
            },
        ]
    }

    /// Fields of comma-separated values.
    fn fields(&self) -> Vec<String> {
        let number = |value: f64| if value.is_finite() { value.to_string() } else { String::new() };
        let perhaps = |value: Option<f64>| value.map_or_else(String::new, number);
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        vec![
            quoted(self.router.as_deref().unwrap_or_default()),
            self.locality.to_owned(),
            quoted(self.note.unwrap_or_default()),
            number(self.perplexity),
            perhaps(self.perplexity_low),
            perhaps(self.perplexity_high),
            number(self.nll),
            number(self.nll_difference),
            perhaps(self.nll_difference_half_width),
            number(self.kl),
            number(self.same_top),
            number(self.drop_rate),
            number(self.experts_per_token),
            number(self.load_cv),
            number(self.load_max_over_mean),
            number(self.distinct_experts_per_pass),
            number(self.expert_bytes_per_pass),
            number(self.tokens_per_second),
        ]
    }
}

const REPLAYED: &str = "routed by a trace: the figure is as causal as the router that was recorded";
const CAUSAL: &str = "a token's experts depend on earlier tokens of the pass: the figure is that of windows read at once, not of text that is generated";
const BATCH: &str = "not causal: a token's experts depend on later tokens of the window too, the one that is predicted among them, so that the figure is no measure of what could be generated";

/// What a locality is called, and what it means for the figures.
fn verdict(locality: Locality, replays: bool) -> (&'static str, Option<&'static str>) {
    match locality {
        Locality::Token => ("token", replays.then_some(REPLAYED)),
        Locality::Causal => ("causal", Some(CAUSAL)),
        Locality::Batch => ("batch", Some(BATCH)),
    }
}
