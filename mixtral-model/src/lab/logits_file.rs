//! What a model predicts on a text, in the file format of llama-perplexity, so that two engines can be compared.
//!
//! The file, little-endian: the eight bytes `_logits_`; as 32-bit integers the tokens of a window n, the vocabulary V and the
//! number of windows C; the tokens `[C, n]` as 32-bit integers; then, window after window, a row for each of the tokens n/2 to n - 2:
//! what is predicted after it. A row is two 32-bit floats, a step and a least value, and V 16-bit integers i, each a log-probability
//! `step · i + least`, with one more integer where V is odd. Log-probabilities below the greatest less 16 are lifted to that.
//! (Source of the layout: llama.cpp, `tools/perplexity/perplexity.cpp`, read in November 2026.)

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use moe_core::{OutOfMemory, memory, numerics};

use crate::input::open_regular;
use crate::perplexity::log_sum;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"_logits_";
/// How far below the greatest log-probability those are that are told apart.
const FLOOR: f32 = 16.0;
/// Bytes of a row before its integers.
const ROW_HEAD: usize = 8;
/// The greatest integer.
const STEPS: f32 = 65535.0;

/// Writes such a file, window after window.
pub struct LogitsWriter<'a, W> {
    out: &'a mut W,
    path: &'a Path,
    vocabulary: usize,
    row: Vec<u8>,
}

impl<'a, W: Write> LogitsWriter<'a, W> {
    /// Begins a file that is called `path` in errors: windows of `window` tokens over a vocabulary, and the tokens of all windows.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::OutOfMemory`].
    pub fn new(
        out: &'a mut W,
        path: &'a Path,
        window: usize,
        vocabulary: usize,
        tokens: &[u32],
    ) -> Result<Self> {
        let mut row = Vec::new();
        memory::grow(&mut row, row_bytes(vocabulary), 0, "a row of log-probabilities")?;
        let counts = [window, vocabulary, tokens.len() / window.max(1)].map(|count| count as u32);
        let written = out.write_all(MAGIC).and_then(|()| {
            let mut words = counts.iter().chain(tokens);
            words.try_for_each(|word| out.write_all(&word.to_le_bytes()))
        });
        written.map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        Ok(Self { out, path, vocabulary, row })
    }

    /// Writes the logits `[V]` after a token.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Setting`] for another number of logits.
    pub fn push(&mut self, logits: &[f32]) -> Result<()> {
        if logits.len() != self.vocabulary {
            let (expected, found) = (self.vocabulary.to_string(), logits.len().to_string());
            return Err(Error::Setting { setting: "logits", expected, found });
        }
        let (greatest, least) = (numerics::max(logits), logits.iter().copied().fold(f32::INFINITY, f32::min));
        let least = least.max(greatest - FLOOR);
        let log_sum = log_sum(logits, greatest) as f32;
        let step = (greatest - least) / STEPS;
        self.row[..4].copy_from_slice(&step.to_le_bytes());
        self.row[4..ROW_HEAD].copy_from_slice(&(least - greatest - log_sum).to_le_bytes());
        let (integers, _) = self.row[ROW_HEAD..].as_chunks_mut::<2>();
        for (to, &logit) in integers.iter_mut().zip(logits) {
            let integer =
                if step > 0.0 && logit > least { ((logit - least) / step).round_ties_even() } else { 0.0 };
            *to = (integer as u16).to_le_bytes();
        }
        self.out.write_all(&self.row).map_err(|source| Error::Io { path: self.path.to_path_buf(), source })
    }
}

fn row_bytes(vocabulary: usize) -> usize {
    ROW_HEAD + 2 * vocabulary.next_multiple_of(2)
}

/// Such a file, read window after window.
#[derive(Debug)]
pub struct LogitsFile {
    path: PathBuf,
    file: BufReader<File>,
    window: usize,
    vocabulary: usize,
    tokens: Vec<u32>,
    row: Vec<u8>,
    /// Rows that are yet to be read.
    rows: usize,
}

