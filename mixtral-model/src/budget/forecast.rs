//! What running within a budget of memory will cost.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::disk;
use super::foretell::Foretold;
use super::place::places;
use super::plan::{MemoryPlan, MemoryUse};
use super::store::cache;
use crate::inspect::Bytes;
use crate::manifest::Manifest;
use crate::{Checkpoint, Config, Error, Result};

/// Shares of experts that may be in memory when a token wants them.
const HIT_RATES: [f64; 5] = [0.0, 0.5, 0.8, 0.9, 0.95];

/// Types that weights might have instead, with about their bits a weight.
const SMALLER: [(&str, f64); 5] =
    [("q8_0", 8.5), ("q6_k", 6.57), ("q4_k_m", 4.87), ("q3_k_m", 3.92), ("q2_k", 3.0)];

/// What running within a budget of memory will cost: a plan, and what it means on the disk at hand.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Forecast {
    /// What takes how much.
    #[serde(flatten)]
    pub plan: MemoryPlan,
    /// Whether the budget holds the least.
    pub works: bool,
    /// Experts that the cache holds, of the mean size.
    pub resident_experts: u64,
    /// Experts of all layers.
    pub experts_of_model: u64,
    /// Bytes a second that experts were read with; none for weights that are no file.
    pub disk_bytes_per_second: Option<f64>,
    /// Whether files were read past the page cache; none for weights that are no file.
    pub direct: Option<bool>,
    /// What a token reads, and how many of them the disk allows a second, at stated shares of experts in memory.
    pub tokens: Vec<AtHitRate>,
    /// What would do with a budget that is too small, in words.
    pub instead: Vec<String>,
    /// What a route trace would come to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Foretold>,
}

/// One token at a time, of whose experts so many are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AtHitRate {
    /// The share of them.
    pub hit_rate: f64,
    /// Bytes read.
    pub bytes_read: f64,
    /// Tokens a second, if the processor took no time.
    pub most_tokens_per_second: Option<f64>,
}

impl Forecast {
    /// Foretells what a budget means. Reads up to a gigabyte of experts to see how fast the disk is.
    ///
    /// # Errors
    ///
    /// Those of [`MemoryPlan::unchecked`]; [`Error::Io`].
    pub fn new(config: &Config, checkpoint: &Checkpoint, uses: &MemoryUse, plan: MemoryPlan) -> Result<Self> {
        let places = places(checkpoint, config)?;
        let measured = plan.disk_reads.choose(&places).and_then(|direct| Ok((direct, disk::speed(&places)?)));
        let failed = |source| Error::Io { path: checkpoint.root().to_path_buf(), source };
        let (direct, disk) = measured.map_err(failed)?;
        let works = plan.budget >= plan.least;
        let experts_of_model = (0..config.layers).map(|n| config.experts.of(n) as u64).sum::<u64>();
        let share = plan.experts as f64 / plan.all_experts.max(1) as f64;
        let resident = if works { (share * experts_of_model as f64).floor() as u64 } else { 0 };
        let at = |hit_rate| {
            let bytes_read = plan.experts_of_token as f64 * (1.0 - hit_rate);
            let most = disk.filter(|_| bytes_read > 0.0).map(|speed| speed / bytes_read);
            AtHitRate { hit_rate, bytes_read, most_tokens_per_second: most }
        };
        let instead = if works { Vec::new() } else { instead(config, checkpoint, uses, &plan)? };
        Ok(Self {
            works,
            resident_experts: resident,
            experts_of_model,
            disk_bytes_per_second: disk,
            direct,
            tokens: HIT_RATES.map(at).to_vec(),
            instead,
            trace: None,
            plan,
        })
    }

    /// The same, with what tokens that are routed as a route trace says would come to: every hit and every byte of weights, exactly.
    /// With a budget that does not work there is nothing to foretell.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Trace`]; [`Error::Setting`] for a trace of a model with other experts.
    pub fn with_trace(mut self, config: &Config, checkpoint: &Checkpoint, path: &Path) -> Result<Self> {
        if self.works {
            let places = places(checkpoint, config)?;
            let mut found = Foretold::of(cache(&places, config, &self.plan)?, &places, path)?;
            found.disk_seconds = self.disk_bytes_per_second.map(|speed| found.bytes_read as f64 / speed);
            self.trace = Some(found);
        }
        Ok(self)
    }
}

