//! Array files of numpy: `routed_experts` of vLLM, `[tokens, layers, choices]`, and prime-rl's ids and weights, `[tokens, layers, 2 * choices]`.
//!
//! vLLM gives expert ids as int16, or in newer versions as the smallest type that holds them; -1 stands where a token was cached and its
//! experts are not known. prime-rl (pull request 3523) packs int32 expert ids and, after them, as many bits of f32 combination weights.

use std::io::{Read, Write};

use moe_router::trace::TraceWeights;

use super::grid::{Content, Gathered, Grid, Sequence, UNKNOWN};
use super::lines::read_all;
use super::sink::Sink;
use super::{ExchangeError, Exported, Place, Routes};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Bytes of a header, at most.
const MOST_HEADER: usize = 1 << 16;

/// Types of numbers by their names in numpy: bytes, and whether they have a sign.
const TYPES: [(&str, usize, bool); 8] = [
    ("|i1", 1, true),
    ("|u1", 1, false),
    ("<i2", 2, true),
    ("<u2", 2, false),
    ("<i4", 4, true),
    ("<u4", 4, false),
    ("<i8", 8, true),
    ("<u8", 8, false),
];

/// An array of whole numbers with three axes.
pub(super) struct Array {
    pub(super) shape: [usize; 3],
    /// Where its numbers begin in the file.
    pub(super) offset: u64,
    pub(super) size: usize,
    signed: bool,
    bytes: Vec<u8>,
}

impl Array {
    /// Reads a file. `place` says where a byte of it is.
    pub(super) fn read(source: &mut impl Read, place: impl Fn(u64) -> Place) -> Result<Self, ExchangeError> {
        let wrong =
            |at: u64, expected: &str, found: &str| ExchangeError::malformed(place(at), expected, found);
        let mut start = [0; 8];
        fill(source, &mut start, place(0))?;
        if !start.starts_with(MAGIC) {
            return Err(wrong(0, "an array file of numpy", "another file"));
        }
        let wide = match start[6] {
            1 => false,
            2 | 3 => true,
            other => return Err(wrong(6, "version 1, 2 or 3", &other.to_string())),
        };
        let mut length = [0; 4];
        fill(source, &mut length[..if wide { 4 } else { 2 }], place(8))?;
        let length = u32::from_le_bytes(length) as usize;
        let begin = if wide { 12 } else { 10 };
        if length > MOST_HEADER {
            return Err(wrong(8, "a header of at most 65536 bytes", &length.to_string()));
        }
        let mut header = [0; MOST_HEADER];
        let header = &mut header[..length];
        fill(source, header, place(begin))?;
        let header = String::from_utf8_lossy(header);
        let Some((name, fortran, shape)) = parse(&header) else {
            return Err(wrong(begin, "descr, fortran_order and a shape of three axes", &header));
        };
        let Some(&(_, size, signed)) = TYPES.iter().find(|(known, ..)| *known == name) else {
            return Err(wrong(begin, "whole numbers, little-endian", name));
        };
        if fortran {
            return Err(wrong(begin, "fortran_order False", "True"));
        }
        let count = shape.iter().try_fold(size, |product, &axis| product.checked_mul(axis));
        let count = count.ok_or_else(|| wrong(begin, "an array that a file can hold", &header))?;
        let offset = begin + length as u64;
        let bytes =
            read_all(source, offset, count).map_err(|error| placed(error, &place, offset + count as u64))?;
        if bytes.len() < count {
            let end = offset + bytes.len() as u64;
            return Err(wrong(end, &format!("{count} bytes of numbers"), &bytes.len().to_string()));
        }
        Ok(Self { shape, offset, size, signed, bytes })
    }

    /// A number by its place in the shape; beyond, it is unknown.
    pub(super) fn get(&self, [t, layer, c]: [usize; 3]) -> i64 {
        let at = self.index([t, layer, c]) * self.size;
        let Some(bytes) = self.bytes.get(at..at + self.size) else { return UNKNOWN };
        // Bytes above the number's are those of its sign.
        let negative = self.signed && bytes.last().is_some_and(|&high| high >= 0x80);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        for (to, &byte) in wide.iter_mut().zip(bytes) {
            *to = byte;
        }
        let value = i64::from_le_bytes(wide);
        // What only a u64 holds is no expert, whatever it is.
        if value < 0 && !self.signed { i64::MAX } else { value }
    }

    /// Which number of the array it is.
    pub(super) fn index(&self, [t, layer, c]: [usize; 3]) -> usize {
        (t * self.shape[1] + layer) * self.shape[2] + c
    }
}

/// An error at a byte, told otherwise.
fn placed(error: ExchangeError, place: &impl Fn(u64) -> Place, at: u64) -> ExchangeError {
    match error {
        ExchangeError::Malformed { expected, found, .. } => {
            ExchangeError::Malformed { place: place(at), expected, found }
        }
        other => other,
    }
}

fn fill(source: &mut impl Read, bytes: &mut [u8], place: Place) -> Result<(), ExchangeError> {
    source.read_exact(bytes).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            ExchangeError::malformed(place, "an array file of numpy", "the end of the file")
        }
        _ => error.into(),
    })
}

