//! The form in JSON.

use std::fmt;
use std::marker::PhantomData;

use moe_core::memory;
use ndarray::Array2;
use serde::de::value::MapAccessDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::Parts;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    logits: Matrix,
    token_ids: Option<List<u32>>,
    mask: Option<List<Bit>>,
    positions: Option<List<usize>>,
    sequences: Option<List<usize>>,
    sequence_ids: Option<List<u64>>,
    bias: Option<List<Number>>,
    noise: Option<Matrix>,
    noise_logits: Option<Matrix>,
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
        logits: json.logits.named("logits")?,
        token_ids: json.token_ids.map(|list| list.0),
        mask: json.mask.map(bits).transpose()?,
        positions: json.positions.map(|list| list.0),
        sequences: json.sequences.map(|list| list.0),
        sequence_ids: json.sequence_ids.map(|list| list.0),
        bias: json.bias.map(bias).transpose()?,
        noise: json.noise.map(|rows| rows.named("noise")).transpose()?,
        noise_logits: json.noise_logits.map(|rows| rows.named("noise_logits")).transpose()?,
    })
}

fn bits(mask: List<Bit>) -> Result<Vec<bool>, String> {
    let mut bits = Vec::new();
    let values = mask.0.iter().map(|bit| bit.0);
    memory::refill_from(&mut bits, mask.0.len(), values, "a list").map_err(|error| error.to_string())?;
    Ok(bits)
}

fn bias(numbers: List<Number>) -> Result<Vec<f32>, String> {
    super::narrowed(numbers.0.iter().map(|number| number.0), |e| format!("bias: entry {e}"))
}

/// A list that is an error where memory has no room for it.
struct List<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = List<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    memory::reserve(&mut entries, 1, "a list").map_err(A::Error::custom)?;
                    entries.push(entry);
                }
                Ok(List(entries))
            }
        }
        deserializer.deserialize_seq(Entries(PhantomData))
    }
}

/// Rows of numbers, kept as one list of f32, whatever they are in the file.
#[derive(Default)]
struct Matrix {
    values: Vec<f32>,
    rows: usize,
    /// Of the first row.
    columns: usize,
    /// The first row of another length, and that.
    ragged: Option<(usize, usize)>,
    /// Row and column of the first number that is finite and f32 has not, and that.
    too_great: Option<(usize, usize, f64)>,
    /// The shape of the first list in the place of a number.
    deeper: Option<Vec<usize>>,
}

impl Matrix {
    /// The rows, unless something is wrong with them.
    fn named(self, name: &str) -> Result<Array2<f32>, String> {
        let Self { values, rows, columns, ragged, too_great, deeper } = self;
        if let Some(inner) = deeper {
            let shape = [&[rows, columns], &*inner].concat();
            return Err(format!("{name}: expected a matrix of numbers, found shape {shape:?}"));
        }
        if let Some((row, found)) = ragged {
            return Err(format!("{name}: row {row}: expected {columns} numbers as in row 0, found {found}"));
        }
        if let Some((row, column, x)) = too_great {
            let place = format!("{name}: row {row}, column {column}");
            return Err(format!("{place}: expected a number of f32, found {x:e}"));
        }
        Array2::from_shape_vec((rows, columns), values).map_err(|error| format!("{name}: {error}"))
    }
}

impl<'de> Deserialize<'de> for Matrix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = Matrix;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<Matrix, A::Error> {
                let mut matrix = Matrix::default();
                while rows.next_element_seed(Row(&mut matrix))?.is_some() {}
                Ok(matrix)
            }
        }
        deserializer.deserialize_seq(Rows)
    }
}

/// The next row of a matrix.
struct Row<'m>(&'m mut Matrix);

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> Result<(), A::Error> {
        let Matrix { values, rows, columns, ragged, too_great, deeper } = self.0;
        let mut count = 0;
        while let Some(cell) = row.next_element()? {
            let x = match cell {
                Cell::Number(x) => x,
                Cell::List(shape) => {
                    deeper.get_or_insert(shape);
                    f64::NAN
                }
            };
            let narrow = x as f32;
            if narrow.is_infinite() && x.is_finite() {
                too_great.get_or_insert((*rows, count, x));
            }
            // What is wrong already is not kept.
            if ragged.is_none() && (*rows == 0 || count < *columns) {
                memory::reserve(values, 1, "a matrix").map_err(A::Error::custom)?;
                values.push(narrow);
            }
            count += 1;
        }
        if *rows == 0 {
            *columns = count;
        } else if count != *columns {
            ragged.get_or_insert((*rows, count));
        }
        *rows += 1;
        Ok(())
    }
}

/// A number, or one of the words that JSON has none for.
#[derive(Clone, Copy)]
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Cell::deserialize(deserializer)? {
            Cell::Number(x) => Ok(Self(x)),
            Cell::List(_) => Err(D::Error::invalid_type(Unexpected::Seq, &Cells)),
        }
    }
}

/// What stands in the place of a number.
enum Cell {
    Number(f64),
    /// A list, and its shape, as its first entries have it.
    List(Vec<usize>),
}

struct Cells;

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Cells)
    }
}

impl<'de> Visitor<'de> for Cells {
    type Value = Cell;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, \"nan\", \"inf\" or \"-inf\"")
    }

    fn visit_f64<E>(self, x: f64) -> Result<Cell, E> {
        Ok(Cell::Number(x))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Cell, E> {
        Ok(Cell::Number(n as f64))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Cell, E> {
        Ok(Cell::Number(n as f64))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cell, E> {
        match text {
            "nan" => Ok(Cell::Number(f64::NAN)),
            "inf" => Ok(Cell::Number(f64::INFINITY)),
            "-inf" => Ok(Cell::Number(f64::NEG_INFINITY)),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Cell, A::Error> {
        let (mut count, mut inner) = (0, vec![]);
        while let Some(cell) = list.next_element()? {
            if let (0, Cell::List(shape)) = (count, cell) {
                inner = shape;
            }
            count += 1;
        }
        inner.insert(0, count);
        Ok(Cell::List(inner))
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
