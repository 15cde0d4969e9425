//! Logits and what comes with them, from JSON or safetensors.

mod json;
mod tensors;

use std::path::Path;

use moe_core::{RouteInput, TokenContext, TokenRows, memory};
use moe_router::LogitForm;
use ndarray::Array2;

use crate::failure::{Failure, Result, warn};
use crate::input;

/// What a router is given.
#[derive(Debug)]
pub(super) struct Given {
    /// The file.
    name: String,
    /// The logits' name.
    tensor: String,
    parts: Parts,
    /// `true` where a token is padding.
    padding: Option<Vec<bool>>,
    /// Boundaries of the sequences; empty for a single one.
    offsets: Vec<usize>,
}

/// The parts of a file, in either form.
#[derive(Debug)]
struct Parts {
    /// `[T, E]`.
    logits: Array2<f32>,
    token_ids: Option<Vec<u32>>,
    /// `true` where a token is real.
    mask: Option<Vec<bool>>,
    positions: Option<Vec<usize>>,
    /// Their lengths.
    sequences: Option<Vec<usize>>,
    sequence_ids: Option<Vec<u64>>,
    /// `[E]`.
    bias: Option<Vec<f32>>,
    /// `[T, N]`.
    noise: Option<Array2<f32>>,
    /// `[T, E]`.
    noise_logits: Option<Array2<f32>>,
}

impl Given {
    /// Reads a file, `-` being standard input: its logits, or the layers that `tensors` names if it is safetensors.
    pub(super) fn read(path: &Path, tensors: &[String], form: LogitForm) -> Result<Vec<Self>> {
        let bytes = input::bytes(path)?;
        let name =
            if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        let own = [String::from("logits")];
        let names = if tensors.is_empty() { &own } else { tensors };
        if let Some((_, twice)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(Failure::not_as_expected(
                "--tensor",
                format!("expected each tensor once, found {twice} twice"),
            ));
        }
        if let Some(kind) = foreign(&bytes) {
            let reason = format!(
                "expected JSON or safetensors, found {kind}: safetensors.numpy.save_file({{\"logits\": array}}, name) \
                 writes an array as the latter"
            );
            return Err(Failure::not_as_expected(&name, reason));
        }
        let read = if is_safetensors(&bytes) {
            tensors::check_names(&bytes).map_err(|reason| Failure::not_as_expected(&name, reason))?;
            if names.contains(&own[0]) {
                let vocabulary = tensors::of_vocabulary(&bytes);
                let vocabulary = vocabulary.map_err(|reason| Failure::not_as_expected(&name, reason))?;
                match vocabulary {
                    Some(reason) if tensors.is_empty() => {
                        return Err(Failure::not_as_expected(&name, reason));
                    }
                    Some(reason) => warn(&format!("{name}: {reason}")),
                    None => {}
                }
            }
            names.iter().map(|tensor| tensors::parts(&bytes, tensor)).collect()
        } else if let Some(tensor) = tensors.first() {
            Err(format!(
                "expected safetensors, of which --tensor names {tensor}, found JSON, whose logits have that name"
            ))
        } else {
            json::parts(&bytes).map(|parts| vec![parts])
        };
        let read: Vec<Parts> = read.map_err(|reason| Failure::not_as_expected(&name, reason))?;
        read.into_iter().zip(names).map(|(parts, tensor)| Self::new(&name, tensor, parts, form)).collect()
    }

    fn new(name: &str, tensor: &str, mut parts: Parts, form: LogitForm) -> Result<Self> {
        // Lists for each token and each sequence, asked for at once before and given back.
        let lists = parts.logits.nrows().saturating_add(parts.sequences.as_ref().map_or(0, Vec::len));
        memory::reserve(&mut Vec::<u64>::new(), lists.saturating_mul(2), "sequences")?;
        let offsets = parts.check(tensor).map_err(|reason| Failure::not_as_expected(name, reason))?;
        // Each its own number unless they have some, or all would draw alike.
        parts
            .sequence_ids
            .get_or_insert_with(|| (0..offsets.len().saturating_sub(1).max(1) as u64).collect());
        let padding: Option<Vec<bool>> =
            parts.mask.as_ref().map(|mask| mask.iter().map(|real| !real).collect());
        let mut context = TokenContext::new();
        context.padding = padding.as_deref();
        let made = form.make_logits(&context, parts.logits.view_mut());
        made.map_err(|error| Failure::not_as_expected(name, error))?;
        Ok(Self { name: name.to_owned(), tensor: tensor.to_owned(), parts, padding, offsets })
    }

    /// The logits' name.
    pub(super) fn tensor(&self) -> &str {
        &self.tensor
    }

    /// Tokens and experts.
    pub(super) fn dim(&self) -> (usize, usize) {
        self.parts.logits.dim()
    }

    /// Something about the logits.
    pub(super) fn says(&self, what: &str) -> String {
        format!("{}: {}: {what}", self.name, self.tensor)
    }

