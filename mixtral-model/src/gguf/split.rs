//! The files of a model that is split.

use std::path::{Path, PathBuf};

use super::Header;
use crate::input::open_regular;
use crate::{Error, Result};

/// Most files of a model.
const MAX_PARTS: usize = 9999;

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";

impl Header {
    /// Reads the header of a file.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`](crate::Error::Checkpoint) if it is no regular file; those of [`read`](Self::read).
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        Self::read(std::io::BufReader::new(file), len, path)
    }
}

/// The files of a model, with their headers.
pub(crate) struct Parts {
    /// The header of the first or only one.
    pub(crate) first: Header,
    /// The others, in order.
    pub(crate) others: Vec<(PathBuf, Header)>,
}

/// The files of the model whose first or only part is at `path`.
///
/// Parts are found by name, `NAME-00001-of-00003.gguf` and so on, and must be those that their metadata say they are.
///
/// # Errors
///
/// Those of reading each part's header; [`Error::Config`](crate::Error::Config) where one says that it is another part, or the
/// first is not named as first parts are; [`Error::Checkpoint`](crate::Error::Checkpoint) where all parts together do not have the
/// tensors that they should.
pub(crate) fn parts(path: &Path) -> Result<Parts> {
    let first = Header::open(path)?;
    let count = first.metadata.size(COUNT)?.unwrap_or(1);
    if count <= 1 {
        return Ok(Parts { first, others: Vec::new() });
    }
    if count > MAX_PARTS {
        return Err(first.metadata.error(COUNT, format!("at most {MAX_PARTS} files")));
    }
    require_number(&first, 0)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = format!("-00001-of-{count:05}.gguf");
    let Some(stem) = name.strip_suffix(&ending) else {
        return Err(first.metadata.error(COUNT, format!("1, or a file whose name ends in {ending}")));
    };
    let (mut others, mut tensors) = (Vec::new(), first.entries.len());
    for number in 1..count {
        let part = path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1));
        let header = Header::open(&part)?;
        require_number(&header, number)?;
        if header.metadata.size(COUNT)? != Some(count) {
            return Err(header.metadata.error(COUNT, format!("{count}, as in the first part")));
        }
        tensors += header.entries.len();
        others.push((part, header));
    }
    match first.metadata.size(TENSORS)? {
        Some(expected) if expected != tensors => {
            let expected = format!("{expected} tensors in {count} parts, as {TENSORS} says");
            Err(Error::checkpoint(path, &expected, tensors.to_string()))
        }
        _ => Ok(Parts { first, others }),
    }
}

fn require_number(header: &Header, number: usize) -> Result<()> {
    let metadata = &header.metadata;
    match metadata.size(NUMBER)? {
        Some(found) if found == number => Ok(()),
        _ if number == 0 => Err(metadata.error(NUMBER, "0: the first part is what to open")),
        _ => Err(metadata.error(NUMBER, number.to_string())),
    }
}
