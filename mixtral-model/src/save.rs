//! Writing files that are either complete or not there, and safetensors files among them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::input::require;
use crate::{Error, Result};

/// A tensor to write.
pub(crate) struct Tensor<'a> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) elements: Elements<'a>,
}

pub(crate) enum Elements<'a> {
    F32(Cow<'a, [f32]>),
    I32(Vec<i32>),
    U32(&'a [u32]),
    /// So many bytes of elements of a type, which a function hands over piece by piece.
    Pieces(Dtype, usize, Box<Pieces<'a>>),
}

/// Hands every piece to a function, in order.
pub(crate) type Pieces<'a> = dyn Fn(&mut dyn FnMut(&[u8])) + 'a;

impl Elements<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::I32(_) => Dtype::I32,
            Self::U32(_) => Dtype::U32,
            Self::Pieces(dtype, ..) => *dtype,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&**values),
            Self::I32(values) => size_of_val(&**values),
            Self::U32(values) => size_of_val(*values),
            Self::Pieces(_, bytes, _) => *bytes,
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::F32(values) => values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes())),
            Self::I32(values) => values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes())),
            Self::U32(values) => values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes())),
            Self::Pieces(_, _, each) => {
                let mut written = Ok(());
                each(&mut |piece| {
                    if written.is_ok() {
                        written = out.write_all(piece);
                    }
                });
                written
            }
        }
    }
}

/// Writes the elements of tensors, one after the other.
pub(crate) fn write_elements(out: &mut impl Write, tensors: &[Tensor<'_>]) -> io::Result<()> {
    tensors.iter().try_for_each(|tensor| tensor.elements.write(out))
}

/// Writes tensors, in the order given, and texts about them.
pub(crate) fn save_tensors(
    path: &Path,
    about: Option<HashMap<String, String>>,
    tensors: &[Tensor<'_>],
) -> Result<()> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let begin = end;
        end += tensor.elements.bytes();
        let (dtype, shape) = (tensor.elements.dtype(), tensor.shape.clone());
        (tensor.name.clone(), TensorInfo { dtype, shape, data_offsets: (begin, end) })
    });
    let infos = infos.collect();
    let failed = |source| Error::Io { path: path.to_path_buf(), source };
    replace(path, |out| {
        write_header(out, about, infos).and_then(|()| write_elements(out, tensors)).map_err(failed)
    })
}

/// Writes the header of a safetensors file. The data begins at a multiple of eight.
pub(crate) fn write_header(
    out: &mut impl Write,
    about: Option<HashMap<String, String>>,
    infos: Vec<(String, TensorInfo)>,
) -> io::Result<()> {
    let metadata = Metadata::new(about, infos).map_err(io::Error::other)?;
    let mut counted = Counter(0);
    serde_json::to_writer(&mut counted, &metadata)?;
    let Counter(bytes) = counted;
    let padded = bytes.next_multiple_of(8);
    out.write_all(&(padded as u64).to_le_bytes())?;
    serde_json::to_writer(&mut *out, &metadata)?;
    out.write_all(&[b' '; 8][..padded - bytes])
}

/// How many bytes there are, of which none is kept.
struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a file beside `path` and renames it when it is complete and on the disk; removes it if that fails.
pub(crate) fn replace<T>(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<T>) -> Result<T> {
    let failed = |source| Error::Io { path: path.to_path_buf(), source };
    // A rename would put a file in the place of a device or a pipe.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        let expected = "a regular file or nothing";
        return Err(Error::checkpoint(path, expected, "something else of this name"));
    }
    require(BUFFER, "a buffer of what is written")?;
    let (temporary, file) = create_beside(path).map_err(failed)?;
    let mut out = BufWriter::with_capacity(BUFFER, &file);
    let written = write(&mut out).and_then(|value| {
        let finished = out.flush().and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
        finished.map(|()| value).map_err(failed)
    });
    if written.is_err() {
        // What is left of `out` must not be written any more; that removing fails too is not worth a second error.
        drop(out.into_parts());
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Bytes that are written together.
const BUFFER: usize = 1 << 20;

/// A new file in the directory of `path`, of a name that nobody has.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut attempt = 0;
    loop {
        let temporary = temporary(path, Some(attempt))?;
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => attempt += 1,
            other => return other.map(|file| (temporary, file)),
        }
    }
}

