//! Standard output: as it is to a file or a pipe, coloured and harmless on a terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Stdout, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::Style;

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
        let text = if self.terminal { harmless(text) } else { text.into() };
        let mut out = self.stdout.lock();
        if self.styled && !text.is_empty() {
            write!(out, "{style}{text}{style:#}")?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        Ok(())
    }

    /// Shows all that was written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
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
