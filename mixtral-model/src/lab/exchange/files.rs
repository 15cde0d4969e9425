//! From file to file.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use moe_router::trace::TraceReader;

use super::{ExchangeError, ExportOptions, Exported, ImportOptions, Imported, TraceFormat};
use crate::save::replace;
use crate::{Error, Result};

/// [Imports](super::import) a file. The trace appears when it is complete.
///
/// # Errors
///
/// [`Error::Exchange`] with those of `import`; [`Error::Io`].
pub fn import_file(format: TraceFormat, from: &Path, to: &Path, options: &ImportOptions) -> Result<Imported> {
    let source = BufReader::new(open(from)?);
    replace(to, |out| super::import(format, source, out, options).map_err(of_file(from)))
}

/// [Exports](super::export) a trace. The file appears when it is complete.
///
/// # Errors
///
/// [`Error::Exchange`] with those of `export`; [`Error::Io`].
pub fn export_file(format: TraceFormat, from: &Path, to: &Path, options: ExportOptions) -> Result<Exported> {
    let reader = TraceReader::new(open(from)?).map_err(ExchangeError::from);
    let mut reader = reader.map_err(of_file(from))?;
    replace(to, |out| super::export(format, &mut reader, out, options).map_err(of_file(from)))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

fn of_file(path: &Path) -> impl Fn(ExchangeError) -> Error + '_ {
    |source| Error::Exchange { path: path.to_path_buf(), source }
}
