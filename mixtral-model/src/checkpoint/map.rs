//! The memory map.

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::MmapOptions;

/// Maps the first `len` bytes of `file` for reading. The map lives as long as any slice of the result.
pub(super) fn map(file: &File, len: usize) -> io::Result<Bytes> {
    let mut options = MmapOptions::new();
    options.len(len);
    // SAFETY: the map is only read, and `len` is the file's length at this moment, so every byte of it exists now.
    // What `Mmap` asks beyond that, no process can guarantee: that nobody else truncates or rewrites the file while
    // it is mapped. If it shrinks, reading the lost pages ends the process with SIGBUS; if it is rewritten in place,
    // weights change under way, which are only ever read as plain numbers and never as lengths, offsets or text
    // (headers are copied before they are checked). `Access::Read` is there for files that cannot be relied upon.
    let map = unsafe { options.map(file) }?;
    Ok(Bytes::from_owner(map))
}