/// What fits a budget that is too small.
fn instead(
    config: &Config,
    checkpoint: &Checkpoint,
    uses: &MemoryUse,
    plan: &MemoryPlan,
) -> Result<Vec<String>> {
    // Rounded up, so that it does.
    let mut found = vec![format!("--memory {}MiB", plan.least.div_ceil(1 << 20))];
    let context = uses.context.unwrap_or(config.max_positions).min(config.max_positions);
    let shorter = std::iter::successors(Some(context / 2), |context| Some(context / 2));
    for context in shorter.take_while(|context| *context >= 64) {
        let uses = MemoryUse { context: Some(context), ..*uses };
        if MemoryPlan::unchecked(config, checkpoint, &uses, plan.budget)?.least <= plan.budget {
            found.push(format!("--context {context}"));
            break;
        }
    }
    let weights = (plan.weights + plan.all_experts) as f64;
    let bits = 8.0 * weights / Manifest::new(config).parameters() as f64;
    let smaller = |of: f64| {
        let scaled = (plan.weights as f64 + (plan.least - plan.fixed()) as f64) * of / bits;
        (plan.fixed() - plan.weights).saturating_add(scaled as u64)
    };
    let fitting = SMALLER.iter().find(|(_, of)| *of < 0.9 * bits && smaller(*of) <= plan.budget);
    if let Some((name, of)) = fitting {
        found.push(format!("weights as {name}, which need about {}", Bytes(smaller(*of))));
    }
    Ok(found)
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryPlan {
            budget, program, weights, kv_cache, workspace, streamed, experts, all_experts, ..
        } = self.plan;
        writeln!(f, "budget      {}", Bytes(budget))?;
        for (name, bytes) in [
            ("program", program),
            ("weights other than experts", weights),
            ("keys and values", kv_cache),
            ("buffers of a pass", workspace),
            ("two experts that pass through", streamed),
        ] {
            writeln!(f, "  {name:<30} {:>10}", Bytes(bytes))?;
        }
        if !self.works {
            writeln!(f, "  too small: {} would do", Bytes(self.plan.least))?;
            return self.instead.iter().try_for_each(|text| writeln!(f, "  instead: {text}"));
        }
        writeln!(
            f,
            "  {:<30} {:>10} of {}: {} of {}",
            "experts that stay",
            Bytes(experts),
            Bytes(all_experts),
            self.resident_experts,
            self.experts_of_model
        )?;
        match self.disk_bytes_per_second {
            Some(speed) => {
                let way = if self.direct == Some(true) { "past" } else { "through" };
                writeln!(f, "disk        {}/s, reading experts {way} the page cache", Bytes(speed as u64))?;
            }
            None => writeln!(f, "disk        none: the weights are in memory")?,
        }
        for AtHitRate { hit_rate, bytes_read, most_tokens_per_second } in &self.tokens {
            write!(
                f,
                "  {:>3.0} % of experts in memory: a token reads {:>8}",
                100.0 * hit_rate,
                Bytes(*bytes_read as u64)
            )?;
            match most_tokens_per_second {
                Some(most) => writeln!(f, ", at most {most:.3} tokens/s")?,
                None => writeln!(f)?,
            }
        }
        if let Some(Foretold { passes, tokens, requests, hits, bytes_read, disk_seconds }) = self.trace {
            let share = 100.0 * hits as f64 / requests.max(1) as f64;
            write!(f, "trace       {tokens} tokens in {passes} passes: experts in memory for {share:.1} % ")?;
            write!(f, "of {requests} requests, {} read", Bytes(bytes_read))?;
            match disk_seconds {
                Some(seconds) => writeln!(f, ", {seconds:.2} s of the disk")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
