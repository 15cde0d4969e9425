//! Ids to text, one id at a time.

use super::vocabulary::Kind;
use super::{Tokenizer, byte_level};

/// Decodes a sequence of ids piece by piece, so that text can be shown while it is generated.
///
/// All that [`push`](Self::push) returns, followed by what [`finish`](Self::finish) returns, is exactly [`Tokenizer::decode`]
/// of the same ids. Text is returned as soon as it is certain: what is held back is the beginning of a UTF-8 character
/// of which byte pieces are still missing, three bytes at most. An id that stands for no piece has no text, and is
/// [counted](Self::unknown): a model may have more ids than its tokenizer, and draw them.
///
/// Made by [`Tokenizer::decoder`] and [`Tokenizer::decoder_after`].
#[derive(Clone, Debug)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// A leading space is to be dropped, because neither text nor that space has been seen.
    at_start: bool,
    /// The valid beginning of a character.
    incomplete: Vec<u8>,
    /// The first id without a piece, and how many there were.
    unknown: Option<(u32, usize)>,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        let incomplete = Vec::with_capacity(4);
        Self { tokenizer, at_start: tokenizer.space_in_front, incomplete, unknown: None }
    }

    /// Takes the next id and returns the text that is complete by now, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_to(id, &mut text);
        text
    }

    /// The first id so far that stands for no piece, and how many such ids there were.
    pub fn unknown(&self) -> Option<(u32, usize)> {
        self.unknown
    }

    /// Ends the sequence and returns what was held back: one U+FFFD for each byte of an incomplete character.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        self.abandon(&mut text);
        text
    }

    /// [`push`](Self::push), appending to `text`.
    pub(super) fn push_to(&mut self, id: u32, text: &mut String) {
        let vocabulary = &self.tokenizer.vocabulary;
        let Some(piece) = vocabulary.get(id) else {
            self.unknown.get_or_insert((id, 0)).1 += 1;
            return;
        };
        if let Kind::Byte(byte) = piece.kind {
            self.at_start = false;
            self.incomplete.push(byte);
            self.complete(text);
            return;
        }
        if self.tokenizer.is_byte_level() {
            if piece.kind != Kind::Control {
                let spelled = piece.text.chars().map(byte_level::byte).collect::<Option<Vec<u8>>>();
                self.incomplete.extend(spelled.unwrap_or_else(|| piece.text.as_bytes().to_vec()));
                self.complete(text);
            }
            return;
        }
        self.abandon(text);
        match piece.kind {
            Kind::Control | Kind::Byte(_) => {}
            Kind::Unknown => {
                self.at_start &= vocabulary.unknown_surface.is_empty();
                text.push_str(&vocabulary.unknown_surface);
            }
            Kind::Normal | Kind::UserDefined | Kind::Unused | Kind::Added => {
                let after_space = piece.text.strip_prefix('▁').filter(|_| self.at_start);
                text.extend(
                    after_space.unwrap_or(&piece.text).chars().map(|c| if c == '▁' { ' ' } else { c }),
                );
                self.at_start = false;
            }
        }
    }

    /// Moves whole characters to `text`, and U+FFFD for what cannot become part of one.
    fn complete(&mut self, text: &mut String) {
        loop {
            let (valid, invalid) = match std::str::from_utf8(&self.incomplete) {
                Ok(whole) => (whole.len(), None),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            let valid: Vec<u8> = self.incomplete.drain(..valid).collect();
            text.push_str(&String::from_utf8_lossy(&valid));
            match invalid {
                Some(len) => self.give_up(len, text),
                None => return,
            }
        }
    }

    /// Gives up the character that was begun.
    fn abandon(&mut self, text: &mut String) {
        self.give_up(self.incomplete.len(), text);
    }

    /// Writes U+FFFD for the first bytes: for each of them, as sentencepiece does, or in byte-level BPE for all together.
    fn give_up(&mut self, len: usize, text: &mut String) {
        self.incomplete.drain(..len);
        let marks = if self.tokenizer.is_byte_level() { len.min(1) } else { len };
        text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
    }
}
