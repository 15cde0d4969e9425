//! The form of a safetensors file. Tensors of other names are not looked at.

use std::fmt;

use half::{bf16, f16};
use moe_core::memory;
use ndarray::Array2;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Parts, narrowed, narrowed_rows};

/// `logits` is the logits' name.
pub(super) fn parts(bytes: &[u8], logits: &str) -> Result<Parts, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |name: &str| file.tensor(name).ok();
    let Some(view) = tensor(logits) else {
        let mut names = file.names();
        names.sort_unstable();
        return Err(format!("expected a tensor {logits}, found {}", names.join(", ")));
    };
    let rows = |name: &str, columns| tensor(name).map(|view| matrix(name, &view, columns)).transpose();
    Ok(Parts {
        logits: matrix(logits, &view, "experts")?,
        token_ids: tensor("token_ids").map(|view| whole("token_ids", &view)).transpose()?,
        mask: tensor("mask").map(|view| mask(&view)).transpose()?,
        positions: tensor("positions").map(|view| whole("positions", &view)).transpose()?,
        sequences: tensor("sequences").map(|view| whole("sequences", &view)).transpose()?,
        sequence_ids: tensor("sequence_ids").map(|view| whole("sequence_ids", &view)).transpose()?,
        bias: tensor("bias").map(|view| bias(&view)).transpose()?,
        noise: rows("noise", "columns")?,
        noise_logits: rows("noise_logits", "experts")?,
    })
}

/// Refuses a file in which two tensors have one name: the crate that reads it keeps the last of them.
pub(super) fn check_names(bytes: &[u8]) -> Result<(), String> {
    /// Bytes that go with a value of the header, of which a tensor has nine.
    const VALUE: usize = 64;
    let header = bytes.split_first_chunk().and_then(|(len, rest)| {
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        rest.get(..len)
    });
    // What is wrong with it otherwise is told by who reads it.
    let Some(header) = header else { return Ok(()) };
    let values = header.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count();
    let needed = values.saturating_mul(VALUE).saturating_add(header.len().saturating_mul(4));
    memory::reserve(&mut Vec::<u8>::new(), needed, "names of tensors").map_err(|error| error.to_string())?;
    let Ok(Names(mut names)) = serde_json::from_slice(header) else { return Ok(()) };
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(format!("{}: expected one tensor of this name, found several", pair[0].escape_debug()))
        }
        None => Ok(()),
    }
}

/// The keys of an object, as often as each is there.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Why `logits` are not those of a gate, if they stand beside such: a model's logits over its vocabulary.
pub(super) fn of_vocabulary(bytes: &[u8]) -> Result<Option<String>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut names = file.names();
    names.retain(|name| name.starts_with("router_logits."));
    names.sort_unstable();
    let (Ok(view), Some(first)) = (file.tensor("logits"), names.first()) else { return Ok(None) };
    Ok(Some(format!(
        "logits: expected numbers of experts, found shape {:?} beside {first}: those of the vocabulary; \
         --tensor {first} takes a layer's",
        view.shape()
    )))
}

fn matrix(name: &str, view: &TensorView<'_>, columns: &str) -> Result<Array2<f32>, String> {
    let &[rows, of_row] = view.shape() else {
        return Err(format!("{name}: expected shape [tokens, {columns}], found {:?}", view.shape()));
    };
    narrowed_rows(name, (rows, of_row), floats(name, view)?.into_iter())
}

fn bias(view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    require_list("bias", "an expert", view)?;
    narrowed(floats("bias", view)?.into_iter(), |e| format!("bias: entry {e}"))
}

fn mask(view: &TensorView<'_>) -> Result<Vec<bool>, String> {
    require_list("mask", "a token", view)?;
    let bit = |(t, &n): (usize, &i128)| match n {
        0 | 1 => Ok(n == 1),
        _ => Err(format!("mask: entry {t}: expected 1 for a real token, 0 for padding, found {n}")),
    };
    gathered(bits(view)?.iter().enumerate().map(bit))
}

/// A list of whole numbers that are not negative and not too great.
fn whole<T: TryFrom<i128>>(name: &str, view: &TensorView<'_>) -> Result<Vec<T>, String> {
    require_list(
        name,
        if name == "sequences" || name == "sequence_ids" { "a sequence" } else { "a token" },
        view,
    )?;
    let number = |(i, &n): (usize, &i128)| {
        let most = 8 * size_of::<T>();
        T::try_from(n)
            .map_err(|_| format!("{name}: entry {i}: expected 0 or more, below 2^{most}, found {n}"))
    };
    gathered(integers(name, view)?.iter().enumerate().map(number))
}

/// All of these, or the first error.
fn gathered<T>(mut entries: impl Iterator<Item = Result<T, String>>) -> Result<Vec<T>, String> {
    let mut list = Vec::new();
    entries
        .try_for_each(|entry| memory::push(&mut list, entry?, "a list").map_err(|error| error.to_string()))?;
    Ok(list)
}

fn require_list(name: &str, of: &str, view: &TensorView<'_>) -> Result<(), String> {
    match view.shape() {
        [_] => Ok(()),
        shape => Err(format!("{name}: expected one number {of}, found shape {shape:?}")),
    }
}

fn floats(name: &str, view: &TensorView<'_>) -> Result<Vec<f64>, String> {
    let data = view.data();
    match view.dtype() {
        Dtype::F64 => each(data, f64::from_le_bytes),
        Dtype::F32 => each(data, |b| f32::from_le_bytes(b).into()),
        Dtype::F16 => each(data, |b| f16::from_le_bytes(b).into()),
        Dtype::BF16 => each(data, |b| bf16::from_le_bytes(b).into()),
        other => Err(format!("{name}: expected F64, F32, F16 or BF16, found {other:?}")),
    }
}

const INTEGERS: &str = "I64, U64, I32, U32, I16, U16, I8 or U8";

fn integers(name: &str, view: &TensorView<'_>) -> Result<Vec<i128>, String> {
    let data = view.data();
    match view.dtype() {
        Dtype::I64 => each(data, |b| i64::from_le_bytes(b).into()),
        Dtype::U64 => each(data, |b| u64::from_le_bytes(b).into()),
        Dtype::I32 => each(data, |b| i32::from_le_bytes(b).into()),
        Dtype::U32 => each(data, |b| u32::from_le_bytes(b).into()),
        Dtype::I16 => each(data, |b| i16::from_le_bytes(b).into()),
        Dtype::U16 => each(data, |b| u16::from_le_bytes(b).into()),
        Dtype::I8 => each(data, |b| i8::from_le_bytes(b).into()),
        Dtype::U8 => each(data, |[b]| b.into()),
        other => Err(format!("{name}: expected {INTEGERS}, found {other:?}")),
    }
}

fn bits(view: &TensorView<'_>) -> Result<Vec<i128>, String> {
    match view.dtype() {
        Dtype::BOOL => each(view.data(), |[b]| b.into()),
        other => {
            integers("mask", view).map_err(|_| format!("mask: expected BOOL, {INTEGERS}, found {other:?}"))
        }
    }
}

fn each<T, const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
    let chunks = data.as_chunks().0;
    let mut numbers = Vec::new();
    memory::reserve(&mut numbers, chunks.len(), "numbers of a tensor").map_err(|error| error.to_string())?;
    numbers.extend(chunks.iter().map(|bytes| number(*bytes)));
    Ok(numbers)
}
