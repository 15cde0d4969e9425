//! Reading that leaves nothing in the system's page cache.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::map;

/// What addresses in the file, in memory, and lengths of direct reads must be multiples of, on every file system in use.
const ALIGNMENT: u64 = 4096;
/// Bytes of one read: large enough for the disk, and small enough that little lies in the page cache at a time, and that who wants no
/// more of it is soon heard.
const PIECE: usize = 1 << 20;

/// What hears how many bytes a piece had, and says whether there is a point in the next one.
pub(crate) type GoOn<'a> = dyn FnMut(usize) -> bool + 'a;

/// A file whose bytes are read past the page cache where system and file system allow that, and otherwise through it, after which
/// they are dropped from it.
#[derive(Debug)]
pub(crate) struct UncachedFile {
    path: PathBuf,
    file: File,
    /// The same, open for direct reads.
    direct: Option<File>,
    /// Whether it is to be read through the page cache though it is open for direct reads.
    cached: AtomicBool,
    /// What goes wrong, in tests.
    #[cfg(test)]
    pub(crate) faults: faults::Faults,
}

impl UncachedFile {
    /// The file of that path, which is open, and of which so many bytes were read through the page cache.
    pub(crate) fn new(path: &Path, file: File, read: u64) -> Self {
        let direct = open_direct(path).filter(|direct| is_same(direct, &file));
        drop_cached(&file, 0, read);
        read_no_further(&file);
        Self {
            path: path.to_path_buf(),
            file,
            direct,
            cached: AtomicBool::new(false),
            #[cfg(test)]
            faults: faults::Faults::default(),
        }
    }

    /// Has it be read directly, where that is possible, or not.
    pub(crate) fn read_directly(&self, directly: bool) {
        self.cached.store(!directly, Ordering::Relaxed);
    }

    /// Whether both are one file.
    pub(crate) fn is(&self, other: &Self) -> bool {
        is_same(&self.file, &other.file)
    }

