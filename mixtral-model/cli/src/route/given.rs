//! Logits and what comes with them, from JSON or safetensors.

use std::fmt;
use std::path::Path;

use half::{bf16, f16};
use ndarray::Array2;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};

use crate::failure::{Failure, Result};
use crate::input;

/// What a router is given. Lengths of the lists are for the context to check.
#[derive(Debug)]
pub(super) struct Given {
    /// `[T, E]`, neither of them 0.
    pub(super) logits: Array2<f32>,
    pub(super) token_ids: Option<Vec<u32>>,
    /// `true` where a token is padding.
    pub(super) padding: Option<Vec<bool>>,
    /// Boundaries of the sequences; empty for a single one.
    pub(super) offsets: Vec<usize>,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) noise_logits: Option<Array2<f32>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    logits: Vec<Vec<Number>>,
    token_ids: Option<Vec<u32>>,
    mask: Option<Vec<Bit>>,
    sequences: Option<Vec<usize>>,
    bias: Option<Vec<Number>>,
    noise_logits: Option<Vec<Vec<Number>>>,
}

impl Given {
    /// Reads a file, `-` being standard input; `tensor` is the logits' name if it is safetensors.
    pub(super) fn read(path: &Path, tensor: &str) -> Result<Self> {
        let bytes = input::bytes(path)?;
        let read =
            if is_safetensors(&bytes) { Self::of_tensors(&bytes, tensor) } else { Self::of_json(&bytes) };
        let name =
            if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        read.map_err(|reason| Failure::not_as_expected(name, reason))
    }

    fn of_json(bytes: &[u8]) -> Result<Self, String> {
        let json: Json = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let logits = matrix("logits", json.logits)?;
        Ok(Self {
            offsets: json.sequences.map_or(Ok(vec![]), |lengths| offsets(&lengths, logits.nrows()))?,
            token_ids: json.token_ids,
            padding: json.mask.map(|mask| mask.iter().map(|bit| !bit.0).collect()),
            bias: json.bias.map(|bias| bias.iter().map(|number| number.0).collect()),
            noise_logits: json.noise_logits.map(|rows| matrix("noise_logits", rows)).transpose()?,
            logits,
        })
    }

    fn of_tensors(bytes: &[u8], name: &str) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let optional = |name: &str| file.tensor(name).ok();
        let Some(logits) = optional(name) else {
            let mut names = file.names();
            names.sort_unstable();
            return Err(format!("expected a tensor {name}, found {}", names.join(", ")));
        };
        let list = |name: &'static str| optional(name).map(|view| vector(name, &view)).transpose();
        let ids = list("token_ids")?.map(|ids| ids.into_iter().map(token_id).collect()).transpose()?;
        let mask = list("mask")?.map(|mask| mask.into_iter().map(bit).collect::<Result<Vec<_>, _>>());
        Ok(Self {
            logits: tensor_matrix(name, &logits)?,
            token_ids: ids,
            padding: mask.transpose()?.map(|mask| mask.iter().map(|real| !real).collect()),
            offsets: vec![],
            bias: list("bias")?.map(|bias| bias.into_iter().map(|x| x as f32).collect()),
            noise_logits: optional("noise_logits")
                .map(|view| tensor_matrix("noise_logits", &view))
                .transpose()?,
        })
    }
}

/// The header's length comes first, then the header, a JSON object. Read as a length, the start of a JSON file is far beyond
/// any file's end.
fn is_safetensors(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk().map(|start| u64::from_le_bytes(*start));
    length.is_some_and(|length| length < 1 << 32 && bytes.get(8) == Some(&b'{'))
}

fn matrix(name: &str, rows: Vec<Vec<Number>>) -> Result<Array2<f32>, String> {
    let (tokens, experts) = (rows.len(), rows.first().map_or(0, Vec::len));
    require_some(name, tokens, experts)?;
    if let Some((t, row)) = rows.iter().enumerate().find(|(_, row)| row.len() != experts) {
        return Err(format!("{name}: row {t}: expected {experts} numbers as in row 0, found {}", row.len()));
    }
    let numbers: Vec<f32> = rows.into_iter().flatten().map(|number| number.0).collect();
    Array2::from_shape_vec((tokens, experts), numbers).map_err(|error| format!("{name}: {error}"))
}

