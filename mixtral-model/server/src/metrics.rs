//! What the server counts, in the text format of Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that others read.
#[derive(Debug, Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub(crate) fn sub(&self, less: u64) {
        self.0.fetch_sub(less, Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of a histogram's buckets.
const BOUNDS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// How values spread, seconds here.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [Number; BOUNDS.len()],
    count: Number,
    /// In millionths.
    sum: Number,
}

impl Histogram {
    pub(crate) fn observe(&self, value: f64) {
        BOUNDS.iter().zip(&self.buckets).filter(|(bound, _)| value <= **bound).for_each(|(_, n)| n.add(1));
        self.count.add(1);
        self.sum.add((value * 1e6) as u64);
    }
}

/// All that is counted since the server began.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) requests: Number,
    pub(crate) cancelled: Number,
    pub(crate) waiting: Number,
    pub(crate) running: Number,
    pub(crate) prompt_tokens: Number,
    pub(crate) generated_tokens: Number,
    pub(crate) prefix_tokens: Number,
    pub(crate) prefix_bytes: Number,
    pub(crate) passes: Number,
    pub(crate) pass_steps: Number,
    pub(crate) pass_tokens: Number,
    pub(crate) experts: Number,
    pub(crate) first_token: Histogram,
}

impl Metrics {
    /// Counts a pass of so many steps and tokens, which used so many experts.
    pub(crate) fn pass(&self, steps: usize, tokens: usize, experts: u64) {
        self.passes.add(1);
        self.pass_steps.add(steps as u64);
        self.pass_tokens.add(tokens as u64);
        self.experts.add(experts);
    }

    /// All of it, and what was read of a cache of experts.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let counters = [
            ("requests_total", "counter", "Requests that were admitted.", &self.requests),
            ("cancelled_total", "counter", "Requests whose client went away.", &self.cancelled),
            ("requests_waiting", "gauge", "Requests in the queue.", &self.waiting),
            ("requests_running", "gauge", "Requests that are generated for.", &self.running),
            ("prompt_tokens_total", "counter", "Tokens of prompts that were read.", &self.prompt_tokens),
            ("generated_tokens_total", "counter", "Tokens that were drawn.", &self.generated_tokens),
            (
                "prefix_tokens_total",
                "counter",
                "Tokens of prompts found in the prefix cache.",
                &self.prefix_tokens,
            ),
            ("prefix_bytes", "gauge", "Bytes of the prefix cache.", &self.prefix_bytes),
            ("passes_total", "counter", "Passes through the model.", &self.passes),
            (
                "pass_steps_total",
                "counter",
                "Steps of passes; over passes, the mean batch.",
                &self.pass_steps,
            ),
            ("pass_tokens_total", "counter", "Tokens of passes.", &self.pass_tokens),
            ("experts_total", "counter", "Experts used, of each layer and pass.", &self.experts),
        ];
        for (name, kind, help, number) in counters {
            let value = number.get();
            let _ = writeln!(
                text,
                "# HELP mixtral_{name} {help}\n# TYPE mixtral_{name} {kind}\nmixtral_{name} {value}"
            );
        }
        let (name, first) = ("mixtral_first_token_seconds", &self.first_token);
        let _ =
            writeln!(text, "# HELP {name} Time from a request to its first token.\n# TYPE {name} histogram");
        for (bound, bucket) in BOUNDS.iter().zip(&first.buckets) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {}", bucket.get());
        }
        let (count, sum) = (first.count.get(), first.sum.get() as f64 / 1e6);
        let _ =
            writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
        text
    }
}
