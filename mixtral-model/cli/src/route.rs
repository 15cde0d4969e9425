//! `mixtral route`.

mod given;
mod list;
mod report;

use moe_core::{Assignments, RouteInput, Routed, Router, RoutingPlan, TokenContext, TokenRows};

use crate::args::Route;
use crate::failure::{Failure, Result};
use crate::output::Output;
use given::Given;
use report::Report;

pub(crate) fn run(args: &Route) -> Result<()> {
    let (Some(path), Some(spec)) = (&args.logits, &args.router) else {
        return Ok(Output::new().text(&list::text(args.json)?)?);
    };
    let given = Given::read(path, &args.tensor)?;
    let mut spec = spec.clone();
    if let Some(bias) = &given.bias {
        spec = spec.with_bias(bias)?;
    }
    let router = spec.build()?;

    let mut context = TokenContext::new().with_sequences(&given.offsets).with_seed(args.seed);
    // Each its own number, or all would draw alike.
    let sequences: Vec<u64> = (0..context.sequences() as u64).collect();
    context = context.with_sequence_ids(&sequences);
    context.token_ids = given.token_ids.as_deref();
    context.padding = given.padding.as_deref();
    if let Some(noise) = &given.noise_logits {
        let name = path.display();
        let rows =
            noise.as_slice().ok_or_else(|| Failure::not_as_expected(name, "noise_logits: expected rows"))?;
        context = context.with_noise_logits(TokenRows::new(rows, noise.ncols())?);
    }
    let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
    assignments.reset(given.logits.nrows(), given.logits.ncols())?;
    router.route(&RouteInput::new(given.logits.view(), context)?, &mut assignments)?;
    plan.seal(&assignments)?;

    let report = Report::new(&spec, router.locality(), &Routed::new(given.logits.view(), &plan, context)?);
    let text = if args.json { report.json()? } else { report.table() };
    Ok(Output::new().text(&text)?)
}
