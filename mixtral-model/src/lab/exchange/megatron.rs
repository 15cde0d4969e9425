//! Megatron-LM's `RouterTracer`, `megatron/core/transformer/moe/router_trace.py`: JSONL, a file a rank, a line a pass and layer.
//!
//! `{"step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 3, "rank": 0, "num_tokens": 2, "topk": 2, "top_indices": [[1, 4], [0, 2]]}`,
//! with `mtp_idx` in the block `mtp`. In training a step is an iteration, whose micro-batches are passes of their own: a layer that
//! does not come after the one before it begins a pass.

use std::io::{BufRead, Read, Write};

use moe_router::trace::{TokenRoute, TraceWeights};
use serde::Deserialize;

use super::grid::asked;
use super::lines::{Lines, object, write_list};
use super::sink::{Sink, next_pass};
use super::table::Table;
use super::{ExchangeError, Exported, Routes};

#[derive(Deserialize)]
struct Line {
    step: u32,
    #[serde(default)]
    block: Block,
    layer: u64,
    num_tokens: Option<u64>,
    topk: Option<u64>,
    top_indices: Table<i64>,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Block {
    #[default]
    Decoder,
    #[serde(other)]
    Other,
}

pub(super) fn import(source: impl BufRead, sink: &mut Sink<'_, impl Write>) -> Result<(), ExchangeError> {
    const EXPECTED: &str =
        "a line of a router trace: step, layer and top_indices, a list of as many for every token";
    let mut lines = Lines::new(source);
    // Step and layer of the line before, the pass it is of, and the tokens of that and of passes before.
    let (mut before, mut pass, mut tokens, mut earlier) = (None, 0, 0, 0);
    while let Some((text, place)) = lines.next()? {
        let line: Line = object(text, place, EXPECTED)?;
        if line.block != Block::Decoder {
            sink.imported.passed_over += 1;
            continue;
        }
        let table = &line.top_indices;
        let stated = (line.num_tokens.unwrap_or(table.rows as u64), line.topk.unwrap_or(table.width as u64));
        if stated.0 != table.rows as u64 || table.rows > 0 && stated.1 != table.width as u64 {
            let expected = format!("{} tokens with {} experts each, as the line says", stated.0, stated.1);
            let found = format!("{} with {}", table.rows, table.width);
            return Err(ExchangeError::malformed(place, expected, found));
        }
        if let Some((step, layer)) = before {
            if line.step != step || line.layer <= layer {
                // Steps keep their numbers where they are passes.
                pass = next_pass(pass, place)?.max(line.step);
                (tokens, earlier) = (0, earlier + tokens);
            }
        } else {
            sink.begin(None, None, TraceWeights::None, place)?;
            pass = line.step;
        }
        before = Some((line.step, line.layer));
        tokens = tokens.max(table.rows as u64);
        for t in 0..table.rows {
            let position = earlier + t as u64;
            sink.start((pass, line.layer), (sink.sequence(), position), place)?;
            for &expert in table.row(t) {
                sink.keep(expert, 0.0, place)?;
            }
            sink.take(None, place)?;
        }
    }
    Ok(())
}

pub(super) fn export(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
) -> Result<Exported, ExchangeError> {
    let mut exported = Exported::default();
    let (mut route, mut experts) = (TokenRoute::default(), Vec::new());
    // Pass and layer of the line at hand, its tokens, and how many experts each has.
    let mut line: Option<(u32, u16, u64, usize)> = None;
    while reader.next(&mut route)? {
        asked(&route, &mut experts)?;
        line = match line {
            Some((step, layer, tokens, topk)) if (step, layer) == (route.step, route.layer) => {
                if topk != experts.len() {
                    let found = format!("{} of the token at position {}", experts.len(), route.position);
                    let expected = format!("{topk} for every token of pass {step} in layer {layer}");
                    return Err(ExchangeError::unfit("experts", expected, found));
                }
                out.write_all(b", ")?;
                Some((step, layer, tokens + 1, topk))
            }
            other => {
                end_line(other, out)?;
                let (step, layer) = (route.step, route.layer);
                // A number of tokens is known at the end of the line, and members of an object have no order.
                write!(
                    out,
                    r#"{{"step": {step}, "stage": "pre_dispatch", "block": "decoder", "layer": {layer}, "rank": 0, "top_indices": ["#
                )?;
                Some((step, layer, 1, experts.len()))
            }
        };
        write_list(out, &experts)?;
        exported.count(&route);
    }
    end_line(line, out)?;
    Ok(exported)
}

fn end_line(line: Option<(u32, u16, u64, usize)>, out: &mut impl Write) -> Result<(), ExchangeError> {
    if let Some((_, _, tokens, topk)) = line {
        writeln!(out, r#"], "num_tokens": {tokens}, "topk": {topk}}}"#)?;
    }
    Ok(())
}