    /// A bias for each expert, for the router that takes one.
    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.parts.bias.as_deref()
    }

    /// All but the bias.
    pub(super) fn input(&self, seed: u64, layer: usize) -> Result<RouteInput<'_>> {
        let parts = &self.parts;
        let mut context = TokenContext::new().with_sequences(&self.offsets).with_seed(seed).at_layer(layer);
        context.token_ids = parts.token_ids.as_deref();
        context.padding = self.padding.as_deref();
        context.positions = parts.positions.as_deref().unwrap_or(&[]);
        context.sequence_ids = parts.sequence_ids.as_deref().unwrap_or(&[]);
        context.noise = parts.noise.as_ref().map(|rows| self.rows(rows)).transpose()?;
        context.noise_logits = parts.noise_logits.as_ref().map(|rows| self.rows(rows)).transpose()?;
        RouteInput::new(parts.logits.view(), context).map_err(|error| self.blame(error))
    }

    fn rows<'a>(&self, rows: &'a Array2<f32>) -> Result<TokenRows<'a>> {
        // They were read row by row.
        let values = rows.as_slice().unwrap_or(&[]);
        TokenRows::new(values, rows.ncols()).map_err(|error| self.blame(error))
    }

    /// An error that comes of what the file holds.
    pub(super) fn blame(&self, error: moe_core::Error) -> Failure {
        Failure::not_as_expected(&self.name, error)
    }
}

impl Parts {
    /// Whether they fit together; the boundaries of the sequences. `logits` is the logits' name.
    fn check(&self, logits: &str) -> Result<Vec<usize>, String> {
        let (tokens, experts) = self.logits.dim();
        if tokens == 0 || experts == 0 {
            return Err(format!(
                "{logits}: expected at least one token and one expert, found [{tokens}, {experts}]"
            ));
        }
        let offsets = self.sequences.as_ref().map_or(Ok(vec![]), |lengths| offsets(lengths, tokens))?;
        let sequences = offsets.len().saturating_sub(1).max(1);
        for (name, of, expected, found) in [
            ("token_ids", "a token", tokens, self.token_ids.as_ref().map(Vec::len)),
            ("mask", "a token", tokens, self.mask.as_ref().map(Vec::len)),
            ("positions", "a token", tokens, self.positions.as_ref().map(Vec::len)),
            ("sequence_ids", "a sequence", sequences, self.sequence_ids.as_ref().map(Vec::len)),
            ("bias", "an expert", experts, self.bias.as_ref().map(Vec::len)),
        ] {
            if let Some(found) = found.filter(|&found| found != expected) {
                return Err(format!("{name}: expected {expected} entries, one {of}, found {found}"));
            }
        }
        // How many columns of noise there are is for the router to say.
        let dim = |rows: &Option<Array2<f32>>| rows.as_ref().map(Array2::dim);
        if let Some((rows, columns)) =
            dim(&self.noise).filter(|&(rows, columns)| rows != tokens || columns == 0)
        {
            return Err(format!("noise: expected {tokens} rows of some columns, found [{rows}, {columns}]"));
        }
        if let Some((rows, columns)) = dim(&self.noise_logits).filter(|&dim| dim != (tokens, experts)) {
            return Err(format!("noise_logits: expected [{tokens}, {experts}], found [{rows}, {columns}]"));
        }
        Ok(offsets)
    }
}

/// Rows of numbers in f32, or the name of one that is finite and f32 has not.
fn narrowed_rows(
    name: &str,
    (rows, columns): (usize, usize),
    numbers: impl Iterator<Item = f64>,
) -> Result<Array2<f32>, String> {
    let place = |i| format!("{name}: row {}, column {}", i / columns, i % columns);
    Array2::from_shape_vec((rows, columns), narrowed(numbers, place)?)
        .map_err(|error| format!("{name}: {error}"))
}

/// Numbers in f32; `place` names one that is finite and becomes infinite. NaN and infinities stay, for routers to judge.
fn narrowed(numbers: impl Iterator<Item = f64>, place: impl Fn(usize) -> String) -> Result<Vec<f32>, String> {
    let mut narrow = Vec::new();
    for (i, x) in numbers.enumerate() {
        let y = x as f32;
        if y.is_infinite() && x.is_finite() {
            return Err(format!("{}: expected a number of f32, found {x:e}", place(i)));
        }
        memory::reserve(&mut narrow, 1, "numbers").map_err(|error| error.to_string())?;
        narrow.push(y);
    }
    Ok(narrow)
}

/// What else arrays are kept in, by its first bytes.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 3] = [
        (b"\x93NUMPY", "an array of NumPy (.npy)"),
        (b"PK\x03\x04", "a zip archive, as .npz files and those of torch.save are"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    ];
    kinds.into_iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| kind)
}

/// The header's length comes first, then the header, a JSON object. Read as a length, the start of a JSON file is far beyond
/// any file's end.
fn is_safetensors(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk().map(|start| u64::from_le_bytes(*start));
    length.is_some_and(|length| length < 1 << 32 && bytes.get(8) == Some(&b'{'))
}

/// Where sequences of these lengths begin, and the end of the last.
fn offsets(lengths: &[usize], tokens: usize) -> Result<Vec<usize>, String> {
    let total = lengths.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
    if total != tokens {
        return Err(format!(
            "sequences: expected lengths that sum to the {tokens} tokens, found a sum of {total}"
        ));
    }
    let ends = lengths.iter().scan(0, |end, n| {
        *end += n;
        Some(*end)
    });
    Ok([0].into_iter().chain(ends).collect())
}
