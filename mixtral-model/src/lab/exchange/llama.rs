//! `moe-trace` of llama.cpp (pull request 28544): CSV, `layer,expert`, a row for every expert of a token, in the order of layers and tokens.
//!
//! That line of the pull request is all that is known of it: a first row of names is read if it is there, and written.

use std::io::{BufRead, Read, Write};

use moe_router::trace::{TokenRoute, TraceWeights};

use super::grid::asked;
use super::lines::{Lines, number};
use super::sink::{Sink, next_pass};
use super::{ExchangeError, Exported, Place, Routes};

const NAMES: &str = "layer,expert";

pub(super) fn import(source: impl BufRead, sink: &mut Sink<'_, impl Write>) -> Result<(), ExchangeError> {
    let choices = sink.choices()?;
    let mut lines = Lines::new(source);
    let (mut before, mut pass) = (None, 0);
    // Experts of the token at hand, tokens of the layer, the most of a layer in the pass, and those of passes before.
    let (mut have, mut token, mut tokens, mut earlier) = (0, 0, 0, 0);
    let (mut first, mut last) = (true, Place::Line(1));
    while let Some((text, place)) = lines.next()? {
        if std::mem::take(&mut first) && text == NAMES {
            continue;
        }
        let (layer, expert) =
            text.split_once(',').ok_or_else(|| ExchangeError::malformed(place, NAMES, text))?;
        let layer: u64 = number(layer, "a layer", place)?;
        let expert: i64 = number(expert, "an expert", place)?;
        if before != Some(layer) {
            if have > 0 {
                return Err(cut(choices, have, place));
            }
            token = 0;
            match before {
                None => sink.begin(None, None, TraceWeights::None, place)?,
                Some(before) if layer < before => {
                    pass = next_pass(pass, place)?;
                    (tokens, earlier) = (0, earlier + tokens);
                }
                Some(_) => {}
            }
        }
        if have == 0 {
            sink.start((pass, layer), (sink.sequence(), earlier + token), place)?;
        }
        sink.keep(expert, 0.0, place)?;
        have += 1;
        if have == choices {
            sink.take(None, place)?;
            (have, token) = (0, token + 1);
            tokens = tokens.max(token);
        }
        (before, last) = (Some(layer), place);
    }
    if have > 0 { Err(cut(choices, have, last)) } else { Ok(()) }
}

fn cut(choices: usize, have: usize, place: Place) -> ExchangeError {
    ExchangeError::malformed(place, format!("{choices} experts of a token in a layer"), have)
}

pub(super) fn export(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
) -> Result<Exported, ExchangeError> {
    let (mut exported, mut route, mut experts) = (Exported::default(), TokenRoute::default(), Vec::new());
    writeln!(out, "{NAMES}")?;
    while reader.next(&mut route)? {
        asked(&route, &mut experts)?;
        if experts.is_empty() {
            exported.left_out += 1;
            continue;
        }
        for expert in &experts {
            writeln!(out, "{},{expert}", route.layer)?;
        }
        exported.count(&route);
    }
    Ok(exported)
}
