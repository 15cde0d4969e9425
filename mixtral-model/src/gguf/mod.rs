//! GGUF files, the container in which llama.cpp and its kin keep a model: metadata, then tensors.
//!
//! ```text
//! "GGUF"  version u32  tensors u64  keys u64
//! keys  × { key string, type u32, value }              string: length u64, UTF-8
//! tensors × { name string, dimensions u32, each u64 (innermost first), element type u32, offset u64 }
//! padding to the alignment, then each tensor's bytes, padded to the alignment
//! ```
//!
//! All numbers are little-endian. Versions 2 and 3 are the same for files of that order; version 1, with shorter counts, went
//! out of use in August 2023. Files are untrusted: whatever a count or a length claims is checked against the file's real size and a
//! limit before memory is taken for it, and tensors must follow each other in the order of their list without gaps, as
//! ggml demands.

mod config;
mod metadata;
mod reader;
mod split;
mod vocabulary;
mod write;

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

pub(crate) use metadata::{Metadata, Value};
pub(crate) use split::{Parts, parts};
pub(crate) use write::{Field, Listed, header as write_header, padding};

use crate::checkpoint::{Entry, StoredType, tensor_error};
use crate::input::require;
use crate::{Error, Result};
use reader::Reader;

/// What a file begins with.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";

/// Most tensors that a file may list. Mixtral 8x7B has 995 in the layout with the most.
const MAX_TENSORS: u64 = 1 << 17;

/// Most keys.
const MAX_KEYS: u64 = 1 << 16;

/// Most dimensions, as in ggml.
const MAX_DIMENSIONS: u32 = 4;

/// Where a tensor begins, unless the metadata say otherwise, is a multiple of this.
const DEFAULT_ALIGNMENT: usize = 32;

/// What a file says before its tensors' bytes.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) metadata: Metadata,
    /// In the order of the file; shapes have the innermost dimension last, as everywhere here.
    pub(crate) entries: Vec<Entry>,
    /// Where the tensors' bytes begin.
    pub(crate) data: u64,
}

impl Header {
    /// Reads the header of a file of `len` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Checkpoint`] where this is no GGUF file of version 2 or 3, ends too early, or claims more than a
    /// limit; [`Error::Config`] for impossible metadata; [`Error::Tensor`] for an impossible tensor.
    pub(crate) fn read(source: impl Read, len: u64, path: &Path) -> Result<Self> {
        let mut reader = Reader::new(source, len, path);
        let magic = reader.array::<4>("the magic")?;
        if &magic != MAGIC {
            return Err(Error::checkpoint(
                path,
                "a GGUF file, which begins with the magic GGUF",
                format!("{magic:?}"),
            ));
        }
        let version = reader.u32("the version")?;
        if !matches!(version, 2 | 3) {
            let found = match version.swap_bytes() {
                swapped @ 1..=0xff => format!("version {swapped} in big-endian byte order"),
                _ => format!("version {version}"),
            };
            return Err(Error::checkpoint(path, "GGUF version 2 or 3, little-endian", &found));
        }
        let tensors = reader.count("tensors", MAX_TENSORS)?;
        let keys = reader.count("metadata keys", MAX_KEYS)?;
        // Names and shapes, here and in what is made of the list.
        require((tensors as usize).saturating_mul(512), "a list of tensors")?;
        require((keys as usize).saturating_mul(256), "metadata")?;
        let metadata = Metadata::read(&mut reader, keys)?;
        let alignment = alignment(&metadata)?;
        let mut infos = Vec::new();
        for _ in 0..tensors {
            infos.push(Info::read(&mut reader)?);
        }
        let data = reader.position().next_multiple_of(alignment);
        let entries = place(infos, alignment, len.saturating_sub(data), path)?;
        Ok(Self { version, metadata, entries, data })
    }
}

/// What the list says of a tensor.
struct Info {
    name: String,
    shape: Vec<usize>,
    ggml_type: u32,
    offset: u64,
}

impl Info {
    fn read(reader: &mut Reader<'_, impl Read>) -> Result<Self> {
        let name = reader.string("a tensor's name")?;
        let dimensions = reader.u32("a number of dimensions")?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let expected = format!("1 to {MAX_DIMENSIONS} dimensions");
            return Err(tensor_error(reader.path(), &name, expected, format!("{dimensions}")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = reader.u64("a dimension")?;
            let size = usize::try_from(size).ok().filter(|&size| size > 0 && size <= isize::MAX as usize);
            let Some(size) = size else {
                let (expected, found) =
                    ("dimensions of at least 1".to_owned(), "one of 0 or too large".to_owned());
                return Err(tensor_error(reader.path(), &name, expected, found));
            };
            shape.push(size);
        }
        shape.reverse();
        let ggml_type = reader.u32("an element type")?;
        let offset = reader.u64("an offset")?;
        Ok(Self { name, shape, ggml_type, offset })
    }
}

/// Checks that tensors are of known types and follow each other inside `len` bytes of data.
fn place(infos: Vec<Info>, alignment: u64, len: u64, path: &Path) -> Result<Vec<Entry>> {
    let mut names = HashSet::new();
    if let Some(twice) = infos.iter().find(|info| !names.insert(info.name.as_str())) {
        return Err(tensor_error(path, &twice.name, "one tensor of this name".to_owned(), "two".to_owned()));
    }
    drop(names);
    let mut entries = Vec::with_capacity(infos.len());
    let mut free = 0u64;
    for Info { name, shape, ggml_type, offset } in infos {
        let wrong = |expected: String, found: String| Err(tensor_error(path, &name, expected, found));
        let stored = StoredType::Ggml(ggml_type);
        let Some(bytes) = stored.byte_len(&shape) else {
            let expected = match stored.is_known() {
                true => "rows that are whole blocks, and a countable size".to_owned(),
                false => format!("an element type of {}", StoredType::supported()),
            };
            return wrong(expected, format!("{stored} {shape:?}"));
        };
        if offset != free {
            return wrong(format!("offset {free}, where the tensor before it ends"), format!("{offset}"));
        }
        let end = free.checked_add(bytes as u64).filter(|&end| end <= len);
        let Some(end) = end else {
            let expected = format!("{bytes} bytes of {stored} {shape:?} at offset {offset} of the data");
            return wrong(expected, format!("{len} bytes of data in all"));
        };
        let (begin, end) = (free as usize, end as usize);
        // The padding behind the last tensor may be missing, and is not looked at.
        free = (end as u64).next_multiple_of(alignment);
        entries.push(Entry { name, stored, shape, begin, end });
    }
    Ok(entries)
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.size(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && alignment <= 1 << 16 {
        Ok(alignment as u64)
    } else {
        Err(metadata.error(KEY, "a power of two, at most 65536"))
    }
}
