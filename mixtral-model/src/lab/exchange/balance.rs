//! The routing trace of moe-balance (johanna-rock/moe-balance, `sim/trace_format.md`): JSONL, a line a batch and layer.
//!
//! `{"layer": 0, "batch_id": 12, "origin_rows": [0, 0], "topk_experts": [[3, 7], [7, 3]], "topk_weights": [[0.6, 0.4], [0.5, 0.5]]}`; weights,
//! `request_id` and `source_file` may be missing. A batch is a request with all its tokens, as the project's own converter makes it.

use std::io::{BufRead, Read, Write};

use moe_router::trace::TraceWeights;
use serde::Deserialize;

use super::grid::{Content, Gathered, UNKNOWN};
use super::lines::{Lines, object, write_list};
use super::sink::{Sink, next_pass};
use super::table::Table;
use super::{ExchangeError, Exported, Routes};

#[derive(Deserialize)]
struct Line {
    layer: u64,
    batch_id: u32,
    topk_experts: Table<i64>,
    topk_weights: Option<Table<f32>>,
}

pub(super) fn import(source: impl BufRead, sink: &mut Sink<'_, impl Write>) -> Result<(), ExchangeError> {
    const EXPECTED: &str = "a line of a routing trace: layer, batch_id, topk_experts and perhaps topk_weights, lists of as many for every token";
    let mut lines = Lines::new(source);
    let (mut before, mut pass) = (None, 0);
    while let Some((text, place)) = lines.next()? {
        let line: Line = object(text, place, EXPECTED)?;
        let (experts, weights) = (&line.topk_experts, line.topk_weights.as_ref());
        if !sink.is_begun() {
            let kind = if weights.is_none() { TraceWeights::None } else { TraceWeights::Combination };
            sink.begin(None, None, kind, place)?;
        }
        let shape = weights.map(|table| (table.rows, table.width));
        let expected = (sink.weights() == TraceWeights::Combination).then_some((experts.rows, experts.width));
        if shape != expected {
            let expected = match expected {
                Some((rows, width)) => format!("topk_weights of {rows} tokens with {width} each"),
                None => "no topk_weights, as in the lines before".to_owned(),
            };
            let found = shape.map_or("none".to_owned(), |(rows, width)| format!("{rows} with {width}"));
            return Err(ExchangeError::malformed(place, expected, found));
        }
        if before.is_some_and(|(batch, layer)| batch != line.batch_id || line.layer <= layer) {
            pass = next_pass(pass, place)?;
        }
        before = Some((line.batch_id, line.layer));
        for t in 0..experts.rows {
            let row = experts.row(t);
            if !row.is_empty() && row.iter().all(|&expert| expert == UNKNOWN) {
                sink.imported.unknown += 1;
                continue;
            }
            sink.start((pass, line.layer), (line.batch_id, t as u64), place)?;
            let weights = weights.map_or(&[][..], |table| table.row(t));
            for (n, &expert) in row.iter().enumerate() {
                sink.keep(expert, weights.get(n).copied().unwrap_or_default(), place)?;
            }
            sink.take(None, place)?;
        }
    }
    Ok(())
}

/// Holds the trace: the tokens of a sequence are a line a layer, in whatever passes they were read.
pub(super) fn export(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
) -> Result<Exported, ExchangeError> {
    let weighed = reader.header().weights == TraceWeights::Combination;
    let content = if weighed { Content::Weighed } else { Content::Asked };
    let all = Gathered::read(reader, content)?;
    for sequence in all.sequences() {
        let sequence = sequence?;
        for layer in 0..all.layers {
            write!(out, r#"{{"layer": {layer}, "batch_id": {}, "origin_rows": "#, sequence.id)?;
            write_list(out, (0..sequence.tokens).map(|_| 0))?;
            for (key, wanted) in [("topk_experts", true), ("topk_weights", weighed)] {
                if !wanted {
                    continue;
                }
                write!(out, r#", "{key}": ["#)?;
                for t in 0..sequence.tokens {
                    if t > 0 {
                        out.write_all(b", ")?;
                    }
                    match key {
                        "topk_experts" => write_list(out, sequence.experts(t, layer))?,
                        _ => write_list(out, sequence.weights(t, layer).map(f64::from))?,
                    }
                }
                out.write_all(b"]")?;
            }
            out.write_all(b"}\n")?;
        }
    }
    Ok(all.exported)
}
