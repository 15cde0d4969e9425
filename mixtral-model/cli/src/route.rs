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
    require_memory(&layers, args.json)?;
    let mut spec = spec.clone();
    if let Some(bias) = layers.first().and_then(Given::bias) {
        spec = spec.with_bias(bias)?;
    }
    let router = spec.build()?;
    let (mut inputs, mut routed, mut bases) = (vec![], vec![], vec![]);
    for (i, given) in layers.iter().enumerate() {
        let input = given.input(args.seed, args.layer.saturating_add(i))?;
        routed.push(route(given, &input, &*router, args)?);
        inputs.push(input);
    }
    for (input, (plan, noisy)) in inputs.iter().zip(&routed) {
        bases.push(Basis::new(input, plan, noisy.view(), &spec, args)?);
    }
    let report = |(given, basis): (&Given, &Basis<'_>)| {
        (given.tensor().to_owned(), Report::new(&spec, router.locality(), basis))
    };
    let reports: Vec<_> = layers.iter().zip(&bases).map(report).collect();
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

/// Refuses what there is no memory to route and report: losses and reports take theirs where not to have it ends the process, so
/// that as much is asked for at once before, and given back.
fn require_memory(layers: &[Given], json: bool) -> Result<()> {
    /// Bytes that go with a token, and with each of its logits: plans, probabilities, noise.
    const TOKEN: usize = 128;
    const LOGIT: usize = 32;
    /// The same of what JSON spells.
    const SPELLED_TOKEN: usize = 128;
    const SPELLED_LOGIT: usize = 128;
    let (token, logit) = if json { (TOKEN + SPELLED_TOKEN, LOGIT + SPELLED_LOGIT) } else { (TOKEN, LOGIT) };
    let needed = layers.iter().map(|given| {
        let (tokens, experts) = given.dim();
        tokens.saturating_mul(logit.saturating_mul(experts).saturating_add(token))
    });
    let needed = needed.fold(0, usize::saturating_add);
    Ok(memory::reserve(&mut Vec::<u8>::new(), needed, "routing and losses")?)
}

/// The plan of a layer and the logits that it was made of, `[T, E]`, noise included.
fn route(
    given: &Given,
    input: &RouteInput<'_>,
    router: &dyn Router,
    args: &Route,
) -> Result<(RoutingPlan, Array2<f32>)> {
    if args.given == GivenAs::Logits && LogitForm::looks_like_probabilities(input) {
        warn(&given.says(
            "every row is from 0 to 1 and sums to 1, as probabilities do and logits hardly: \
             --given probabilities takes them for such",
        ));
    }
    let (mut assignments, mut plan) = (Assignments::new(), RoutingPlan::new());
    assignments.reset(input.tokens(), input.experts())?;
    router.route(input, &mut assignments).map_err(|error| given.blame(error))?;
    plan.seal(&assignments).map_err(|error| given.blame(error))?;
    let noisy = noisy(router, input).map_err(|error| given.blame(error))?;
    Ok((plan, noisy))
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
