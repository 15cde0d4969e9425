//! `mixtral inspect`.

use std::num::NonZeroUsize;

use mixtral_model::inspect::About;
use mixtral_model::{Access, Config, Forecast, MemoryPlan, Report, Source};
use serde::Serialize;

use crate::args::{Bytes, Inspect};
use crate::failure::Result;
use crate::load::{self, Passes};
use crate::output::{Output, json};

pub(crate) fn run(args: &Inspect) -> Result<()> {
    let source = load::source(args.source.as_deref().or(args.model.model.as_deref()))?;
    let config = source.config()?;
    let checkpoint = source.checkpoint(args.access.access())?;
    let mut report = Report::new(&config, &checkpoint)?
        .with_cache(args.cache.kv_type.into(), args.cache.context.map(NonZeroUsize::get));
    report.about = Some(About::of(&source)?);
    let budget = args.budget.memory.map(|bytes| forecast(args, &source, &config, bytes)).transpose()?;
    let mut out = Output::new();
    if args.json {
        if args.check_values {
            checkpoint.check_values()?;
        }
        return Ok(out.text(&json(&WithForecast { report: &report, budget }, true)?)?);
    }
    out.text(&report.to_string())?;
    if let Some(budget) = budget {
        out.text(&budget.to_string())?;
    }
    if args.check_values {
        checkpoint.check_values()?;
        out.text("values      all finite\n")?;
    }
    Ok(())
}

/// What is known of a model, with what a budget would mean.
#[derive(Serialize)]
struct WithForecast<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<Forecast>,
}

/// What so much memory would mean for generating a text.
fn forecast(args: &Inspect, source: &Source, config: &Config, Bytes(bytes): Bytes) -> Result<Forecast> {
    let checkpoint = source.checkpoint(Access::Uncached)?;
    let uses = args.cache.uses(Passes::TEXT);
    let plan = MemoryPlan::unchecked(config, &checkpoint, &uses, bytes)?;
    let plan = args.budget.wishes(plan, config)?;
    let forecast = Forecast::new(config, &checkpoint, &uses, plan)?;
    Ok(match &args.trace {
        Some(trace) => forecast.with_trace(config, &checkpoint, trace)?,
        None => forecast,
    })
}
