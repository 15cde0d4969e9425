//! Lines of a text that nobody vouches for.

use std::io::{BufRead, Read, Write};

use moe_core::memory;
use serde::Deserialize;

use super::{ExchangeError, Place};

/// Bytes of a line, at most.
const MOST: usize = 16 << 20;

/// Reads lines into one buffer.
pub(super) struct Lines<R> {
    source: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, line: Vec::new(), number: 0 }
    }

    /// The next line that is not blank, and where it is.
    pub(super) fn next(&mut self) -> Result<Option<(&str, Place)>, ExchangeError> {
        loop {
            self.line.clear();
            if !read_line(&mut self.source, &mut self.line, Place::Line(self.number + 1))? {
                return Ok(None);
            }
            self.number += 1;
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                break;
            }
        }
        let place = Place::Line(self.number);
        let text = std::str::from_utf8(&self.line);
        let text = text.map_err(|error| ExchangeError::malformed(place, "text in UTF-8", error))?;
        Ok(Some((text.trim(), place)))
    }
}

/// Adds a line to a buffer; `false` at the end of the text.
fn read_line(source: &mut impl BufRead, line: &mut Vec<u8>, place: Place) -> Result<bool, ExchangeError> {
    loop {
        let bytes = source.fill_buf()?;
        if bytes.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let take = end.map_or(bytes.len(), |end| end + 1);
        if line.len() + take > MOST {
            return Err(ExchangeError::malformed(place, format!("a line of at most {MOST} bytes"), "more"));
        }
        memory::reserve(line, take, "line of a trace")?;
        line.extend_from_slice(&bytes[..take]);
        source.consume(take);
        if end.is_some() {
            return Ok(true);
        }
    }
}

/// Reads the rest of a source, whose next byte is number `begin`: memory is taken for what is there.
pub(super) fn read_all(source: &mut impl Read, begin: u64, most: usize) -> Result<Vec<u8>, ExchangeError> {
    let (mut all, mut part) = (Vec::new(), [0; 1 << 14]);
    loop {
        let count = match source.read(&mut part) {
            Ok(0) => return Ok(all),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        if count > most - all.len() {
            let place = Place::Byte(begin + most as u64);
            return Err(ExchangeError::malformed(place, "the end of the file", "more"));
        }
        memory::reserve(&mut all, count, "trace of another format")?;
        all.extend_from_slice(&part[..count]);
    }
}

/// A line as an object of JSON.
pub(super) fn object<'a, T: Deserialize<'a>>(
    line: &'a str,
    place: Place,
    expected: &str,
) -> Result<T, ExchangeError> {
    serde_json::from_str(line).map_err(|error| ExchangeError::malformed(place, expected, error))
}

/// A number in decimal, which is `what`.
pub(super) fn number<T: std::str::FromStr>(text: &str, what: &str, place: Place) -> Result<T, ExchangeError> {
    text.trim().parse().map_err(|_| ExchangeError::malformed(place, what, text))
}

/// Writes numbers as a list of JSON.
pub(super) fn write_list<T: std::fmt::Display>(
    out: &mut impl Write,
    values: impl IntoIterator<Item = T>,
) -> Result<(), ExchangeError> {
    out.write_all(b"[")?;
    for (n, value) in values.into_iter().enumerate() {
        write!(out, "{}{value}", if n == 0 { "" } else { ", " })?;
    }
    Ok(out.write_all(b"]")?)
}
