//! Ids to text, one id at a time.

use super::Tokenizer;
use super::vocabulary::Kind;
use crate::Result;

/// Decodes a sequence of ids piece by piece, so that text can be shown while it is generated.
///
/// All that [`push`](Self::push) returns, followed by what [`finish`](Self::finish) returns, is exactly [`Tokenizer::decode`]
/// of the same ids. Text is returned as soon as it is certain: what is held back is the beginning of a UTF-8 character
/// of which byte pieces are still missing, three bytes at most.
///
/// Made by [`Tokenizer::decoder`] and [`Tokenizer::decoder_after`].
#[derive(Clone, Debug)]
pub struct StreamDecoder<'t> {
    tokenizer: &'t Tokenizer,
    /// A leading space is to be dropped, because neither text nor that space has been seen.
    at_start: bool,
    /// The valid beginning of a character.
    incomplete: Vec<u8>,
}

impl<'t> StreamDecoder<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, at_start: tokenizer.space_in_front, incomplete: Vec::with_capacity(4) }
    }

    /// Takes the next id and returns the text that is complete by now, which may be empty.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`](crate::Error::TokenOutOfRange) for an id that the vocabulary does not have;
    /// the decoder is then as before the call.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let mut text = String::new();
        self.push_to(id, &mut text)?;
        Ok(text)
    }

    /// Ends the sequence and returns what was held back: one U+FFFD for each byte of an incomplete character.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        self.abandon(&mut text);
        text
    }

    /// [`push`](Self::push), appending to `text`.
    pub(super) fn push_to(&mut self, id: u32, text: &mut String) -> Result<()> {
        let vocabulary = &self.tokenizer.vocabulary;
        let piece = self.tokenizer.look_up(id)?;
        if let Kind::Byte(byte) = piece.kind {
            self.at_start = false;
            self.incomplete.push(byte);
            self.complete(text);
            return Ok(());
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
        Ok(())
    }

    /// Moves a whole character to `text`, and U+FFFD for each byte that cannot become part of one.
    fn complete(&mut self, text: &mut String) {
        loop {
            match std::str::from_utf8(&self.incomplete) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.incomplete.clear();
                    return;
                }
                Err(error) => match error.error_len() {
                    Some(len) => {
                        text.extend(self.incomplete.drain(..len).map(|_| char::REPLACEMENT_CHARACTER))
                    }
                    None => return,
                },
            }
        }
    }

    /// Gives up the character that was begun.
    fn abandon(&mut self, text: &mut String) {
        text.extend(self.incomplete.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }
}
