//! Texts from arguments, files and standard input.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use moe_core::memory;

use crate::failure::{Failure, Result};

/// Far more text than any context holds.
const MAX_BYTES: u64 = 1 << 26;

/// The text of an argument: itself, or standard input if it is absent or `-`.
///
/// Standard input is taken byte for byte. That it is a terminal while nobody asked for it is an error, not a wait; `what` names
/// the argument.
pub(crate) fn text_or_stdin(argument: Option<&str>, what: &str) -> Result<String> {
    match argument {
        Some("-") => stdin(),
        Some(text) => Ok(text.to_owned()),
        None if io::stdin().is_terminal() => {
            let reason = "expected an argument, or text on standard input; see --help";
            Err(Failure::not_as_expected(what, reason))
        }
        None => stdin(),
    }
}

pub(crate) fn stdin() -> Result<String> {
    utf8(io::stdin().lock(), "standard input")
}

/// The text of the option --text, or standard input where it is absent.
pub(crate) fn text_option(path: Option<&Path>) -> Result<String> {
    match path {
        Some(path) => file(path),
        None => text_or_stdin(None, "--text"),
    }
}

/// The text of a file, or of standard input if it is `-`.
pub(crate) fn file(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return stdin();
    }
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => utf8(file, &name),
        Err(source) => Err(Failure::Input { name, source }),
    }
}

/// The bytes of a file, or of standard input if it is `-`.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>> {
    const MAX_BYTES: u64 = 1 << 30;
    if path == Path::new("-") {
        return read(io::stdin().lock(), "standard input", MAX_BYTES);
    }
    let name = path.display().to_string();
    match File::open(path) {
        // A file tells its size, and need not be read to be refused.
        Ok(file) => match file.metadata() {
            Ok(about) if about.is_file() && about.len() > MAX_BYTES => {
                let reason = format!("expected at most {MAX_BYTES} bytes, found {}", about.len());
                Err(Failure::not_as_expected(name, reason))
            }
            _ => read(file, &name, MAX_BYTES),
        },
        Err(source) => Err(Failure::Input { name, source }),
    }
}

/// The next line with its end, of at most `most` bytes; `None` at the end.
pub(crate) fn line(source: &mut impl BufRead, name: &str, most: usize) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        let available = match source.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(|source| Failure::Input { name: name.to_owned(), source })?,
        };
        let end = available.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
        let more = end.unwrap_or(available.len());
        memory::reserve(&mut bytes, more, "a line of input")?;
        bytes.extend_from_slice(&available[..more]);
        source.consume(more);
        if bytes.len() > most {
            let reason = format!("expected at most {most} bytes in a line, found more");
            return Err(Failure::not_as_expected(name, reason));
        }
        if end.is_some() || more == 0 {
            break;
        }
    }
    if bytes.is_empty() { Ok(None) } else { text(bytes, name).map(Some) }
}

/// Without one newline at the end, such as editors and `echo` put there.
pub(crate) fn without_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

fn utf8(source: impl Read, name: &str) -> Result<String> {
    text(read(source, name, MAX_BYTES)?, name)
}

fn text(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::not_as_expected(name, format!("expected UTF-8, found another byte at offset {at}"))
    })
}

fn read(source: impl Read, name: &str, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|source| Failure::Input { name: name.to_owned(), source })?;
    if bytes.len() as u64 > most {
        return Err(Failure::not_as_expected(name, format!("expected at most {most} bytes, found more")));
    }
    Ok(bytes)
}
