//! `route_trace v1` of BigMoeOnEdge: CSV with a preamble, a row for every expert of a token.
//!
//! ```text
//! # route_trace v1
//! # model=m.gguf arch=qwen3moe n_layer=48 n_expert=128 n_expert_used=8
//! # layer=0 expert_bytes=1802240 dense_bytes=46448640
//! turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped
//! ```
//!
//! Columns are told by name. `phase` is 0 for prefill and 1 for decode, `step` the position in the context, `slot` the rank; `weight` is what
//! was applied, `nan` where the graph does not show it; `dropped` is 1 where an expert was not read and its weight made zero.

use std::io::{BufRead, Read, Write};

use moe_core::memory;
use moe_router::trace::{Phase, TokenRoute, TraceWeights};

use super::lines::{Lines, number};
use super::sink::{Sink, next_pass};
use super::{ExchangeError, Exported, Place, Routes};

const TITLE: &str = "# route_trace v1";
/// Columns that are read; the last one may be missing.
const COLUMNS: [&str; 8] = ["turn", "phase", "step", "layer", "slot", "expert", "weight", "dropped"];

/// A row.
#[derive(Clone, Copy)]
struct Row {
    place: Place,
    /// Turn, phase, step, layer.
    cell: (u32, Phase, u64, u64),
    slot: u64,
    expert: i64,
    weight: f32,
    dropped: bool,
}

pub(super) fn import(source: impl BufRead, sink: &mut Sink<'_, impl Write>) -> Result<(), ExchangeError> {
    let mut lines = Lines::new(source);
    let (mut title, mut columns, mut rows) = (false, None, Rows::default());
    while let Some((text, place)) = lines.next()? {
        if !std::mem::replace(&mut title, true) {
            if text != TITLE {
                return Err(ExchangeError::malformed(place, TITLE, text));
            }
        } else if let Some(fact) = text.strip_prefix("# model=") {
            // The name may have blanks, and what looks like fields.
            let (name, fields) = fact.rsplit_once(" arch=").unwrap_or((fact, fact));
            sink.name_model(name);
            let find = |key: &str| fields.split(' ').find_map(|field| field.strip_prefix(key));
            let of = |key: &str| find(key).map(|count| number::<u16>(count, key, place)).transpose();
            (rows.layers, rows.experts) = (of("n_layer=")?.map(usize::from), of("n_expert=")?);
        } else if text.starts_with('#') {
            // Bytes of layers, and what a later version adds.
        } else if let Some(columns) = &columns {
            rows.next(sink, read_row(text, columns, place)?)?;
        } else {
            columns = Some(find_columns(text, place)?);
        }
    }
    rows.finish(sink)
}

/// Rows, and what of them is not told yet.
#[derive(Default)]
struct Rows {
    /// What the preamble says.
    layers: Option<usize>,
    experts: Option<u16>,
    /// Rows before the first that was not dropped: whether there are weights is not known yet.
    waiting: Vec<Row>,
    before: Option<Row>,
    pass: u32,
}

impl Rows {
    fn next(&mut self, sink: &mut Sink<'_, impl Write>, row: Row) -> Result<(), ExchangeError> {
        if sink.is_begun() {
            return self.tell(sink, row);
        }
        if row.dropped {
            return Ok(memory::push(&mut self.waiting, row, "rows of a trace")?);
        }
        let kind = if row.weight.is_nan() { TraceWeights::None } else { TraceWeights::Combination };
        self.begin(sink, kind, row.place)?;
        self.tell(sink, row)
    }

    fn begin(
        &mut self,
        sink: &mut Sink<'_, impl Write>,
        kind: TraceWeights,
        place: Place,
    ) -> Result<(), ExchangeError> {
        sink.begin(self.layers, self.experts, kind, place)?;
        std::mem::take(&mut self.waiting).into_iter().try_for_each(|row| self.tell(sink, row))
    }