    /// Whether it is read directly.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.cached.load(Ordering::Relaxed)
    }

    /// Drops some bytes from the page cache, so far as they are there.
    pub(crate) fn forget(&self, offset: u64, len: usize) {
        drop_cached(&self.file, offset, len as u64);
    }

    /// The bytes of memory that reading `len` bytes at `offset` takes.
    pub(crate) fn room(offset: u64, len: usize) -> usize {
        let skip = (offset % ALIGNMENT) as usize;
        // No memory is that large, and whoever asks for it is told.
        skip.saturating_add(len).checked_next_multiple_of(ALIGNMENT as usize).unwrap_or(usize::MAX)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `len` bytes at `offset` into the memory, which begins at a page and has [room](Self::room) for them. Gives their place in it.
    /// `go_on` hears how many bytes each piece had, and whether there is a point in the next one.
    ///
    /// # Errors
    ///
    /// That of the system; `UnexpectedEof` where the file has become shorter; `Interrupted` where there is no point in going on.
    pub(crate) fn read(
        &self,
        offset: u64,
        len: usize,
        memory: &mut [u8],
        go_on: &mut GoOn<'_>,
    ) -> io::Result<usize> {
        let skip = (offset % ALIGNMENT) as usize;
        let (begin, wanted) = (offset - skip as u64, skip + len);
        let memory = &mut memory[..Self::room(offset, len)];
        let mut done = self.read_direct(begin, wanted, memory, go_on)?;
        while done < wanted {
            let end = wanted.min(done + PIECE);
            let count = self.read_piece(&self.file, &mut memory[done..end], begin + done as u64)?;
            if count == 0 {
                let what = format!("{len} bytes expected at offset {offset}, fewer found");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            done += count;
            drop_cached(&self.file, begin, done as u64);
            heard(go_on(count))?;
        }
        Ok(skip)
    }

    /// How many of the bytes could be read directly.
    fn read_direct(
        &self,
        begin: u64,
        wanted: usize,
        memory: &mut [u8],
        go_on: &mut GoOn<'_>,
    ) -> io::Result<usize> {
        let Some(direct) = self.direct.as_ref().filter(|_| self.is_direct()) else {
            return Ok(0);
        };
        let mut done = 0;
        while done < wanted {
            let end = memory.len().min(done + PIECE);
            match self.read_piece(direct, &mut memory[done..end], begin + done as u64) {
                // At the end of the file a read is short; what is missing then is said elsewhere.
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    heard(go_on(count))?;
                    if !done.is_multiple_of(ALIGNMENT as usize) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.read_directly(false);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Reads some of these bytes.
    fn read_piece(&self, file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(test)]
        let count = self.faults.next(to.len())?;
        #[cfg(test)]
        let to = &mut to[..count];
        read_at(file, to, offset)
    }

    /// The bytes in memory of their own.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let mut skip = 0;
        let all = map::memory(Self::room(offset, len), |memory| {
            skip = self.read(offset, len, memory, &mut |_| true)?;
            Ok(())
        })?;
        Ok(all.slice(skip..skip + len))
    }
}

fn heard(goes_on: bool) -> io::Result<()> {
    if goes_on { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// Whether both are one file: a name may have been given to another in between.
#[cfg(unix)]
fn is_same(one: &File, other: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    place(one).is_some() && place(one) == place(other)
}

/// The system does not tell.
#[cfg(not(unix))]
fn is_same(_: &File, _: &File) -> bool {
    false
}

/// Reads some bytes; an interruption is no error.
fn read_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_at(file, to, offset);
        #[cfg(windows)]
        let read = std::os::windows::fs::FileExt::seek_read(file, to, offset);
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    // Where it is refused, all is read through the page cache.
    Some(open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).ok()?.into())
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

/// Has reads bring nothing into the page cache but what they ask for: what the system reads further, nobody would drop. It is a wish.
#[cfg(target_os = "linux")]
fn read_no_further(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
}

#[cfg(not(target_os = "linux"))]
fn read_no_further(_: &File) {}

/// Lets go of the pages of `len` bytes from `begin` on; it is a wish.
#[cfg(target_os = "linux")]
fn drop_cached(file: &File, begin: u64, len: u64) {
    if let Some(len) = std::num::NonZeroU64::new(len) {
        let _ = rustix::fs::fadvise(file, begin, Some(len), rustix::fs::Advice::DontNeed);
    }
}

#[cfg(not(target_os = "linux"))]
fn drop_cached(_: &File, _: u64, _: u64) {}

/// A disk that fails, or reads less than it was asked for, at every k-th call.
#[cfg(test)]
pub(crate) mod faults {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug, Default)]
    pub(crate) struct Faults {
        calls: AtomicUsize,
        /// 0 for never.
        pub(crate) fails_at: AtomicUsize,
        pub(crate) is_short_at: AtomicUsize,
    }

    impl Faults {
        /// How many of so many bytes the next call reads.
        pub(super) fn next(&self, bytes: usize) -> io::Result<usize> {
            let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            let is_at = |every: &AtomicUsize| match every.load(Ordering::Relaxed) {
                0 => false,
                every => call.is_multiple_of(every),
            };
            if is_at(&self.fails_at) {
                return Err(io::Error::other("the disk fails"));
            }
            Ok(if is_at(&self.is_short_at) { bytes.div_ceil(3) } else { bytes })
        }
    }
}

#[cfg(test)]
mod tests {
    use memmap2::MmapMut;

    use super::*;

    #[test]
    fn any_piece_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let all: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &all).unwrap();
        let direct = UncachedFile::new(&path, File::open(&path).unwrap(), 10);
        let cached = UncachedFile::new(&path, File::open(&path).unwrap(), 0);
        cached.read_directly(false);
        for file in [&direct, &cached] {
            for (offset, len) in
                [(0, 20_000), (0, 4096), (4096, 1), (5000, 9000), (19_999, 1), (8191, 2), (7, 0)]
            {
                let bytes = file.bytes(offset, len).unwrap();
                assert_eq!(bytes, all[offset as usize..offset as usize + len], "{offset} {len}");
            }
            let mut memory = MmapMut::map_anon(UncachedFile::room(19_000, 2000)).unwrap();
            let error = file.read(19_000, 2000, &mut memory, &mut |_| true).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(error.to_string().contains("2000 bytes expected at offset 19000"), "{error}");
            let mut heard = 0;
            let read = file.read(0, 1000, &mut memory, &mut |bytes| {
                heard += bytes;
                false
            });
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::Interrupted);
            assert!(heard >= 1000, "{heard}");
        }
    }
}
