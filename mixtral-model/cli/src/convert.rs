//! `mixtral convert` and `mixtral quantize`.

use std::ops::ControlFlow;
use std::path::Path;

use mixtral_model::convert::{Calibration, Conversion, Importance, Plan, Recipe};
use mixtral_model::{Error, Source};
use moe_kernels::Backend;

use crate::args::{Convert, Quantize};
use crate::failure::{Failure, Result, warn};
use crate::input;
use crate::interrupt::Interrupt;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::summary::aside;

/// Tokens that are read together when importances are measured.
const WINDOW: usize = 512;

pub(crate) fn quantise(args: &Quantize, interrupt: &Interrupt) -> Result<()> {
    let source = args.model.source()?;
    let mut conversion = Conversion::new(&source, args.access.access(), Recipe::new(args.dtype.clone()))?;
    if let Some(path) = &args.imatrix {
        conversion = conversion.with_importance(Importance::read(path)?)?;
    } else if let Some(path) = &args.calibrate {
        let backend = args.machine.backend.unwrap_or_default();
        let importance = measure(backend, &source, &conversion, path, interrupt)?;
        conversion = conversion.with_importance(importance)?;
    }
    write(&conversion.gguf()?, &args.out, args.json, interrupt)
}

pub(crate) fn convert(args: &Convert, interrupt: &Interrupt) -> Result<()> {
    let source = args.model.source()?;
    let recipe = Recipe::new(args.dtype.map(Into::into).into_iter().collect());
    let conversion = Conversion::new(&source, args.access.access(), recipe)?;
    let is_gguf = args.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let plan = if is_gguf { conversion.gguf()? } else { conversion.directory()? };
    write(&plan, &args.out, args.json, interrupt)
}

/// Measures importances on a text, and says how many tokens each expert saw.
fn measure(
    backend: Backend,
    source: &Source,
    conversion: &Conversion<'_>,
    path: &Path,
    interrupt: &Interrupt,
) -> Result<Importance> {
    let config = source.config()?;
    let ids = source.tokenizer()?.for_model(config.vocab_size)?.encode_prompt(&input::file(path)?)?;
    let window = WINDOW.min(config.max_positions);
    let text = Calibration { ids: &ids, window, backend, name: path };
    let mut bar = Bar::new(ids.len() as u64, format!("reading {} tokens", ids.len()));
    let progress = |tokens: usize| {
        bar.set(tokens as u64);
        if interrupt.wished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let measured = interrupt.during(|| Importance::measure(conversion, text, progress));
    drop(bar);
    let importance = match measured {
        Err(Error::Stopped) => return Err(Failure::Interrupted),
        other => other?,
    };
    aside(&format!("measured on {} tokens; how many came to each expert:", ids.len()));
    for layer in 0..config.layers {
        let tokens = importance.tokens_of_experts(layer, &config).unwrap_or_default();
        let tokens: Vec<_> = tokens.iter().map(u64::to_string).collect();
        aside(&format!("layer {layer}: {}", tokens.join(" ")));
    }
    Ok(importance)
}

/// Writes it, with a bar, and says what was written.
fn write(plan: &Plan<'_>, out: &Path, json: bool, interrupt: &Interrupt) -> Result<()> {
    plan.warnings().iter().for_each(|warning| warn(warning));
    // What is complete is told of: a signal that comes between the two is too late.
    interrupt.during_writing(out, || {
        let mut bar = Bar::new(plan.weights(), format!("writing {}", out.display()));
        let written = plan.write(out, |weights| {
            bar.set(weights);
            if interrupt.wished() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(bar);
        let summary = match written {
            Err(Error::Stopped) => return Err(Failure::Interrupted),
            other => other?,
        };
        let text = match json {
            true => output::json(&summary, true)?,
            false => summary.to_string(),
        };
        Ok(Output::new().text(&text)?)
    })
}
