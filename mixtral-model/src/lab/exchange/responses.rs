//! Responses of servers, in JSON, one after the other: SGLang's `meta_info.routed_experts`, and vLLM's `choices[].routed_experts`.
//!
//! SGLang gives base64 of int32, `[length - 1, layers, choices]`, for the last token of a sequence is never read; with
//! `routed_experts_start_len` the first tokens are not there. It does not say layers and choices. vLLM gives base64 of an array file of
//! numpy, with the same rows.

use std::borrow::Cow;
use std::io::{BufRead, Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use moe_core::memory;
use moe_router::trace::TraceWeights;
use serde::Deserialize;

use super::grid::{Content, Gathered, Grid, Sequence};
use super::lines::read_all;
use super::npy::{self, Array};
use super::sink::Sink;
use super::table::List;
use super::{ExchangeError, Exported, Place, Routes};

/// Bytes of a file of responses, at most.
const MOST: usize = 1 << 30;

#[derive(Deserialize)]
struct Sglang<'a> {
    #[serde(borrow)]
    meta_info: Meta<'a>,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow)]
    routed_experts: Cow<'a, str>,
    routed_experts_start_len: Option<u32>,
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct Vllm<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
    prompt_token_ids: Option<List<u32>>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    routed_experts: Cow<'a, str>,
    prompt_token_ids: Option<List<u32>>,
    token_ids: Option<List<u32>>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u32>,
}

/// Gives the responses of a file to `visit`, with their number.
fn each<'a, T: Deserialize<'a>>(
    all: &'a [u8],
    expected: &str,
    mut visit: impl FnMut(u64, T) -> Result<(), ExchangeError>,
) -> Result<(), ExchangeError> {
    let mut responses = serde_json::Deserializer::from_slice(all).into_iter::<T>();
    let mut number = 0;
    loop {
        let place = Place::Byte(responses.byte_offset() as u64);
        let Some(response) = responses.next() else { return Ok(()) };
        visit(number, response.map_err(|error| ExchangeError::malformed(place, expected, error))?)?;
        number += 1;
    }
}

/// The sequence of a response.
fn sequence(sink: &Sink<'_, impl Write>, number: u64, place: Place) -> Result<u32, ExchangeError> {
    let id = u32::try_from(number).ok().and_then(|number| sink.sequence().checked_add(number));
    id.ok_or_else(|| ExchangeError::malformed(place, "less than 2^32 sequences", "more"))
}

fn decode(text: &str, place: Place) -> Result<Vec<u8>, ExchangeError> {
    let mut bytes = Vec::new();
    memory::refill(&mut bytes, base64::decoded_len_estimate(text.len()), 0, "routed experts")?;
    let count = STANDARD
        .decode_slice(text, &mut bytes)
        .map_err(|error| ExchangeError::malformed(place, "base64", error))?;
    bytes.truncate(count);
    Ok(bytes)
}

pub(super) fn import_sglang(
    mut source: impl BufRead,
    sink: &mut Sink<'_, impl Write>,
) -> Result<(), ExchangeError> {
    const EXPECTED: &str = "a response with meta_info.routed_experts";
    let (layers, choices) = (sink.layers()?, sink.choices()?);
    let all = read_all(&mut source, 0, MOST)?;
    let mut pass = 0;
    each(&all, EXPECTED, |response, Sglang { meta_info: meta }| {
        let at = |entry: usize| Place::Entry { response, entry: entry as u64 };
        let bytes = decode(&meta.routed_experts, at(0))?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        let row = layers * choices;
        if row == 0 || !rest.is_empty() || !numbers.len().is_multiple_of(row) {
            let expected = format!("int32 for tokens of {layers} layers with {choices} each");
            return Err(ExchangeError::malformed(at(0), expected, format!("{} bytes", bytes.len())));
        }
        let (tokens, first) = (numbers.len() / row, meta.routed_experts_start_len.unwrap_or(0));
        if let (Some(prompt), Some(completion)) = (meta.prompt_tokens, meta.completion_tokens) {
            let rows = u64::from(prompt) + u64::from(completion);
            if tokens as u64 + u64::from(first) + 1 != rows.max(1) {
                let expected = format!("{} tokens, all but the last", rows.saturating_sub(u64::from(first)));
                return Err(ExchangeError::malformed(at(0), expected, tokens));
            }
        }
        sink.begin(Some(layers), None, TraceWeights::None, at(0))?;
        let prompt = meta.prompt_tokens.or(sink.options.prompt).map(|prompt| prompt.saturating_sub(first));
        let grid = Grid {
            tokens,
            layers,
            choices,
            sequence: sequence(sink, response, at(0))?,
            first,
            prompt: prompt.map_or(tokens, |prompt| prompt as usize),
            ids: &[],
        };
        let index = |[t, layer, c]: [usize; 3]| (t * layers + layer) * choices + c;
        let cell = |at| {
            let number = numbers.get(index(at)).copied().unwrap_or_default();
            (i64::from(i32::from_le_bytes(number)), 0.0)
        };
        pass = grid.give(sink, pass, cell, |place| at(index(place)))?;
        Ok(())
    })
}