/// Names that are tried.
const ATTEMPTS: usize = 100;

/// The name beside `path` under which this process writes what is to have that name: a file of some attempt, or a directory.
pub(crate) fn temporary(path: &Path, attempt: Option<usize>) -> io::Result<PathBuf> {
    /// Bytes of a name that are kept: with what is put around them, a system's limit of 255 is not passed.
    const KEPT: usize = 200;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut hidden = std::ffi::OsString::from(".");
    if name.len() <= KEPT {
        hidden.push(name);
    } else {
        let name = name.to_string_lossy();
        let end = (0..=KEPT).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
        hidden.push(&name[..end]);
    }
    hidden.push(format!(".{}", std::process::id()));
    hidden.push(attempt.map_or_else(String::new, |attempt| format!("-{attempt}")) + ".tmp");
    Ok(path.with_file_name(hidden))
}

/// Removes what this process has begun to write for `path` and not finished.
///
/// For a process that is about to end while another of its threads writes: what is complete has its name by then, and stays.
pub fn remove_unfinished(path: &Path) {
    for attempt in 0..=ATTEMPTS {
        let Ok(temporary) = temporary(path, Some(attempt)) else { return };
        // Most of them are not there, and nobody is left to be told of another failure.
        let _ = fs::remove_file(temporary);
    }
    if let Ok(temporary) = temporary(path, None) {
        // The writer may put another file there meanwhile.
        let _ = (0..100).find(|_| fs::remove_dir_all(&temporary).is_ok() || !temporary.exists());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn any_name_that_a_file_can_have() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["t".repeat(255), "é".repeat(127), "t".repeat(200)] {
            let path = dir.path().join(&name);
            replace(&path, |out| {
                out.write_all(b"x").map_err(|source| Error::Io { path: path.clone(), source })
            })
            .unwrap();
            assert_eq!(names(dir.path()), [name]);
            fs::remove_file(&path).unwrap();
        }
        let path = dir.path().join("t");
        let other = dir.path().join(".t.1-0.tmp");
        fs::write(&other, "").unwrap();
        drop(create_beside(&path).unwrap());
        drop(create_beside(&path).unwrap());
        fs::create_dir(temporary(&path, None).unwrap()).unwrap();
        assert_eq!(names(dir.path()).len(), 4);
        remove_unfinished(&path);
        assert_eq!(names(dir.path()), [".t.1-0.tmp"]);
    }

    #[test]
    fn complete_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let floats = [1.0, -2.5, 3.0];
        let tensors = [
            Tensor { name: "a".into(), shape: vec![1, 3], elements: Elements::F32(floats[..].into()) },
            Tensor { name: "b".into(), shape: vec![2, 1], elements: Elements::I32(vec![7, -1]) },
        ];
        for _ in 0..2 {
            save_tensors(&path, None, &tensors).unwrap();
            assert_eq!(names(dir.path()), ["t.safetensors"]);
        }
        let bytes = fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (a, b) = (read.tensor("a").unwrap(), read.tensor("b").unwrap());
        assert_eq!(
            (a.dtype(), a.shape(), b.dtype(), b.shape()),
            (Dtype::F32, &[1, 3][..], Dtype::I32, &[2, 1][..])
        );
        assert_eq!(a.data(), floats.map(f32::to_le_bytes).as_flattened());
        assert_eq!(b.data(), [7i32, -1].map(i32::to_le_bytes).as_flattened());

        let before = fs::read(&path).unwrap();
        let broken: Result<()> = replace(&path, |out| {
            let failed = |source| Error::Io { path: path.clone(), source };
            out.write_all(&[0; 100]).map_err(failed)?;
            Err(failed(io::ErrorKind::StorageFull.into()))
        });
        assert!(matches!(broken, Err(Error::Io { path: at, .. }) if at == path));
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (before, vec!["t.safetensors".to_owned()]));
        assert!(matches!(save_tensors(dir.path(), None, &tensors), Err(Error::Checkpoint { .. })));
        assert!(matches!(save_tensors(&dir.path().join("no/t"), None, &tensors), Err(Error::Io { .. })));
    }
}
