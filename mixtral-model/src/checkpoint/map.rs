//! Memory maps: of files, and of memory to read into.

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::{Mmap, MmapMut, MmapOptions};

use super::Access;

/// Maps the first `len` bytes of `file` for reading. The map lives as long as any slice of the result.
pub(super) fn map(file: &File, len: usize, access: Access) -> io::Result<Bytes> {
    let mut options = MmapOptions::new();
    options.len(len);
    if access == Access::Prefault {
        options.populate();
    }
    // SAFETY: the map is only read, and `len` is the file's length at this moment, so every byte of it exists now.
    // What `Mmap` asks beyond that, no process can guarantee: that nobody else truncates or rewrites the file while
    // it is mapped. If it shrinks, reading the lost pages ends the process with SIGBUS; if it is rewritten in place,
    // weights change under way, which are only ever read as plain numbers and never as lengths, offsets or text
    // (headers are copied before they are checked). `Access::Read` is there for files that cannot be relied upon.
    let map = unsafe { options.map(file) }?;
    if access == Access::Lock {
        lock(&map)?;
    }
    Ok(Bytes::from_owner(map))
}

#[cfg(unix)]
fn lock(map: &Mmap) -> io::Result<()> {
    let explained = |error: io::Error| {
        io::Error::new(error.kind(), format!("locking {} bytes in memory: {error}", map.len()))
    };
    map.lock().map_err(explained)
}

#[cfg(not(unix))]
fn lock(_: &Mmap) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Memory of `len` bytes, not zero, that `fill` writes; in large pages where the system gives them, as reading weights is all
/// that decoding does, and each small page has to be looked up.
pub(super) fn memory(len: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
    let mut memory = pages(len)?;
    fill(&mut memory)?;
    Ok(Bytes::from_owner(memory.make_read_only()?))
}

/// Memory of `len` bytes, not zero, that begins at a page.
pub(crate) fn pages(len: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(len)?;
    #[cfg(target_os = "linux")]
    // A refusal costs time only.
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}
