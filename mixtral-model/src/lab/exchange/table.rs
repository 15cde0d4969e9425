//! Lists and tables of numbers in JSON, whose lengths nobody vouches for.

use std::fmt;
use std::marker::PhantomData;

use moe_core::memory;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

/// A list of numbers.
#[derive(Debug)]
pub(super) struct List<T>(pub(super) Vec<T>);

/// A list of lists of the same length, one after the other.
#[derive(Debug)]
pub(super) struct Table<T> {
    pub(super) values: Vec<T>,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Table<T> {
    /// One of its rows.
    pub(super) fn row(&self, row: usize) -> &[T] {
        self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        let mut values = Vec::new();
        Row(&mut values).deserialize(source)?;
        Ok(Self(values))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        source.deserialize_seq(Rows(PhantomData))
    }
}

/// Adds a list to one, and gives how long it is.
struct Row<'a, T>(&'a mut Vec<T>);

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Row<'_, T> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<usize, D::Error> {
        source.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Row<'_, T> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
        let before = self.0.len();
        while let Some(value) = list.next_element()? {
            memory::push(self.0, value, "numbers of a trace").map_err(A::Error::custom)?;
        }
        Ok(self.0.len() - before)
    }
}

struct Rows<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Rows<T> {
    type Value = Table<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of lists of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut lists: A) -> Result<Table<T>, A::Error> {
        let mut table = Table { values: Vec::new(), rows: 0, width: 0 };
        while let Some(width) = lists.next_element_seed(Row(&mut table.values))? {
            if table.rows > 0 && width != table.width {
                return Err(A::Error::custom(format_args!(
                    "a list of {width} numbers after one of {}",
                    table.width
                )));
            }
            (table.rows, table.width) = (table.rows + 1, width);
        }
        Ok(table)
    }
}
