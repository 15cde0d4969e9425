//! Reading files that nobody vouches for: regular files only, of bounded size, and JSON without repeated keys.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use moe_core::{OutOfMemory, memory};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Opens a regular file and returns it with its length; symbolic links are followed.
///
/// The kind is looked at before opening, because opening a pipe without a writer would wait for one, and again on
/// the open file, because the name may have changed hands in between.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    require_regular(path, &fs::metadata(path).map_err(io)?)?;
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    require_regular(path, &metadata)?;
    Ok((file, metadata.len()))
}

fn require_regular(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a directory" } else { "a pipe, socket or device" };
    Err(Error::checkpoint(path, "a regular file", found))
}

/// The whole of a regular file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    let too_long =
        |found: u64| Error::checkpoint(path, format!("at most {limit} bytes"), format!("{found} bytes"));
    if length > limit {
        return Err(too_long(length));
    }
    let mut bytes = Vec::new();
    memory::reserve(&mut bytes, usize::try_from(length).unwrap_or(usize::MAX), "a file")?;
    // One byte beyond the limit tells a file that has grown since from one that just fits.
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
    if bytes.len() as u64 > limit {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Parses a JSON object in which no key, at any depth, occurs twice.
pub(crate) fn json_object(bytes: &[u8], path: &Path) -> Result<Map<String, Value>> {
    require_memory(bytes, VALUE)?;
    let Object(map) =
        serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    Ok(map)
}

/// Bytes that go with a value of JSON: it, its key, and their places in lists and maps that double.
const VALUE: usize = 128;

/// Refuses JSON for which there is no memory: a parser ends the process where there is none, so that as much is asked for at once
/// before, and given back. With each value go `each` bytes, in what is made of it too.
pub(crate) fn require_memory(json: &[u8], each: usize) -> Result<(), OutOfMemory> {
    let values = json.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count();
    // Texts of the file are there twice.
    require(json.len().saturating_mul(2).saturating_add(values.saturating_mul(each)), "values of JSON")
}

/// Refuses `what` needs more memory than there is.
pub(crate) fn require(bytes: usize, what: &'static str) -> Result<(), OutOfMemory> {
    memory::reserve(&mut Vec::<u8>::new(), bytes, what)
}

/// A JSON value in an error message: its text, cut where it becomes long.
pub(crate) fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Object, A::Error> {
                unique(access).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// Any JSON value; its objects are held to [`unique`].
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StrictVisitor;
        impl<'de> Visitor<'de> for StrictVisitor {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Strict(item)) = access.next_element()? {
                    items.push(item);
                }
                Ok(items.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
                unique(access).map(Value::Object)
            }
        }
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

fn unique<'de, A: MapAccess<'de>>(mut access: A) -> Result<Map<String, Value>, A::Error> {
    let mut map = Map::new();
    while let Some(key) = access.next_key::<String>()? {
        let Strict(value) = access.next_value()?;
        if map.contains_key(&key) {
            return Err(A::Error::custom(format_args!("key {key:?} occurs twice")));
        }
        map.insert(key, value);
    }
    Ok(map)
}
