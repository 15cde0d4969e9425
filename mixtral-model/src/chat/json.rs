//! JSON as Python's `json.dumps` writes it, for that is what models were trained on.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CharEscape, Formatter, Serializer};

/// How `json.dumps` is to write.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// What is put in front of each entry, once for each level it is in, on a line of its own; `None` is one line for all.
    pub(super) indent: Option<String>,
    /// Between entries.
    pub(super) item: String,
    /// Between key and value.
    pub(super) key: String,
    /// Write everything beyond ASCII as `\uXXXX`.
    pub(super) ascii: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self { indent: None, item: ", ".to_owned(), key: ": ".to_owned(), ascii: false }
    }
}

/// The text of a value in the style `json.dumps(value, ensure_ascii=False)`.
pub(super) fn dumps(value: &Value) -> String {
    dumps_as(value, Style::default())
}

/// The text of a value in another style.
pub(super) fn dumps_as(value: &Value, style: Style) -> String {
    let mut bytes = Vec::new();
    // Neither writing to a vector nor serialising a value can fail.
    let _ =
        value.serialize(&mut Serializer::with_formatter(&mut bytes, Python { style, level: 0, empty: true }));
    String::from_utf8(bytes).unwrap_or_default()
}

struct Python {
    style: Style,
    level: usize,
    /// Whether nothing was written yet in the innermost list or object.
    empty: bool,
}

impl Python {
    fn open(&mut self) {
        self.level += 1;
        self.empty = true;
    }

    fn close(&mut self, writer: &mut (impl Write + ?Sized)) -> io::Result<()> {
        self.level -= 1;
        if !std::mem::take(&mut self.empty) {
            self.line(writer)?;
        }
        Ok(())
    }

    fn entry(&mut self, writer: &mut (impl Write + ?Sized), first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.style.item.as_bytes())?;
        }
        self.empty = false;
        self.line(writer)
    }

    fn line(&self, writer: &mut (impl Write + ?Sized)) -> io::Result<()> {
        if let Some(indent) = &self.style.indent {
            writer.write_all(b"\n")?;
            for _ in 0..self.level {
                writer.write_all(indent.as_bytes())?;
            }
        }
        Ok(())
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer)?;
        writer.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.entry(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer)?;
        writer.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.entry(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.key.as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if !self.style.ascii {
            return writer.write_all(text.as_bytes());
        }
        let mut units = [0; 2];
        for character in text.chars() {
            // Python escapes DEL nowhere, and all that is not ASCII as UTF-16.
            if character.is_ascii() {
                writer.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        let letter = match escape {
            CharEscape::Quote => b'"',
            CharEscape::ReverseSolidus => b'\\',
            CharEscape::Solidus => b'/',
            CharEscape::Backspace => b'b',
            CharEscape::FormFeed => b'f',
            CharEscape::LineFeed => b'n',
            CharEscape::CarriageReturn => b'r',
            CharEscape::Tab => b't',
            CharEscape::AsciiControl(byte) => return write!(writer, "\\u{byte:04x}"),
        };
        writer.write_all(&[b'\\', letter])
    }
}

/// A finite number as Python's `repr` writes it: the fewest digits that give it back, in scientific form from 1e16 on and
/// below 1e-4.
pub(super) fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if (-4..16).contains(&exponent) => {
            let text = value.to_string();
            if text.contains('.') { text } else { text + ".0" }
        }
        Ok(exponent) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The texts are those of Python 3.11.
    #[test]
    fn numbers_and_texts_are_spelt_as_in_python() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (100000.0, "100000.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (123456789.125, "123456789.125"),
        ] {
            assert_eq!(dumps(&json!(value)), text);
        }
        let value = json!({"b": [1, {}, [], null, true], "a": "q\"\\/\n\r\t\u{8}\u{c}\u{1}\u{7f}é😀"});
        assert_eq!(
            dumps(&value),
            "{\"b\": [1, {}, [], null, true], \"a\": \"q\\\"\\\\/\\n\\r\\t\\b\\f\\u0001\u{7f}é😀\"}"
        );
        let style =
            Style { indent: Some("  ".to_owned()), item: ",".to_owned(), ascii: true, ..Style::default() };
        assert_eq!(
            dumps_as(&value, style),
            "{\n  \"b\": [\n    1,\n    {},\n    [],\n    null,\n    true\n  ],\n  \
             \"a\": \"q\\\"\\\\/\\n\\r\\t\\b\\f\\u0001\u{7f}\\u00e9\\ud83d\\ude00\"\n}"
        );
    }
}