    fn tell(&mut self, sink: &mut Sink<'_, impl Write>, row: Row) -> Result<(), ExchangeError> {
        let (turn, phase, step, layer) = row.cell;
        if self.before.map(|before| before.cell) != Some(row.cell) {
            if let Some(before) = self.before {
                let (was_turn, was, was_step, was_layer) = before.cell;
                sink.take(Some(was), before.place)?;
                let alone = phase == Phase::Decode && step != was_step;
                let again = layer < was_layer || layer == was_layer && step <= was_step;
                if (turn, phase) != (was_turn, was) || alone || again {
                    self.pass = next_pass(self.pass, row.place)?;
                }
            }
            sink.start((self.pass, layer), (turn, step), row.place)?;
        }
        self.before = Some(row);
        let known = !row.weight.is_nan();
        if !row.dropped && known != (sink.weights() == TraceWeights::Combination) {
            let expected = if known { "nan, as in the rows before" } else { "a weight" };
            return Err(ExchangeError::malformed(row.place, expected, row.weight));
        }
        sink.add(row.expert, row.slot, (!row.dropped).then_some(row.weight), row.place)
    }

    fn finish(&mut self, sink: &mut Sink<'_, impl Write>) -> Result<(), ExchangeError> {
        if let Some(first) = self.waiting.first() {
            self.begin(sink, TraceWeights::Combination, first.place)?;
        }
        match self.before {
            Some(Row { cell: (_, phase, ..), place, .. }) => sink.take(Some(phase), place),
            None => Ok(()),
        }
    }
}

/// Where the columns are.
fn find_columns(text: &str, place: Place) -> Result<[Option<usize>; 8], ExchangeError> {
    let columns = COLUMNS.map(|name| text.split(',').position(|column| column.trim() == name));
    match columns.iter().rev().skip(1).all(Option::is_some) {
        true => Ok(columns),
        false => Err(ExchangeError::malformed(place, format!("the columns {}", COLUMNS.join(",")), text)),
    }
}

fn read_row(text: &str, columns: &[Option<usize>; 8], place: Place) -> Result<Row, ExchangeError> {
    let field = |n: usize| {
        let value = columns.get(n).copied().flatten().and_then(|at| text.split(',').nth(at));
        value.ok_or_else(|| ExchangeError::malformed(place, "as many fields as columns", text))
    };
    let turn = number(field(0)?, "a turn", place)?;
    let phase = match field(1)?.trim() {
        "0" => Phase::Prefill,
        "1" => Phase::Decode,
        other => return Err(ExchangeError::malformed(place, "phase 0 or 1", other)),
    };
    let step = number(field(2)?, "a step from 0 on, a token's position", place)?;
    let cell = (turn, phase, step, number(field(3)?, "a layer", place)?);
    let slot = number(field(4)?, "a slot", place)?;
    let expert = number(field(5)?, "an expert", place)?;
    let weight = number(field(6)?, "a weight", place)?;
    let dropped = match columns[7] {
        None => false,
        Some(_) => number::<u8>(field(7)?, "dropped, 0 or 1", place)? != 0,
    };
    Ok(Row { place, cell, slot, expert, weight, dropped })
}

pub(super) fn export(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
) -> Result<Exported, ExchangeError> {
    let header = reader.header();
    let weighed = header.weights == TraceWeights::Combination;
    let experts = header.experts.first().copied().unwrap_or_default();
    if let Some(other) = header.experts.iter().find(|&&other| other != experts) {
        return Err(ExchangeError::unfit("experts", format!("{experts} in every layer"), other));
    }
    let model = header.model.as_deref().unwrap_or("unknown");
    let model: String = model.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let layers = header.experts.len();
    let (mut exported, mut route, mut begun) = (Exported::default(), TokenRoute::default(), false);
    loop {
        let more = reader.next(&mut route)?;
        if !std::mem::replace(&mut begun, true) {
            let used = route.kept.len() + route.refused.len();
            writeln!(
                out,
                "{TITLE}\n# model={model} arch=unknown n_layer={layers} n_expert={experts} n_expert_used={used}"
            )?;
            writeln!(out, "{}", COLUMNS.join(","))?;
        }
        if !more {
            return Ok(exported);
        }
        if route.kept.is_empty() && route.refused.is_empty() {
            exported.left_out += 1;
            continue;
        }
        exported.routes += 1;
        let TokenRoute { sequence, position, layer, phase, .. } = route;
        let phase = u8::from(phase == Phase::Decode);
        for (pair, kept) in route.by_rank() {
            write!(out, "{sequence},{phase},{position},{layer},{},{},", pair.rank, pair.expert)?;
            match weighed && kept {
                true => write!(out, "{}", pair.weight)?,
                // Nobody knows it of a pair that was refused.
                false => out.write_all(b"nan")?,
            }
            writeln!(out, ",{}", u8::from(!kept))?;
        }
    }
}
