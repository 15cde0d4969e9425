//! Mistral's vocabularies, made from that of version 1: later versions have 768 control pieces more, after `</s>`.

use std::path::Path;

use mixtral_model::{MistralVersion, Tokenizer};

/// The sentencepiece model of Mixtral 8x7B.
pub(crate) const MODEL: &[u8] = include_bytes!("../fixtures/tokenizer/tokenizer.model");

const V2: [&str; 7] = [
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
];
const V7: [&str; 9] = [
    "[IMG]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// The tokenizer of a version.
pub(crate) fn tokenizer(version: MistralVersion) -> Tokenizer {
    let mut pieces: Vec<String> = Vec::new();
    if version > MistralVersion::V1 {
        pieces.extend(V2.map(str::to_owned));
        if version >= MistralVersion::V7 {
            pieces.extend(V7.map(str::to_owned));
        }
        pieces.extend((pieces.len()..768).map(|n| format!("[control_{n}]")));
    }
    Tokenizer::from_sentencepiece(&with_pieces(MODEL, 3, &pieces), Path::new("tokenizer.model")).unwrap()
}

/// A sentencepiece model with control pieces in front of the piece `at`.
pub(crate) fn with_pieces(model: &[u8], at: usize, pieces: &[String]) -> Vec<u8> {
    // The pieces are the first field of the message, each in a field of its own, with a length of one byte.
    let mut begin = 0;
    for _ in 0..at {
        assert_eq!(model[begin], 0x0a);
        begin += 2 + usize::from(model[begin + 1]);
    }
    let mut made = model[..begin].to_vec();
    for piece in pieces {
        let mut entry = vec![0x0a, u8::try_from(piece.len()).unwrap()];
        entry.extend(piece.as_bytes());
        entry.extend([0x15, 0, 0, 0, 0, 0x18, 3]);
        made.extend([0x0a, u8::try_from(entry.len()).unwrap()]);
        made.extend(entry);
    }
    made.extend(&model[begin..]);
    made
}
