//! Standard output: as it is to a file or a pipe, coloured and harmless on a terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Stdout, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;
use moe_core::OutOfMemory;
use serde::Serialize;

use crate::failure::{Failure, Result};

/// Standard output for text that a model wrote.
///
/// To a pipe the text goes byte for byte, escape sequences that the model may have written included. On a terminal they are
/// made visible, so that a model cannot command it.
pub(crate) struct Output {
    stdout: Stdout,
    terminal: bool,
    styled: bool,
}

impl Output {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let styled = AutoStream::choice(&stdout) != ColorChoice::Never;
        Self { terminal: stdout.is_terminal(), styled, stdout }
    }

    /// Whether colours are to be seen.
    pub(crate) fn is_styled(&self) -> bool {
        self.styled
    }

    /// Writes text; what is after its last newline may wait for a [`flush`](Self::flush).
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.styled(Style::new(), text)
    }

    /// The same in a style.
    pub(crate) fn styled(&mut self, style: Style, text: &str) -> io::Result<()> {
        let mut out = self.stdout.lock();
        let styled = self.styled && !text.is_empty();
        if styled {
            write!(out, "{style}")?;
        }
        if self.terminal {
            text.split_inclusive('\n').try_for_each(|line| out.write_all(harmless(line).as_bytes()))?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        if styled {
            write!(out, "{style:#}")?;
        }
        Ok(())
    }

    /// Shows all that was written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

/// A value as JSON, in lines for people to read if `pretty`, with a newline at its end.
pub(crate) fn json(value: &impl Serialize, pretty: bool) -> Result<String> {
    let mut out = Reserving(Vec::new());
    let written = match pretty {
        true => serde_json::to_writer_pretty(&mut out, value),
        false => serde_json::to_writer(&mut out, value),
    };
    let written = written.map_err(io::Error::from).and_then(|()| out.write_all(b"\n"));
    let Reserving(bytes) = out;
    match written {
        Ok(()) => String::from_utf8(bytes).map_err(|error| io::Error::other(error).into()),
        Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            Err(OutOfMemory { what: "JSON", bytes: bytes.capacity().saturating_mul(2) }.into())
        }
        Err(error) => Err(Failure::from(error)),
    }
}

/// Bytes in memory, as long as there is some.
struct Reserving(Vec<u8>);

impl Write for Reserving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text with symbols in place of control characters, but for newline and tabulator.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(harmful) {
        return text.into();
    }
    let symbol = |c: char| match c {
        _ if !harmful(c) => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7f' => '\u{2421}',
        _ => char::REPLACEMENT_CHARACTER,
    };
    text.chars().map(symbol).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_symbols() {
        assert_eq!(harmless("a\tb\nç▁"), "a\tb\nç▁");
        assert_eq!(harmless("\x1b[2J\r\x7f\u{9b}"), "␛[2J␍␡\u{fffd}");
    }
}