/// Type, order and shape of a header, which is a dictionary as Python writes it.
fn parse(header: &str) -> Option<(&str, bool, [usize; 3])> {
    let mut rest = header.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut name, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, value) = rest.split_once(':')?;
        let value = value.trim_start();
        let end = match key.trim().trim_matches(['\'', '"']) {
            "descr" => {
                let quote = value.chars().next().filter(|&c| c == '\'' || c == '"')?;
                let (text, _) = value.get(1..)?.split_once(quote)?;
                name = Some(text);
                text.len() + 2
            }
            "fortran_order" => {
                fortran = Some(value.starts_with("True"));
                if value.starts_with("True") { 4 } else { value.strip_prefix("False").map(|_| 5)? }
            }
            "shape" => {
                let (list, _) = value.strip_prefix('(')?.split_once(')')?;
                let mut axes = list.trim().trim_end_matches(',').split(',').map(|axis| axis.trim().parse());
                let three = [axes.next()?.ok()?, axes.next()?.ok()?, axes.next()?.ok()?];
                shape = axes.next().is_none().then_some(three);
                list.len() + 2
            }
            _ => return None,
        };
        let after = value.get(end..)?.trim_start();
        rest = after.strip_prefix(',').unwrap_or(after).trim_start();
    }
    Some((name?, fortran?, shape?))
}

/// Reads an array of one sequence; `packed` if weights are in it.
pub(super) fn import(
    mut source: impl Read,
    sink: &mut Sink<'_, impl Write>,
    packed: bool,
) -> Result<(), ExchangeError> {
    let array = Array::read(&mut source, Place::Byte)?;
    let place = |at| Place::Byte(array.offset + (array.index(at) * array.size) as u64);
    let [tokens, layers, width] = array.shape;
    check_axes(&array, place([0, 0, 0]))?;
    if packed && (array.size != 4 || !array.signed || !width.is_multiple_of(2)) {
        let found = format!("{width} numbers of {} bytes", array.size);
        let expected = "int32 with as many weights as ids on the last axis";
        return Err(ExchangeError::malformed(Place::Byte(0), expected, found));
    }
    let choices = if packed { width / 2 } else { width };
    let kind = if packed { TraceWeights::Combination } else { TraceWeights::None };
    sink.begin(Some(layers), None, kind, Place::Byte(0))?;
    let prompt = sink.options.prompt.map_or(tokens, |prompt| prompt as usize);
    let grid = Grid { tokens, layers, choices, sequence: sink.sequence(), first: 0, prompt, ids: &[] };
    let cell = |[t, layer, c]: [usize; 3]| {
        let bits = if packed { array.get([t, layer, c + choices]) as u32 } else { 0 };
        (array.get([t, layer, c]), f32::from_bits(bits))
    };
    grid.give(sink, 0, cell, place)?;
    Ok(())
}

/// Whether tokens have numbers: else there may be any number of them in no bytes.
pub(super) fn check_axes(array: &Array, place: Place) -> Result<(), ExchangeError> {
    match array.shape {
        [0, _, _] => Ok(()),
        [_, layers, width] if layers > 0 && width > 0 => Ok(()),
        shape => Err(ExchangeError::malformed(place, "layers and choices", format!("the shape {shape:?}"))),
    }
}

/// Writes an array of one sequence; `packed` if weights are to be in it.
pub(super) fn export(
    reader: &mut Routes<'_, impl Read>,
    out: &mut impl Write,
    packed: bool,
) -> Result<Exported, ExchangeError> {
    let most = reader.header().experts.iter().copied().max().unwrap_or_default();
    let content = if packed { Content::Weighed } else { Content::Asked };
    let all = Gathered::read(reader, content)?;
    let only = all.only()?;
    write(only.as_ref(), &all, packed, most, out)?;
    Ok(all.exported)
}

/// Writes a sequence, whose layers have at most so many experts, as a file.
pub(super) fn write(
    sequence: Option<&Sequence<'_>>,
    all: &Gathered,
    packed: bool,
    most: u16,
    out: &mut impl Write,
) -> Result<(), ExchangeError> {
    let narrow = !packed && most <= 1 << 15;
    let (tokens, width) = (sequence.map_or(0, |it| it.tokens), all.choices * if packed { 2 } else { 1 });
    let mut header = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': ({tokens}, {}, {width}), }}",
        if narrow { "<i2" } else { "<i4" },
        all.layers
    );
    // Numbers begin at a multiple of 64, and a line ends before them.
    let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header.extend(std::iter::repeat_n(' ', length - header.len() - 1));
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    // It is far shorter than 65,536.
    out.write_all(&(length as u16).to_le_bytes())?;
    writeln!(out, "{header}")?;
    let Some(sequence) = sequence else { return Ok(()) };
    for t in 0..tokens {
        for layer in 0..all.layers {
            for expert in sequence.experts(t, layer) {
                match narrow {
                    true => out.write_all(&(expert as i16).to_le_bytes())?,
                    false => out.write_all(&(expert as i32).to_le_bytes())?,
                }
            }
            if packed {
                for weight in sequence.weights(t, layer) {
                    out.write_all(&weight.to_bits().to_le_bytes())?;
                }
            }
        }
    }
    Ok(())
}