fn tensor_matrix(name: &str, view: &TensorView<'_>) -> Result<Array2<f32>, String> {
    let &[tokens, experts] = view.shape() else {
        return Err(format!("{name}: expected shape [tokens, experts], found {:?}", view.shape()));
    };
    require_some(name, tokens, experts)?;
    if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(format!("{name}: expected F32, F16 or BF16, found {:?}", view.dtype()));
    }
    let numbers = numbers(name, view)?.into_iter().map(|x| x as f32).collect();
    Array2::from_shape_vec((tokens, experts), numbers).map_err(|error| format!("{name}: {error}"))
}

fn require_some(name: &str, tokens: usize, experts: usize) -> Result<(), String> {
    if tokens == 0 || experts == 0 {
        return Err(format!(
            "{name}: expected at least one token and one expert, found [{tokens}, {experts}]"
        ));
    }
    Ok(())
}

fn vector(name: &str, view: &TensorView<'_>) -> Result<Vec<f64>, String> {
    match view.shape() {
        [_] => numbers(name, view),
        shape => Err(format!("{name}: expected one number a token or expert, found shape {shape:?}")),
    }
}

/// All elements; the f64 holds each exactly, but for whole numbers beyond 2⁵³.
fn numbers(name: &str, view: &TensorView<'_>) -> Result<Vec<f64>, String> {
    fn each<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
    }
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => each(data, |b| f32::from_le_bytes(b).into()),
        Dtype::F16 => each(data, |b| f16::from_le_bytes(b).into()),
        Dtype::BF16 => each(data, |b| bf16::from_le_bytes(b).into()),
        Dtype::I64 => each(data, |b| i64::from_le_bytes(b) as f64),
        Dtype::I32 => each(data, |b| i32::from_le_bytes(b).into()),
        Dtype::U32 => each(data, |b| u32::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::BOOL => each(data, |[b]| b.into()),
        other => return Err(format!("{name}: expected numbers of a common type, found {other:?}")),
    })
}

fn token_id(x: f64) -> Result<u32, String> {
    let id = x as u32;
    if f64::from(id) == x { Ok(id) } else { Err(format!("token_ids: expected 0 to 4294967295, found {x}")) }
}

fn bit(x: f64) -> Result<bool, String> {
    match x {
        0.0 => Ok(false),
        1.0 => Ok(true),
        _ => Err(format!("mask: expected 1 for a real token, 0 for padding, found {x}")),
    }
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

/// A number, or one of the words that JSON has none for.
#[derive(Clone, Copy)]
struct Number(f32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl Visitor<'_> for Numbers {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, \"nan\", \"inf\" or \"-inf\"")
            }

            fn visit_f64<E>(self, x: f64) -> Result<Number, E> {
                Ok(Number(x as f32))
            }

            fn visit_u64<E>(self, n: u64) -> Result<Number, E> {
                Ok(Number(n as f32))
            }

            fn visit_i64<E>(self, n: i64) -> Result<Number, E> {
                Ok(Number(n as f32))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                match text {
                    "nan" => Ok(Number(f32::NAN)),
                    "inf" => Ok(Number(f32::INFINITY)),
                    "-inf" => Ok(Number(f32::NEG_INFINITY)),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

/// 1 or true, 0 or false.
#[derive(Clone, Copy)]
struct Bit(bool);

impl<'de> Deserialize<'de> for Bit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bits;
        impl Visitor<'_> for Bits {
            type Value = Bit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("1 for a real token or 0 for padding")
            }

            fn visit_bool<E>(self, real: bool) -> Result<Bit, E> {
                Ok(Bit(real))
            }

            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Bit, E> {
                if n < 2 { Ok(Bit(n == 1)) } else { Err(E::invalid_value(Unexpected::Unsigned(n), &self)) }
            }
        }
        deserializer.deserialize_any(Bits)
    }
}