impl LogitsFile {
    /// Opens a file, and checks that it is as long as it says.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Checkpoint`] where it is no such file, or is not whole; [`Error::OutOfMemory`].
    pub fn open(path: &Path) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        let mut file = BufReader::new(file);
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let wrong = |expected: &str, found: String| Error::checkpoint(path, expected, found);
        let mut magic = [0; 8];
        let mut counts = [[0; 4]; 3];
        let short = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                wrong("a file of logits as llama-perplexity writes it", format!("{length} bytes"))
            }
            _ => io(error),
        };
        file.read_exact(&mut magic).map_err(short)?;
        if magic != *MAGIC {
            let found = magic.iter().copied().flat_map(std::ascii::escape_default).map(char::from).collect();
            return Err(wrong(
                "a file of logits as llama-perplexity writes it, which begins with _logits_",
                found,
            ));
        }
        for count in &mut counts {
            file.read_exact(count).map_err(short)?;
        }
        let [window, vocabulary, windows] = counts.map(|count| i64::from(i32::from_le_bytes(count)));
        for (what, count, least) in
            [("tokens of a window", window, 3), ("vocabulary", vocabulary, 1), ("windows", windows, 1)]
        {
            if count < least {
                return Err(wrong(&format!("{what} of at least {least}"), count.to_string()));
            }
        }
        let [window, vocabulary, windows] = [window, vocabulary, windows].map(|count| count as usize);
        let rows = windows as u128 * rows_of_window(window) as u128;
        let expected = 20 + 4 * (window as u128 * windows as u128) + rows * row_bytes(vocabulary) as u128;
        if u128::from(length) != expected {
            return Err(wrong(&format!("{expected} bytes"), format!("{length} bytes")));
        }
        // The length was checked: what follows is as large as the file at most.
        let mut tokens = Vec::new();
        memory::reserve(&mut tokens, window * windows, "tokens of a file of logits")?;
        for _ in 0..window * windows {
            let mut token = [0; 4];
            file.read_exact(&mut token).map_err(io)?;
            let token = u32::from_le_bytes(token);
            if token as usize >= vocabulary {
                return Err(Error::TokenOutOfRange { token, vocabulary });
            }
            tokens.push(token);
        }
        let mut row = Vec::new();
        row.try_reserve_exact(row_bytes(vocabulary))
            .map_err(|_| OutOfMemory::of::<u8>("a row of log-probabilities", row_bytes(vocabulary)))?;
        row.resize(row_bytes(vocabulary), 0);
        Ok(Self { path: path.to_path_buf(), file, window, vocabulary, tokens, row, rows: rows as usize })
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Number of ids there are.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of all windows, which it has no use for any more.
    pub(crate) fn take_tokens(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.tokens)
    }

    /// The tokens of all windows.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Reads the next row: log-probabilities `[V]`. `false` after the last.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Checkpoint`] where a number is none.
    pub fn next(&mut self, log_probabilities: &mut Vec<f32>) -> Result<bool> {
        if self.rows == 0 {
            return Ok(false);
        }
        self.file
            .read_exact(&mut self.row)
            .map_err(|source| Error::Io { path: self.path.clone(), source })?;
        self.rows -= 1;
        let float = |at: usize| f32::from_le_bytes([0, 1, 2, 3].map(|byte| self.row[at + byte]));
        let (step, least) = (float(0), float(4));
        // The greatest is 0 at most, but for rounding.
        let greatest = step * STEPS + least;
        if !(step >= 0.0 && least.is_finite() && greatest <= 1e-3) {
            let found = format!("those from {least} to {greatest}");
            return Err(Error::checkpoint(&self.path, "log-probabilities of 0 or less", found));
        }
        memory::refill(log_probabilities, self.vocabulary, 0.0, "log-probabilities")?;
        let (integers, _) = self.row[ROW_HEAD..].as_chunks::<2>();
        for (to, integer) in log_probabilities.iter_mut().zip(integers) {
            *to = step * f32::from(u16::from_le_bytes(*integer)) + least;
        }
        Ok(true)
    }
}

/// Rows that a window has.
pub(crate) fn rows_of_window(window: usize) -> usize {
    window - 1 - window / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logits");
        let (window, vocabulary) = (6, 5);
        let tokens: Vec<u32> = (0..12).map(|n| n % 5).collect();
        let logits: Vec<Vec<f32>> =
            (0..4).map(|n| (0..5).map(|v| ((n * 5 + v) as f32).sin() * 9.0 - n as f32).collect()).collect();
        let mut bytes = Vec::new();
        let mut writer = LogitsWriter::new(&mut bytes, &path, window, vocabulary, &tokens).unwrap();
        logits.iter().for_each(|row| writer.push(row).unwrap());
        assert_eq!(bytes.len(), 20 + 48 + 4 * (8 + 12));
        std::fs::write(&path, &bytes).unwrap();
        let mut file = LogitsFile::open(&path).unwrap();
        assert_eq!((file.window(), file.vocabulary(), file.tokens()), (6, 5, &tokens[..]));
        let mut row = Vec::new();
        for logits in &logits {
            assert!(file.next(&mut row).unwrap());
            let greatest = numerics::max(logits);
            let total = f64::from(greatest) + log_sum(logits, greatest);
            for (found, logit) in row.iter().zip(logits) {
                let exact = (f64::from(*logit) - total).max(f64::from(greatest - FLOOR) - total);
                assert!((f64::from(*found) - exact).abs() <= 16.0 / 65535.0 / 2.0 + 1e-5, "{found} {exact}");
            }
        }
        assert!(!file.next(&mut row).unwrap());

        // Whatever is cut off or changed in what it says of itself is found.
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(LogitsFile::open(&path).is_err(), "{cut} bytes");
        }
        for (at, byte) in [(0, b'x'), (8, 7), (12, 8), (16, 3), (19, 0x80), (20, 9), (11, 0x7f)] {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            std::fs::write(&path, &damaged).unwrap();
            assert!(LogitsFile::open(&path).is_err(), "byte {at}");
        }
        let mut damaged = bytes.clone();
        damaged[68..72].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&path, &damaged).unwrap();
        assert!(LogitsFile::open(&path).unwrap().next(&mut row).is_err());
    }
}
