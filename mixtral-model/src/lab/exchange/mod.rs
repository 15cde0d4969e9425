//! Route traces in the formats of other projects.
//!
//! [`import`] makes one of our traces out of a foreign one, [`export`] the other way round. No two formats carry the same:
//! [`TraceFormat::loses`] and [`TraceFormat::lacks`] say what is gone, and nothing is filled in that they do not name. A format
//! without weights gives a trace with `weights=none`, never weights that nobody computed.
//!
//! Formats that write a number of experts for every token alike refuse a trace whose tokens have not all the same. The export of GLM-5.2's
//! routing atlas (`glm52-routing-trace-export/v2`) is not among the formats: it has scores of selection, bias and all, which are no weights.
//!
//! Formats of lines are turned in constant memory, one line at most, or what one line stands for; arrays are held as a whole. Whatever a
//! foreign file says, it is refused with its place, or read; sizes that it states are never allocated unseen.

mod balance;
mod edge;
mod error;
mod files;
mod format;
mod grid;
mod lattice;
mod lines;
mod llama;
mod megatron;
mod npy;
mod responses;
mod sink;
mod table;

use std::io::{BufRead, Read, Write};

use moe_router::trace::{TokenRoute, TraceError, TraceHeader, TraceReader};

pub use error::{ExchangeError, Place};
pub use files::{export_file, import_file};
pub use format::{TraceFormat, UnknownFormat};

use sink::Sink;

/// What a foreign trace does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Experts of each layer. One number stands for all layers; without any it is what the file says.
    pub experts: Vec<u16>,
    /// How many layers, where neither the file nor `experts` says it.
    pub layers: Option<u16>,
    /// How many experts a token has in a layer, where the file does not say it.
    pub choices: Option<u16>,
    /// Tokens of the prompt, which one pass read, where the file does not say it.
    pub prompt: Option<u32>,
    /// Identity of the sequence, or of the first of several, where the file does not say it; 0 without.
    pub sequence: Option<u32>,
    /// Name of the model, for the header.
    pub model: Option<String>,
    /// Digest of its checkpoint, for the header.
    pub checkpoint: Option<String>,
}

/// What came of an [`import`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Routes written: of a token in a layer.
    pub routes: u64,
    /// Routes that the file marks as unknown, and the trace has not.
    pub unknown: u64,
    /// Lines of layers that the trace does not cover.
    pub passed_over: u64,
}

/// How a trace is to be [exported](export).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportOptions {
    /// The only sequence to write. Formats that hold one want it, unless there is but one.
    pub sequence: Option<u32>,
}

/// What came of an [`export`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Routes written: of a token in a layer.
    pub routes: u64,
    /// Routes that the format cannot state, or of sequences that were not asked for.
    pub left_out: u64,
    /// Pairs of written routes that were refused, and are not in the file as refused ones.
    pub refused: u64,
}

/// Reads a foreign trace, and writes one of ours. What is written before an error is no finished trace, and is refused by readers.
///
/// # Errors
///
/// [`ExchangeError::Malformed`] with the place of what is not of the format, or of no model with these experts;
/// [`ExchangeError::Wanting`] and [`ExchangeError::Unfit`] where the options say too little, or something else than the file;
/// [`ExchangeError::Io`]; [`ExchangeError::Trace`]; [`ExchangeError::OutOfMemory`].
pub fn import(
    format: TraceFormat,
    source: impl BufRead,
    out: impl Write,
    options: &ImportOptions,
) -> Result<Imported, ExchangeError> {
    let states = format.states();
    let said = [
        ("choices", options.choices.map(u32::from).filter(|_| states.choices)),
        ("sequence", options.sequence.filter(|_| states.sequences)),
    ];
    if let Some((what, given)) = said.into_iter().find_map(|(what, given)| Some((what, given?))) {
        return Err(ExchangeError::unfit(what, "none to be given, for the file says it", given));
    }
    let mut sink = Sink::new(out, format, options);
    match format {
        TraceFormat::Megatron => megatron::import(source, &mut sink),
        TraceFormat::Npy => npy::import(source, &mut sink, false),
        TraceFormat::PrimeRl => npy::import(source, &mut sink, true),
        TraceFormat::Sglang => responses::import_sglang(source, &mut sink),
        TraceFormat::Vllm => responses::import_vllm(source, &mut sink),
        TraceFormat::BigMoeOnEdge => edge::import(source, &mut sink),
        TraceFormat::Lattice => lattice::import(source, &mut sink),
        TraceFormat::MoeBalance => balance::import(source, &mut sink),
        TraceFormat::LlamaCpp => llama::import(source, &mut sink),
    }?;
    sink.finish()
}

/// Reads the rest of one of our traces, and writes a foreign one.
///
/// # Errors
///
/// [`ExchangeError::Unfit`] for what the format cannot hold and [`TraceFormat::loses`] does not name;
/// [`ExchangeError::Io`]; [`ExchangeError::Trace`]; [`ExchangeError::OutOfMemory`].
pub fn export(
    format: TraceFormat,
    reader: &mut TraceReader<impl Read>,
    mut out: impl Write,
    options: ExportOptions,
) -> Result<Exported, ExchangeError> {
    let (out, mut routes) = (&mut out, Routes { reader, only: options.sequence, left_out: 0 });
    let reader = &mut routes;
    let mut exported = match format {
        TraceFormat::Megatron => megatron::export(reader, out),
        TraceFormat::Npy => npy::export(reader, out, false),
        TraceFormat::PrimeRl => npy::export(reader, out, true),
        TraceFormat::Sglang => responses::export_sglang(reader, out),
        TraceFormat::Vllm => responses::export_vllm(reader, out),
        TraceFormat::BigMoeOnEdge => edge::export(reader, out),
        TraceFormat::Lattice => lattice::export(reader, out),
        TraceFormat::MoeBalance => balance::export(reader, out),
        TraceFormat::LlamaCpp => llama::export(reader, out),
    }?;
    if let Some(only) = options.sequence.filter(|_| exported.routes == 0) {
        return Err(ExchangeError::unfit("sequence", "one that the trace has", only));
    }
    exported.left_out += routes.left_out;
    out.flush()?;
    Ok(exported)
}

/// What is to be exported of a trace.
struct Routes<'r, R> {
    reader: &'r mut TraceReader<R>,
    only: Option<u32>,
    left_out: u64,
}

impl<R: Read> Routes<'_, R> {
    fn header(&self) -> &TraceHeader {
        self.reader.header()
    }

    /// Reads the next route of the sequences that are wanted; `false` at the end.
    fn next(&mut self, route: &mut TokenRoute) -> Result<bool, TraceError> {
        while self.reader.next(route)? {
            if self.only.is_none_or(|only| only == route.sequence) {
                return Ok(true);
            }
            self.left_out += 1;
        }
        Ok(false)
    }
}

impl Exported {
    /// Counts a route that is written, with as many of its pairs kept as it has.
    fn count(&mut self, route: &TokenRoute) {
        self.routes += 1;
        self.refused += route.refused.len() as u64;
    }
}
