//! The form in JSON.

use std::fmt;

use ndarray::Array2;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Unexpected, Visitor};

use super::Parts;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    logits: Vec<Vec<Number>>,
    token_ids: Option<Vec<u32>>,
    mask: Option<Vec<Bit>>,
    positions: Option<Vec<usize>>,
    sequences: Option<Vec<usize>>,
    sequence_ids: Option<Vec<u64>>,
    bias: Option<Vec<Number>>,
    noise: Option<Vec<Vec<Number>>>,
    noise_logits: Option<Vec<Vec<Number>>>,
}

/// An object with these keys. The derived impl would take an array of their values too.
struct Object(Keys);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Objects;
        impl<'de> Visitor<'de> for Objects {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object {\"logits\": [[...]], ...}")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object, A::Error> {
                Keys::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_any(Objects)
    }
}

pub(super) fn parts(bytes: &[u8]) -> Result<Parts, String> {
    let Object(json) = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok(Parts {
        logits: matrix("logits", json.logits)?,
        token_ids: json.token_ids,
        mask: json.mask.map(|mask| mask.iter().map(|bit| bit.0).collect()),
        positions: json.positions,
        sequences: json.sequences,
        sequence_ids: json.sequence_ids,
        bias: json.bias.map(bias).transpose()?,
        noise: json.noise.map(|rows| matrix("noise", rows)).transpose()?,
        noise_logits: json.noise_logits.map(|rows| matrix("noise_logits", rows)).transpose()?,
    })
}

fn matrix(name: &str, rows: Vec<Vec<Number>>) -> Result<Array2<f32>, String> {
    let shape = (rows.len(), rows.first().map_or(0, Vec::len));
    if let Some((t, row)) = rows.iter().enumerate().find(|(_, row)| row.len() != shape.1) {
        let (expected, found) = (shape.1, row.len());
        return Err(format!("{name}: row {t}: expected {expected} numbers as in row 0, found {found}"));
    }
    super::narrowed_rows(name, shape, rows.iter().flatten().map(|number| number.0))
}

fn bias(numbers: Vec<Number>) -> Result<Vec<f32>, String> {
    super::narrowed(numbers.iter().map(|number| number.0), |e| format!("bias: entry {e}"))
}

/// A number, or one of the words that JSON has none for.
#[derive(Clone, Copy)]
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl Visitor<'_> for Numbers {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, \"nan\", \"inf\" or \"-inf\"")
            }

            fn visit_f64<E>(self, x: f64) -> Result<Number, E> {
                Ok(Number(x))
            }

            fn visit_u64<E>(self, n: u64) -> Result<Number, E> {
                Ok(Number(n as f64))
            }

            fn visit_i64<E>(self, n: i64) -> Result<Number, E> {
                Ok(Number(n as f64))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                match text {
                    "nan" => Ok(Number(f64::NAN)),
                    "inf" => Ok(Number(f64::INFINITY)),
                    "-inf" => Ok(Number(f64::NEG_INFINITY)),
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
