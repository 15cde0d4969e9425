//! A perplexity, and a comparison with a file, as text and as JSON.

use std::fmt::Write as _;

use mixtral_model::lab::{Divergence, Estimate, Percentiles};
use mixtral_model::{Perplexity, PerplexityOptions};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Result;

#[derive(Serialize)]
pub(super) struct Report {
    tokens: usize,
    window: usize,
    stride: usize,
    predicted_tokens: usize,
    nll_sum: f64,
    perplexity: f64,
    perplexity_low: Option<f64>,
    perplexity_high: Option<f64>,
    #[serde(skip)]
    mean: f64,
    against: Option<Against>,
}

#[derive(Serialize)]
struct Against {
    perplexity: f64,
    ln_ratio: f64,
    ln_ratio_error: f64,
    correlation: f64,
    kl: f64,
    kl_error: f64,
    kl_percentiles: Map<String, Value>,
    same_top: f64,
    same_top_error: f64,
    p_difference: f64,
    p_difference_error: f64,
    p_difference_rms: f64,
    p_difference_rms_error: f64,
    p_difference_percentiles: Map<String, Value>,
}

/// Percent of the values that lie below.
const PERCENTS: [(&str, f64); 11] = [
    ("0", 0.0),
    ("0.1", 0.001),
    ("1", 0.01),
    ("5", 0.05),
    ("10", 0.1),
    ("50", 0.5),
    ("90", 0.9),
    ("95", 0.95),
    ("99", 0.99),
    ("99.9", 0.999),
    ("100", 1.0),
];

impl Report {
    pub(super) fn new(
        tokens: usize,
        options: &PerplexityOptions,
        found: &Perplexity,
        divergence: Option<Divergence>,
    ) -> Self {
        let interval = found.interval();
        Self {
            tokens,
            window: options.window,
            stride: options.stride,
            predicted_tokens: found.predicted,
            nll_sum: found.nll_sum,
            perplexity: found.perplexity(),
            perplexity_low: interval.as_ref().map(|interval| *interval.start()),
            perplexity_high: interval.as_ref().map(|interval| *interval.end()),
            mean: found.mean(),
            against: divergence.map(Against::new),
        }
    }

    pub(super) fn predicted(&self) -> usize {
        self.predicted_tokens
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self).map_err(std::io::Error::other)? + "\n")
    }

    pub(super) fn line(&self) -> String {
        let Self { tokens, window, stride, predicted_tokens, perplexity, mean, .. } = self;
        let overlap = if stride == window { String::new() } else { format!(", {stride} apart") };
        let interval = match self.perplexity_low.zip(self.perplexity_high) {
            Some((low, high)) => format!(" (95 %: {low:.4} to {high:.4})"),
            None => String::new(),
        };
        format!(
            "perplexity {perplexity:.4}{interval}, {mean:.4} nats a token, of {predicted_tokens} of {tokens} tokens in \
             windows of {window}{overlap}"
        )
    }

    pub(super) fn text(&self) -> String {
        let mut text = self.line() + "\n";
        if let Some(against) = &self.against {
            against.write(self.perplexity, &mut text);
        }
        text
    }
}

impl Against {
    fn new(divergence: Divergence) -> Self {
        let (kl, p, rms) = (divergence.kl(), divergence.p_difference(), divergence.p_difference_rms());
        let (same, difference) = (divergence.same_top(), divergence.nll_difference());
        let (perplexity, correlation) = (divergence.baseline_nll().mean.exp(), divergence.correlation());
        let (of_kl, of_p) = divergence.sorted();
        let percentiles = |values: &Percentiles| {
            PERCENTS.iter().map(|(name, part)| ((*name).to_owned(), values.at(*part).into())).collect()
        };
        Self {
            perplexity,
            ln_ratio: difference.mean,
            ln_ratio_error: difference.error,
            correlation,
            kl: kl.mean,
            kl_error: kl.error,
            kl_percentiles: percentiles(&of_kl),
            same_top: same.mean,
            same_top_error: same.error,
            p_difference: p.mean,
            p_difference_error: p.error,
            p_difference_rms: rms.mean,
            p_difference_rms_error: rms.error,
            p_difference_percentiles: percentiles(&of_p),
        }
    }

    fn write(&self, own: f64, text: &mut String) {
        let ratio = Estimate { mean: self.ln_ratio, error: self.ln_ratio_error };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "perplexity of the file  {:>12.6}", self.perplexity);
        let _ = writeln!(text, "ratio                   {:>12.6}", own / self.perplexity);
        let _ = writeln!(text, "ln of the ratio         {}", estimate(ratio, 1.0));
        let _ = writeln!(text, "correlation             {:>11.2} %", 100.0 * self.correlation);
        let _ = writeln!(
            text,
            "KL divergence, nats     {}",
            estimate(Estimate { mean: self.kl, error: self.kl_error }, 1.0)
        );
        percentiles(text, &self.kl_percentiles, 1.0);
        let same = Estimate { mean: self.same_top, error: self.same_top_error };
        let _ = writeln!(text, "same top token, %       {}", estimate(same, 100.0));
        let p = Estimate { mean: self.p_difference, error: self.p_difference_error };
        let _ = writeln!(text, "difference of p, %      {}", estimate(p, 100.0));
        percentiles(text, &self.p_difference_percentiles, 100.0);
        let rms = Estimate { mean: self.p_difference_rms, error: self.p_difference_rms_error };
        let _ = writeln!(text, "its root mean square, % {}", estimate(rms, 100.0));
    }
}

fn estimate(of: Estimate, unit: f64) -> String {
    format!("{:>12.6} +- {:.6}", unit * of.mean, unit * of.error)
}

fn percentiles(text: &mut String, values: &Map<String, Value>, unit: f64) {
    for (percent, value) in values {
        let name = match percent.as_str() {
            "0" => "least".to_owned(),
            "50" => "median".to_owned(),
            "100" => "greatest".to_owned(),
            other => format!("{other} %"),
        };
        let _ = writeln!(text, "{name:>23} {:>12.6}", unit * value.as_f64().unwrap_or(f64::NAN));
    }
}
