//! `mixtral route`.

mod given;
mod layers;
mod list;
mod losses;
mod report;

use moe_core::{Assignments, RouteInput, Router, RoutingPlan, memory};
use moe_router::LogitForm;
use moe_router::losses::noisy;
use ndarray::Array2;

use crate::args::{GivenAs, Route};
use crate::failure::{Result, warn};
use crate::output::Output;
use given::Given;
use layers::Layers;
use losses::Basis;
use report::Report;

pub(crate) fn run(args: &Route) -> Result<()> {
    let (Some(path), Some(spec)) = (&args.logits, &args.router) else {
        return Ok(Output::new().text(&list::text(args.json)?)?);
    };
    let layers = Given::read(path, &args.tensor, args.given.into())?;
    require_memory(&layers)?;
    let mut spec = spec.clone();
    if let Some(bias) = layers.first().and_then(Given::bias) {
        spec = spec.with_bias(bias)?;
    }
    let router = spec.build()?;
    let counted = Some(spec.counted()).filter(|counted| *counted != spec);
    let counted = counted.map(|counted| counted.build()).transpose()?;
    let (mut inputs, mut routed, mut bases) = (vec![], vec![], vec![]);
    for (i, given) in layers.iter().enumerate() {
        let input = given.input(args.seed, args.layer.saturating_add(i))?;
        warn_of_probabilities(given, &input, args);
        let of_losses = counted.as_ref().map(|router| route(given, &input, &**router)).transpose()?;
        routed.push((route(given, &input, &*router)?, of_losses));
        inputs.push(input);
    }
    for (input, (granted, of_losses)) in inputs.iter().zip(&routed) {
        let (plan, noisy) = of_losses.as_ref().unwrap_or(granted);
        bases.push(Basis::new(input, plan, noisy.view(), &spec, args)?);
    }
    let report = |((given, basis), ((plan, _), _)): ((&Given, &Basis<'_>), &((RoutingPlan, _), _))| {
        Ok((given.tensor().to_owned(), Report::new(&spec, router.locality(), plan, basis)?))
    };
    let reports = layers.iter().zip(&bases).zip(&routed).map(report).collect::<Result<Vec<_>>>()?;
    let text = match &*reports {
        [(_, report)] => {
            if args.json {
                report.json()?
            } else {
                report.table()
            }
        }
        _ => {
            let layers = Layers::new(&spec, reports, losses::over_all(&bases)?);
            if args.json { layers.json()? } else { layers.table() }
        }
    };
    Ok(Output::new().text(&text)?)
}

/// Refuses what there is no memory to measure: lists of all experts are made where not to have it ends the process, so that as much
/// is asked for at once before, and given back. Those of tokens and of assignments are errors where they are made.
fn require_memory(layers: &[Given]) -> Result<()> {
    /// Bytes that go with an expert: its sums, probabilities and counts, and its line of a report.
    const EXPERT: usize = 384;
    let experts = layers.iter().map(|given| given.dim().1).fold(0, usize::saturating_add);
    let needed = experts.saturating_mul(EXPERT);
    Ok(memory::reserve(&mut Vec::<u8>::new(), needed, "measures of experts")?)
}

/// The plan of a layer and the logits that it was made of, `[T, E]`, noise included.
fn route(given: &Given, input: &RouteInput<'_>, router: &dyn Router) -> Result<(RoutingPlan, Array2<f32>)> {
    let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
    assignments.reset(input.tokens(), input.experts())?;
    router.route(input, &mut assignments).map_err(|error| given.blame(error))?;
    plan.seal(&assignments).map_err(|error| given.blame(error))?;
    let noisy = noisy(router, input).map_err(|error| given.blame(error))?;
    Ok((plan, noisy))
}

/// Says so where what was given as logits looks like something else.
fn warn_of_probabilities(given: &Given, input: &RouteInput<'_>, args: &Route) {
    if args.given == GivenAs::Logits && LogitForm::looks_like_probabilities(input) {
        warn(&given.says(
            "every row is from 0 to 1 and sums to 1, as probabilities do and logits hardly: \
             --given probabilities takes them for such",
        ));
    }
}

impl From<GivenAs> for LogitForm {
    fn from(given: GivenAs) -> Self {
        match given {
            GivenAs::Logits => Self::Logits,
            GivenAs::Probabilities => Self::Probabilities,
            GivenAs::Sigmoids => Self::Sigmoids,
        }
    }
}
