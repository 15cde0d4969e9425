//! `mixtral convert` and `mixtral quantize`.

use std::ops::ControlFlow;
use std::path::Path;

use mixtral_model::Error;
use mixtral_model::convert::{Conversion, Importance, Plan, Recipe};

use crate::args::{Common, Convert, Quantize};
use crate::failure::{Failure, Result, warn};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::Bar;

pub(crate) fn quantise(common: &Common, args: &Quantize, interrupt: &Interrupt) -> Result<()> {
    let source = common.source()?;
    let mut conversion = Conversion::new(&source, common.access(), Recipe::new(args.dtype.clone()))?;
    if let Some(path) = &args.imatrix {
        conversion = conversion.with_importance(Importance::read(path)?)?;
    }
    write(&conversion.gguf()?, &args.out, args.json, interrupt)
}

pub(crate) fn convert(common: &Common, args: &Convert, interrupt: &Interrupt) -> Result<()> {
    let source = common.source()?;
    let recipe = Recipe::new(args.dtype.map(Into::into).into_iter().collect());
    let conversion = Conversion::new(&source, common.access(), recipe)?;
    let is_gguf = args.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let plan = if is_gguf { conversion.gguf()? } else { conversion.directory()? };
    write(&plan, &args.out, args.json, interrupt)
}

/// Writes it, with a bar, and says what was written.
fn write(plan: &Plan<'_>, out: &Path, json: bool, interrupt: &Interrupt) -> Result<()> {
    plan.warnings().iter().for_each(|warning| warn(warning));
    let mut bar = Bar::new(plan.weights(), format!("writing {}", out.display()));
    let progress = |weights| {
        bar.set(weights);
        if interrupt.wished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let written = interrupt.during(|| plan.write(out, progress));
    drop(bar);
    let summary = match written {
        Err(Error::Stopped) => return Err(Failure::Interrupted),
        other => other?,
    };
    let text = match json {
        true => serde_json::to_string_pretty(&summary).map_err(std::io::Error::other)? + "\n",
        false => summary.to_string(),
    };
    Ok(Output::new().text(&text)?)
}
