//! One weight file: where its bytes come from.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use moe_core::memory;

use super::safetensors::{self, LENGTH_BYTES};
use super::{Access, Entry, UncachedFile, map};
use crate::gguf;
use crate::input::open_regular;
use crate::{Error, Result};

/// An open weight file whose header has been checked.
#[derive(Debug)]
pub(super) struct WeightFile {
    path: PathBuf,
    len: u64,
    container: Container,
    /// Where the data begins.
    data: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Mapped, or given as bytes.
    Shared(Bytes),
    /// Read on demand. Seeking and reading are one step only under the lock.
    File(Mutex<File>),
    /// Read on demand, past the page cache.
    Uncached(Arc<UncachedFile>),
}

/// Where somebody else may read a file's bytes.
#[derive(Clone, Debug)]
pub(crate) enum RawFile {
    /// The whole file, in memory or mapped.
    Shared(Bytes),
    /// The file.
    Uncached(Arc<UncachedFile>),
}

/// The kinds of files that hold tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Safetensors,
    Gguf,
}

/// Where a file's data begins, and what it says of its tensors.
struct Header {
    data: u64,
    entries: Vec<Entry>,
}

impl WeightFile {
    /// Opens a file and reads its header. However data are accessed, the header is read, not mapped.
    pub(super) fn open(path: PathBuf, container: Container, access: Access) -> Result<(Self, Vec<Entry>)> {
        let (mut file, len) = open_regular(&path)?;
        let io = |source| Error::Io { path: path.clone(), source };
        let Header { data, entries } = Header::read(&mut file, len, container, &path)?;
        let source = match access {
            Access::Map | Access::Prefault | Access::Lock => {
                let len = usize::try_from(len).map_err(|_| io(io::ErrorKind::FileTooLarge.into()))?;
                Source::Shared(map::map(&file, len, access).map_err(io)?)
            }
            Access::Read => Source::File(Mutex::new(file)),
            Access::Uncached => Source::Uncached(Arc::new(UncachedFile::new(&path, file, data))),
        };
        Ok((Self { path, len, container, data, source }, entries))
    }

    /// The same from bytes in memory.
    pub(super) fn from_bytes(path: PathBuf, bytes: Bytes) -> Result<(Self, Vec<Entry>)> {
        let len = bytes.len() as u64;
        let container = if bytes.starts_with(gguf::MAGIC) { Container::Gguf } else { Container::Safetensors };
        let Header { data, entries } = Header::read(&mut &*bytes, len, container, &path)?;
        Ok((Self { path, len, container, data, source: Source::Shared(bytes) }, entries))
    }

    /// The data from `begin` to `end`, a range that the header's check has found to be inside the file.
    pub(super) fn bytes(&self, begin: usize, end: usize) -> Result<Bytes> {
        match &self.source {
            Source::Shared(bytes) => {
                let data = self.data as usize;
                Ok(bytes.slice(data + begin..data + end))
            }
            Source::File(file) => read(file, self.offset(begin), end - begin)
                .map_err(|source| Error::Io { path: self.path.clone(), source }),
            Source::Uncached(file) => file
                .bytes(self.offset(begin), end - begin)
                .map_err(|source| Error::Io { path: self.path.clone(), source }),
        }
    }

    /// The file for whoever reads it by itself; none of one that is read under a lock.
    pub(super) fn raw(&self) -> Option<RawFile> {
        match &self.source {
            Source::Shared(bytes) => Some(RawFile::Shared(bytes.clone())),
            Source::Uncached(file) => Some(RawFile::Uncached(file.clone())),
            Source::File(_) => None,
        }
    }

    /// Where in the file a place of the data is.
    pub(super) fn offset(&self, place: usize) -> u64 {
        self.data + place as u64
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn container(&self) -> Container {
        self.container
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

impl Header {
    fn read(source: &mut impl Read, len: u64, container: Container, path: &Path) -> Result<Self> {
        if container == Container::Gguf {
            let gguf::Header { data, entries, .. } = gguf::Header::read(BufReader::new(source), len, path)?;
            return Ok(Self { data, entries });
        }
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let mut start = Vec::with_capacity(LENGTH_BYTES);
        source.take(LENGTH_BYTES as u64).read_to_end(&mut start).map_err(io)?;
        let header_len = safetensors::header_len(&start, len, path)?;
        let mut text = Vec::new();
        memory::refill(&mut text, header_len, 0, "header")?;
        source.read_exact(&mut text).map_err(io)?;
        let data = (LENGTH_BYTES + header_len) as u64;
        Ok(Self { data, entries: safetensors::parse(&text, len - data, path)? })
    }
}

fn read(file: &Mutex<File>, offset: u64, len: usize) -> io::Result<Bytes> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    // A panic elsewhere cannot leave the file in a state that the seek below does not repair.
    let mut file = file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    file.seek(SeekFrom::Start(offset))?;
    map::memory(len, |bytes| {
        file.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                let what = format!("{len} bytes expected at offset {offset}, fewer found");
                io::Error::new(error.kind(), what)
            }
            _ => error,
        })
    })
}
