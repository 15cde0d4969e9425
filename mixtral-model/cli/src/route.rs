//! `mixtral route`.

mod given;
mod list;
mod report;

use moe_core::{Assignments, Routed, Router, RoutingPlan};

use crate::args::Route;
use crate::failure::Result;
use crate::output::Output;
use given::Given;
use report::Report;

pub(crate) fn run(args: &Route) -> Result<()> {
    let (Some(path), Some(spec)) = (&args.logits, &args.router) else {
        return Ok(Output::new().text(&list::text(args.json)?)?);
    };
    let given = Given::read(path, &args.tensor)?;
    let mut spec = spec.clone();
    if let Some(bias) = given.bias() {
        spec = spec.with_bias(bias)?;
    }
    let router = spec.build()?;

    let input = given.input(args.seed, args.layer)?;
    let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
    assignments.reset(input.tokens(), input.experts())?;
    router.route(&input, &mut assignments).map_err(|error| given.blame(error))?;
    plan.seal(&assignments).map_err(|error| given.blame(error))?;

    let report = Report::new(&spec, router.locality(), &Routed::new(input.logits, &plan, input.context)?);
    let text = if args.json { report.json()? } else { report.table() };
    Ok(Output::new().text(&text)?)
}
