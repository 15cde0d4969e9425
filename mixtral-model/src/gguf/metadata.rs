//! The keys of a GGUF file and their values.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use moe_core::memory;

use super::reader::Reader;
use super::write::Field;
use crate::input::{brief, open_regular};
use crate::{Error, Result};

/// Arrays in arrays, which no key of a language model needs, are read to this depth.
const MAX_DEPTH: u32 = 4;

/// A value, widened: of which width a number is written is no part of its meaning.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

/// Keys and values of a file.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
    /// Where in the file each key's type and value are, in the order of the file.
    spans: Vec<(String, Range<u64>)>,
}

impl Metadata {
    /// Reads so many keys.
    pub(super) fn read(reader: &mut Reader<'_, impl Read>, keys: u64) -> Result<Self> {
        let path = reader.path().to_path_buf();
        let mut this = Self { path, values: BTreeMap::new(), spans: Vec::new() };
        for _ in 0..keys {
            let key = reader.string("a key")?;
            let begin = reader.position();
            let kind = reader.u32("a value's type")?;
            let value = value(reader, kind, &key, 0)?;
            if this.values.contains_key(&key) {
                return Err(this.error(&key, "one value"));
            }
            this.spans.push((key.clone(), begin..reader.position()));
            this.values.insert(key, value);
        }
        Ok(this)
    }

    /// The file they are from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, ascending.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The keys that `wanted` takes with their values as the file has them, read from it again.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::OutOfMemory`].
    pub(crate) fn verbatim(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Field)>> {
        let (mut file, _) = open_regular(&self.path)?;
        let io = |source| Error::Io { path: self.path.clone(), source };
        let mut fields = Vec::new();
        for (key, span) in self.spans.iter().filter(|(key, _)| wanted(key)) {
            // The header was read into memory in one piece before, so that its parts have lengths that fit.
            let mut bytes = Vec::new();
            memory::refill(&mut bytes, (span.end - span.start) as usize, 0, "a value")?;
            file.seek(SeekFrom::Start(span.start)).map_err(io)?;
            file.read_exact(&mut bytes).map_err(io)?;
            fields.push((key.clone(), Field::Raw(bytes)));
        }
        Ok(fields)
    }

    /// The error that a key is not what was expected.
    pub(crate) fn error(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            field: key.chars().take(200).flat_map(char::escape_debug).collect(),
            expected: expected.into(),
            found: self.get(key).map_or_else(|| "nothing".to_owned(), Value::describe),
        }
    }

    /// A non-negative integer. Of an array, as some files have it for each layer, all items must be the same.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = match value {
            Value::List(items) => items
                .first()
                .and_then(Value::size)
                .filter(|first| items.iter().all(|item| item.size() == Some(*first))),
            value => value.size(),
        };
        size.map(Some).ok_or_else(|| self.error(key, "a non-negative integer"))
    }

    /// A non-negative integer that has no default.
    pub(crate) fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.error(key, "a positive integer"))
    }

    /// A token id.
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>> {
        let Some(size) = self.size(key)? else { return Ok(None) };
        u32::try_from(size).map(Some).map_err(|_| self.error(key, "a token id"))
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.number().map(Some).ok_or_else(|| self.error(key, "a number"))
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.error(key, "true or false")),
        }
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(key, "a string")),
        }
    }

    /// An array of things that `item` takes, `what` they are.
    pub(crate) fn list<'a, T>(
        &'a self,
        key: &str,
        what: &str,
        item: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let items = match self.get(key) {
            None => return Ok(None),
            Some(Value::List(items)) => items.iter().map(item).collect::<Option<Vec<T>>>(),
            Some(_) => None,
        };
        items.map(Some).ok_or_else(|| self.error(key, format!("an array of {what}")))
    }
}

impl Value {
    pub(crate) fn size(&self) -> Option<usize> {
        match *self {
            Self::Unsigned(n) => usize::try_from(n).ok(),
            Self::Signed(n) => usize::try_from(n).ok(),
            _ => None,
        }
    }

    pub(crate) fn number(&self) -> Option<f64> {
        match *self {
            Self::Float(value) => Some(value),
            Self::Unsigned(n) => Some(n as f64),
            Self::Signed(n) => Some(n as f64),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As it is written in messages.
    fn describe(&self) -> String {
        match self {
            Self::Unsigned(n) => n.to_string(),
            Self::Signed(n) => n.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::Text(text) => brief(&serde_json::Value::from(text.as_str())),
            Self::List(items) => format!("an array of {} items", items.len()),
        }
    }
}

/// Reads a value of a type, by the number that the format has for it.
fn value(reader: &mut Reader<'_, impl Read>, kind: u32, key: &str, depth: u32) -> Result<Value> {
    let what = "a value";
    Ok(match kind {
        0 => Value::Unsigned(reader.array(what).map(u8::from_le_bytes)?.into()),
        1 => Value::Signed(reader.array(what).map(i8::from_le_bytes)?.into()),
        2 => Value::Unsigned(reader.array(what).map(u16::from_le_bytes)?.into()),
        3 => Value::Signed(reader.array(what).map(i16::from_le_bytes)?.into()),
        4 => Value::Unsigned(reader.u32(what)?.into()),
        5 => Value::Signed(reader.array(what).map(i32::from_le_bytes)?.into()),
        6 => Value::Float(reader.array(what).map(f32::from_le_bytes)?.into()),
        7 => Value::Bool(reader.array(what)? != [0u8]),
        8 => Value::Text(reader.string("a string")?),
        9 => {
            let kind = reader.u32("an array's type")?;
            let count = reader.items()?;
            if depth == MAX_DEPTH {
                let expected = format!("key {key:.100}: arrays nested at most {MAX_DEPTH} deep");
                return Err(Error::checkpoint(reader.path(), &expected, "more"));
            }
            let mut items = Vec::new();
            for _ in 0..count {
                let item = value(reader, kind, key, depth + 1)?;
                memory::push(&mut items, item, "an array")?;
            }
            Value::List(items)
        }
        10 => Value::Unsigned(reader.u64(what)?),
        11 => Value::Signed(reader.array(what).map(i64::from_le_bytes)?),
        12 => Value::Float(reader.array(what).map(f64::from_le_bytes)?),
        _ => {
            let expected = format!("key {}: a type of 0 to 12", key.escape_debug());
            return Err(Error::checkpoint(reader.path(), expected, format!("type {kind}")));
        }
    })
}
