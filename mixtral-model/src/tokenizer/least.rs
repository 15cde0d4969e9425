//! How few ids a text can have.

use super::{Tokenizer, byte_level};

impl Tokenizer {
    /// The least number of ids that [a prompt](Self::encode_prompt) of this text can have, found without reading it.
    ///
    /// It is 0 where that cannot be told: where a single id may stand for any number of bytes, such as the white space beside a token,
    /// characters without pieces, or BOS tokens written one after the other.
    pub fn least_ids(&self, text: &str) -> usize {
        let Self { bpe, vocabulary, written, .. } = self;
        let all_have_pieces = match written.layout.bytes {
            Some(_) => (0..=255).all(|byte| bpe.has_character(byte_level::character(byte))),
            None => vocabulary.bytes().is_some(),
        };
        let bos = vocabulary.get(self.bos()).map_or("", |piece| &piece.text);
        let begins_with_bos = !bos.is_empty() && text.trim_start().starts_with(bos);
        if !all_have_pieces || begins_with_bos || !bpe.is_spelled() || written.strips() {
            return 0;
        }
        // Spelled, a piece has no fewer bytes than in a text.
        let pieces = vocabulary.iter().map(|(_, piece)| piece.text.len());
        text.len() / pieces.chain(written.token_bytes()).max().unwrap_or(0).max(1)
    }
}
