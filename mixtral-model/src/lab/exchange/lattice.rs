//! Lattice's routing trace (ohdearquant/lattice): NDJSON, a line a token and layer.
//!
//! `{"layer_idx": 3, "token_idx": 17, "selected_ids": [4, 91], "gate_weights": [0.6, 0.4]}`. Weights are those after renormalisation, which
//! combine; lines come by tokens or by layers.

use std::io::{BufRead, Read, Write};

use moe_router::trace::{TokenRoute, TraceWeights};
use serde::Deserialize;

use super::lines::{Lines, object, write_list};
use super::sink::{Sink, next_pass};
use super::table::List;
use super::{ExchangeError, Exported, Routes};

#[derive(Deserialize)]
struct Line {
    layer_idx: u64,
    token_idx: u64,
    selected_ids: List<i64>,
    gate_weights: Option<List<f32>>,
}

pub(super) fn import(source: impl BufRead, sink: &mut Sink<'_, impl Write>) -> Result<(), ExchangeError> {
    const EXPECTED: &str =
        "a line of a routing trace: layer_idx, token_idx, selected_ids and perhaps gate_weights";
    let mut lines = Lines::new(source);
    let (mut before, mut pass) = (None, 0);
    while let Some((text, place)) = lines.next()? {
        let line: Line = object(text, place, EXPECTED)?;
        let ids = &line.selected_ids.0;
        if !sink.is_begun() {
            let none = line.gate_weights.is_none();
            let kind = if none { TraceWeights::None } else { TraceWeights::Combination };
            sink.begin(None, None, kind, place)?;
        }
        let expected = if sink.weights() == TraceWeights::None { 0 } else { ids.len() };
        let weights = line.gate_weights.as_ref().map_or(&[][..], |list| &list.0);
        if weights.len() != expected {
            let expected = format!("{expected} gate_weights, as lines before and selected_ids have it");
            return Err(ExchangeError::malformed(place, expected, weights.len()));
        }
        let here = (line.layer_idx, line.token_idx);
        if before.is_some_and(|before| here <= before) {
            pass = next_pass(pass, place)?;
        }
        before = Some(here);
        sink.start((pass, line.layer_idx), (sink.sequence(), line.token_idx), place)?;
        for (n, &expert) in ids.iter().enumerate() {
            sink.keep(expert, weights.get(n).copied().unwrap_or_default(), place)?;
        }
        sink.take(None, place)?;
    }
    Ok(())
}

pub(super) fn export(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
) -> Result<Exported, ExchangeError> {
    let weighed = reader.header().weights == TraceWeights::Combination;
    let (mut exported, mut route, mut only) = (Exported::default(), TokenRoute::default(), None);
    while reader.next(&mut route)? {
        let TokenRoute { layer, position, sequence, .. } = route;
        // Positions of two sequences could not be told apart.
        if *only.get_or_insert(sequence) != sequence {
            return Err(ExchangeError::unfit("sequences", "one, or one to be named", "several"));
        }
        write!(out, r#"{{"layer_idx": {layer}, "token_idx": {position}, "selected_ids": "#)?;
        write_list(out, route.kept.iter().map(|pair| pair.expert))?;
        if weighed {
            out.write_all(br#", "gate_weights": "#)?;
            // As f64 a weight has digits enough for whoever reads it as one.
            write_list(out, route.kept.iter().map(|pair| f64::from(pair.weight)))?;
        }
        out.write_all(b"}\n")?;
        exported.count(&route);
    }
    Ok(exported)
}
