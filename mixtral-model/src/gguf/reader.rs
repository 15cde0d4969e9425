//! Little-endian fields of a header that nobody vouches for.

use std::io::{self, Read};
use std::path::Path;

use moe_core::memory;

use crate::{Error, Result};

/// Longest header that is read. A vocabulary of 128,000 pieces with its merges takes about 8 MB.
const MAX_HEADER_BYTES: u64 = 256 << 20;

/// Most items of all arrays together. The largest vocabularies have 256,000 pieces, each with a score and a type, and twice as
/// many merges.
const MAX_ITEMS: u64 = 1 << 22;

/// Longest string: chat templates are the longest there are.
const MAX_STRING_BYTES: u64 = 16 << 20;

/// Reads field after field, and never more than the file holds.
pub(super) struct Reader<'p, R> {
    source: R,
    position: u64,
    len: u64,
    items: u64,
    path: &'p Path,
}

impl<'p, R: Read> Reader<'p, R> {
    /// A reader at the start of a file of `len` bytes.
    pub(super) fn new(source: R, len: u64, path: &'p Path) -> Self {
        Self { source, position: 0, len, items: 0, path }
    }

    /// The file, for errors.
    pub(super) fn path(&self) -> &'p Path {
        self.path
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Goes past the next `len` bytes if the file has them, before room is made for them; `what` they are is for errors.
    fn advance(&mut self, len: u64, what: &str) -> Result<()> {
        let end = self.position.checked_add(len).filter(|&end| end <= self.len);
        let Some(end) = end else {
            let expected = format!("{what} of {len} bytes at offset {}", self.position);
            return Err(Error::checkpoint(self.path, &expected, format!("a file of {} bytes", self.len)));
        };
        if end > MAX_HEADER_BYTES {
            let expected = format!("a header of at most {MAX_HEADER_BYTES} bytes");
            return Err(Error::checkpoint(self.path, &expected, format!("{what} that ends at {end}")));
        }
        self.position = end;
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let failed = |source: io::Error| Error::Io { path: self.path.to_path_buf(), source };
        self.source.read_exact(bytes).map_err(failed)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.advance(N as u64, what)?;
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things of at least a byte each, of which there may be `most`.
    pub(super) fn count(&mut self, what: &str, most: u64) -> Result<u64> {
        let count = self.u64(what)?;
        let most = most.min(self.len - self.position);
        if count <= most {
            return Ok(count);
        }
        Err(Error::checkpoint(self.path, format!("at most {most} {what}"), format!("{count}")))
    }

    /// A number of items of an array.
    pub(super) fn items(&mut self) -> Result<u64> {
        let count = self.count("items of arrays", MAX_ITEMS - self.items)?;
        self.items += count;
        Ok(count)
    }

    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        let len = self.u64(what)?;
        if len > MAX_STRING_BYTES {
            let expected = format!("{what} of at most {MAX_STRING_BYTES} bytes");
            return Err(Error::checkpoint(self.path, &expected, format!("{len} bytes")));
        }
        self.advance(len, what)?;
        let mut bytes = Vec::new();
        memory::reserve(&mut bytes, len as usize, "a string")?;
        bytes.resize(len as usize, 0);
        self.fill(&mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| Error::checkpoint(self.path, format!("{what} in UTF-8"), "other bytes"))
    }
}