pub(super) fn import_vllm(
    mut source: impl BufRead,
    sink: &mut Sink<'_, impl Write>,
) -> Result<(), ExchangeError> {
    const EXPECTED: &str = "a response with choices, each with routed_experts in base64";
    let all = read_all(&mut source, 0, MOST)?;
    let (mut pass, mut count) = (0, 0);
    each(&all, EXPECTED, |response, answer: Vllm<'_>| {
        let at = |entry: usize| Place::Entry { response, entry: entry as u64 };
        for choice in &answer.choices {
            let bytes = decode(&choice.routed_experts, at(0))?;
            let array = Array::read(&mut bytes.as_slice(), |_| at(0))?;
            let [tokens, layers, choices] = array.shape;
            npy::check_axes(&array, at(0))?;
            sink.begin(Some(layers), None, TraceWeights::None, at(0))?;
            let known = choice.prompt_token_ids.as_ref().or(answer.prompt_token_ids.as_ref());
            let mut ids = Vec::new();
            if let Some(List(prompt)) = known {
                let generated = choice.token_ids.as_ref().map_or(&[][..], |list| &list.0);
                let both = prompt.iter().chain(generated).copied();
                memory::refill_from(&mut ids, prompt.len() + generated.len(), both, "token ids")?;
                if choice.token_ids.is_some() && tokens + 1 != ids.len().max(1) {
                    let expected = format!("{} tokens, all but the last", ids.len());
                    return Err(ExchangeError::malformed(at(0), expected, tokens));
                }
            }
            let stated = answer.usage.as_ref().and_then(|usage| usage.prompt_tokens).or(sink.options.prompt);
            let prompt = known.map(|list| list.0.len()).or(stated.map(|prompt| prompt as usize));
            let prompt = prompt.unwrap_or(tokens);
            let sequence = sequence(sink, count, at(0))?;
            let grid = Grid { tokens, layers, choices, sequence, first: 0, prompt, ids: &ids };
            count += 1;
            let place = |place| at(array.index(place));
            pass = grid.give(sink, pass, |place| (array.get(place), 0.0), place)?;
        }
        Ok(())
    })
}

/// Writes a line for every sequence.
pub(super) fn export_sglang(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
) -> Result<Exported, ExchangeError> {
    let all = Gathered::read(reader, Content::Asked)?;
    for sequence in all.sequences() {
        let sequence = sequence?;
        let (prompt, completion) = lengths(&sequence);
        write!(
            out,
            r#"{{"meta_info": {{"prompt_tokens": {prompt}, "completion_tokens": {completion}, "routed_experts": ""#
        )?;
        let mut text = Base64::new(&mut *out);
        for t in 0..sequence.tokens {
            for layer in 0..all.layers {
                for expert in sequence.experts(t, layer) {
                    text.write_all(&(expert as i32).to_le_bytes())?;
                }
            }
        }
        text.finish()?;
        out.write_all(b"\"}}\n")?;
    }
    Ok(all.exported)
}

/// Writes a line for every sequence.
pub(super) fn export_vllm(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
) -> Result<Exported, ExchangeError> {
    let most = reader.header().experts.iter().copied().max().unwrap_or_default();
    let all = Gathered::read(reader, Content::Asked)?;
    for sequence in all.sequences() {
        let sequence = sequence?;
        out.write_all(br#"{"choices": [{"index": 0, "routed_experts": ""#)?;
        let mut text = Base64::new(&mut *out);
        npy::write(Some(&sequence), &all, false, most, &mut text)?;
        text.finish()?;
        let (prompt, completion) = lengths(&sequence);
        writeln!(
            out,
            r#""}}], "usage": {{"prompt_tokens": {prompt}, "completion_tokens": {completion}}}}}"#
        )?;
    }
    Ok(all.exported)
}

/// Tokens of the prompt and of the answer, whose last one was never read.
fn lengths(sequence: &Sequence<'_>) -> (usize, usize) {
    // A prompt of one token was read alone.
    let prompt = sequence.prompt.max(1);
    (prompt, sequence.tokens + 1 - prompt)
}

/// Writes bytes as base64, in constant memory.
struct Base64<W> {
    out: W,
    bytes: [u8; 3 << 10],
    count: usize,
}

impl<W: Write> Base64<W> {
    fn new(out: W) -> Self {
        Self { out, bytes: [0; 3 << 10], count: 0 }
    }

    fn finish(mut self) -> Result<(), ExchangeError> {
        Ok(self.flush()?)
    }
}

impl<W: Write> Write for Base64<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.count == self.bytes.len() {
            self.flush()?;
        }
        let rest = &mut self.bytes[self.count..];
        let count = rest.len().min(bytes.len());
        rest[..count].copy_from_slice(&bytes[..count]);
        self.count += count;
        Ok(count)
    }

    /// Padding ends the text: only [`finish`](Self::finish) may do it with other than a full buffer.
    fn flush(&mut self) -> std::io::Result<()> {
        let mut text = [0; 4 << 10];
        let count = STANDARD.encode_slice(&self.bytes[..self.count], &mut text);
        let count = count.map_err(|error| std::io::Error::other(error.to_string()))?;
        self.count = 0;
        self.out.write_all(&text[..count])
    }
}
