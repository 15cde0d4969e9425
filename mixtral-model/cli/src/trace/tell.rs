//! `mixtral trace stats` and `mixtral trace diff`.

use std::fmt::Write as _;

use moe_router::trace::{LayerAgreement, LayerTrace, TokenPlace, TraceDiff, TraceError, TraceStats};
use serde_json::{Value, json};

use super::{of_file, reader};
use crate::args;
use crate::failure::{Failure, Result};
use crate::output::Output;

pub(super) fn stats(args: &args::Stats) -> Result<()> {
    let mut reader = reader(&args.trace)?;
    let header = reader.header().clone();
    let stats = TraceStats::read(&mut reader).map_err(of_file(&args.trace))?;
    if args.json {
        let layer = |layer: &LayerTrace| {
            json!({
                "experts": layer.load.counts().len(), "tokens": layer.tokens, "pairs": layer.pairs(), "refused": layer.refused,
                "rerouted": layer.rerouted, "drop_rate": layer.drop_rate(), "load": layer.load.counts(),
                "importance": layer.importance, "cv": layer.load.cv(), "max_over_mean": layer.load.max_over_mean(),
                "distinct_experts_per_pass": layer.distinct_experts(),
            })
        };
        let json = json!({
            "model": header.model, "checkpoint": header.checkpoint, "router": header.router, "gates": header.gates,
            "program": header.program,
            "passes": stats.steps, "tokens": stats.tokens, "prefill_tokens": stats.prefill_tokens,
            "layers": stats.layers.iter().map(layer).collect::<Vec<_>>(),
        });
        return Ok(Output::new().text(&format!("{json}\n"))?);
    }
    // Writing to a string cannot fail.
    let mut text = String::new();
    let named = [
        ("model", header.model),
        ("checkpoint", header.checkpoint),
        ("router", header.router),
        ("gates", header.gates),
        ("by", header.program),
    ];
    for (name, said) in named.into_iter().filter_map(|(name, said)| Some((name, said?))) {
        let _ = writeln!(text, "{name:<11}{}", said.escape_debug());
    }
    let decoded = stats.tokens - stats.prefill_tokens;
    let _ =
        writeln!(text, "{} passes, {} tokens, {decoded} of them one at a time", stats.steps, stats.tokens);
    let _ = writeln!(text, "layer  experts/token  dropped    CV   max  distinct  load");
    for (n, layer) in stats.layers.iter().enumerate() {
        let per_token = layer.pairs() as f64 / layer.tokens as f64;
        let load: Vec<_> = layer.load.counts().iter().map(u64::to_string).collect();
        let _ = writeln!(
            text,
            "{n:>5}  {per_token:>13.2}  {:>6.1}%  {:>4.2}  {:>4.2}  {:>8.2}  {}",
            100.0 * layer.drop_rate(),
            layer.load.cv(),
            layer.load.max_over_mean(),
            layer.distinct_experts(),
            load.join(" ")
        );
    }
    Ok(Output::new().text(&text)?)
}

pub(super) fn diff(args: &args::Diff) -> Result<()> {
    let (mut one, mut other) = (reader(&args.one)?, reader(&args.other)?);
    let diff = TraceDiff::read(&mut one, &mut other).map_err(|error| match error {
        TraceError::Unfit { .. } => {
            let both = format!("{} and {}", args.one.display(), args.other.display());
            Failure::not_as_expected(both, error)
        }
        // Which of the two is damaged shows when one is read alone.
        error => match reader(&args.one)
            .and_then(|mut one| TraceStats::read(&mut one).map_err(of_file(&args.one)))
        {
            Err(of_one) => of_one,
            Ok(_) => of_file(&args.other)(error),
        },
    })?;
    if args.json {
        let layer = |layer: &LayerAgreement| {
            json!({
                "tokens": layer.choices.tokens(), "same_experts": layer.choices.set.hits,
                "same_first": layer.choices.first.hits, "same_pairs": layer.same_pairs, "overlap": layer.choices.overlap(),
                "weight_difference": layer.weight_difference, "first_difference": place(layer.first_difference),
            })
        };
        let layers: Vec<_> = diff.layers.iter().map(layer).collect();
        let json = json!({ "first_difference": place(diff.first_difference), "layers": layers });
        return Ok(Output::new().text(&format!("{json}\n"))?);
    }
    let mut text = match diff.first_difference {
        None => "every token has the same experts in every layer\n".to_owned(),
        Some(TokenPlace { step, layer, sequence, position }) => {
            format!(
                "first other experts: pass {step}, layer {layer}, sequence {sequence}, position {position}\n"
            )
        }
    };
    let _ = writeln!(text, "layer   tokens  same experts  same first  overlap  weights within");
    for (n, layer) in diff.layers.iter().enumerate() {
        let choices = &layer.choices;
        let _ = writeln!(
            text,
            "{n:>5} {:>8}  {:>11.2}%  {:>9.2}%  {:>7.4}  {:>14.2e}",
            choices.tokens(),
            100.0 * choices.set.rate(),
            100.0 * choices.first.rate(),
            choices.overlap(),
            layer.weight_difference
        );
    }
    Ok(Output::new().text(&text)?)
}

fn place(place: Option<TokenPlace>) -> Value {
    place.map_or(Value::Null, |TokenPlace { step, layer, sequence, position }| {
        json!({ "pass": step, "layer": layer, "sequence": sequence, "position": position })
    })
}
