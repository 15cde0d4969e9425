//! How single tokens are written.

use mixtral_model::Tokenizer;

/// The text that a token adds to one before it; of a control token, or of one that is only a part of a character, its piece as the
/// tokenizer's file spells it, so that different tokens are written in different ways.
pub(super) fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    let piece = || tokenizer.piece(id).map_or_else(|| format!("<{id}>"), str::to_owned);
    if tokenizer.is_control(id) {
        return piece();
    }
    // After itself, so that a space in front of it is not that of a text's beginning.
    let text = tokenizer.decoder_after(&[id]).push(id);
    if text.is_empty() || text.contains(char::REPLACEMENT_CHARACTER) { piece() } else { text }
}

/// The bytes that a token adds, where its spelling is its text; of a byte's piece, the byte.
pub(super) fn bytes(spelled: &str) -> Vec<u8> {
    let hex =
        spelled.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => spelled.as_bytes().to_vec(),
    }
}
