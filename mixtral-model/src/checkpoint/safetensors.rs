//! The header of a safetensors file, parsed and checked without touching the data.
//!
//! A file is an eight-byte little-endian length, a JSON object of that length, and the data, which the ranges of the
//! object's entries must cover exactly, without holes or overlaps. The element types are those of the `safetensors`
//! crate. Its `read_metadata` is not called: it keeps the last of two entries of one name, buffers the object a second
//! time, and adds the data's end to the header's length unchecked. What is accepted here, it accepts too.

use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{Entry, StoredType, brief_shape, tensor_error};
use crate::input::require_memory;
use crate::{Error, Result};

/// Bytes of the length before the header.
pub(super) const LENGTH_BYTES: usize = 8;

/// Longest header that is read: some hundred thousand tensors. The published 8x7B shards have about 7 KiB each.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// The header's length in a file of `file_len` bytes that begins with `start`.
pub(super) fn header_len(start: &[u8], file_len: u64, path: &Path) -> Result<usize> {
    let Some(&start) = start.first_chunk::<LENGTH_BYTES>() else {
        return Err(Error::checkpoint(path, "a safetensors file", format!("a file of {file_len} bytes")));
    };
    if let Some(kind) = foreign_file(&start) {
        return Err(Error::checkpoint(path, "a safetensors file", kind.to_owned()));
    }
    let claimed = u64::from_le_bytes(start);
    let most = file_len.saturating_sub(LENGTH_BYTES as u64).min(MAX_HEADER_BYTES);
    match usize::try_from(claimed) {
        Ok(len) if (2..=most).contains(&claimed) => Ok(len),
        _ => Err(Error::checkpoint(
            path,
            format!("a header of 2 to {most} bytes"),
            format!("a length of {claimed}"),
        )),
    }
}

/// Parses a header that is followed by `data_len` bytes of data. Entries come in the order of their data.
pub(super) fn parse(header: &[u8], data_len: u64, path: &Path) -> Result<Vec<Entry>> {
    // Nine values are a tensor, with its name here and there.
    require_memory(header, 64)?;
    let Entries(mut entries) =
        serde_json::from_slice(header).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    entries.sort_by(|(a, x), (b, y)| (x.data_offsets, a).cmp(&(y.data_offsets, b)));
    if let Some(name) = repeated_name(&entries) {
        return Err(tensor_error(path, name, "one entry".to_owned(), "several".to_owned()));
    }
    let mut covered = 0;
    let mut checked = Vec::with_capacity(entries.len());
    for (name, Info { dtype, shape, data_offsets: (begin, end) }) in entries {
        let stored = StoredType::Safetensors(dtype);
        let bytes = stored.byte_len(&shape);
        if begin != covered || bytes.is_none_or(|bytes| begin.checked_add(bytes) != Some(end)) {
            let bytes = bytes.map_or("uncountable".to_owned(), |bytes| bytes.to_string());
            let expected =
                format!("the {bytes} bytes of {dtype} {} from offset {covered}", brief_shape(&shape));
            return Err(tensor_error(path, &name, expected, format!("bytes {begin} to {end}")));
        }
        covered = end;
        checked.push(Entry { name, stored, shape, begin, end });
    }
    if covered as u64 != data_len {
        return Err(Error::checkpoint(path, format!("{covered} bytes of data"), format!("{data_len}")));
    }
    Ok(checked)
}

fn repeated_name(entries: &[(String, Info)]) -> Option<&str> {
    let mut names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// What else a file may be, by its first bytes.
fn foreign_file(start: &[u8; LENGTH_BYTES]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 6] = [
        (b"GGUF", "a GGUF file"),
        (b"PK\x03\x04", "a zip archive, as torch.save writes"),
        (b"version ", "a Git LFS pointer, not the file it stands for"),
        (b"\x1f\x8b", "a gzip file"),
        (b"<html", "a web page"),
        (b"<!", "a web page"),
    ];
    kinds.into_iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, kind)| kind)
}

/// The value of one entry, as the format has it and nothing besides.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header's entries in the order of the text, `__metadata__` left out.
struct Entries(Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = access.next_key::<String>()? {
                    if name == "__metadata__" {
                        access.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let info =
                        access.next_value().map_err(|e| A::Error::custom(format_args!("{name}: {e}")))?;
                    entries.push((name, info));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}
