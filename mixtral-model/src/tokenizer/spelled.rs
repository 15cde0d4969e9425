//! A sentencepiece model, spelled out piece by piece, and back.

use std::path::Path;

use super::vocabulary::parse_byte;
use super::{SentencePieces, sentencepiece, unusable};
use crate::Result;

impl SentencePieces {
    /// The pieces of a sentencepiece model, given its bytes; `path` serves error messages alone.
    ///
    /// [`Tokenizer::from_pieces`](super::Tokenizer::from_pieces) makes of them what
    /// [`Tokenizer::from_sentencepiece`](super::Tokenizer::from_sentencepiece) makes of the model.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::from_sentencepiece`](super::Tokenizer::from_sentencepiece); [`Error::Tokenizer`](crate::Error::Tokenizer)
    /// too if the model writes the unknown piece otherwise than usual.
    pub fn from_sentencepiece(bytes: &[u8], path: &Path) -> Result<Self> {
        sentencepiece::spelled(bytes).map_err(|reason| unusable(path, reason))
    }

    /// A sentencepiece model of these pieces: BPE, with byte fallback if there are byte pieces, and no normalisation but a
    /// space in front. Scores and types are those given, except that the ids of `unk`, `bos` and `eos` are what these are called.
    pub fn to_sentencepiece(&self) -> Vec<u8> {
        let piece = |id: u32| self.texts.get(id as usize).map_or("", String::as_str);
        let unknown = self.types.iter().zip(0..).find(|(kind, _)| **kind == UNKNOWN).map(|(_, id)| id);
        let unk = self.unk.or(unknown).unwrap_or(0);
        let (bos, eos) = (self.bos.unwrap_or(1), self.eos.unwrap_or(2));
        let kind = |id: u32, text: &str| match self.types.get(id as usize) {
            _ if id == unk => UNKNOWN,
            _ if id == bos || id == eos => CONTROL,
            Some(&kind) => kind,
            None => parse_byte(text).map_or(NORMAL, |_| BYTE),
        };
        let (mut model, mut bytes) = (Vec::new(), false);
        for (id, (text, score)) in (0..).zip(self.texts.iter().zip(&self.scores)) {
            let (mut message, kind) = (Vec::new(), kind(id, text));
            put_bytes(&mut message, 1, text.as_bytes());
            varint(&mut message, 2 << 3 | FIXED32);
            message.extend(score.to_le_bytes());
            put_integer(&mut message, 3, kind.into());
            put_bytes(&mut model, 1, &message);
            bytes |= kind == BYTE;
        }
        let mut trainer = Vec::new();
        for (field, value) in [
            (3, BPE),
            (4, self.texts.len() as u64),
            (35, bytes.into()),
            (40, unk.into()),
            (41, bos.into()),
            (42, eos.into()),
        ] {
            put_integer(&mut trainer, field, value);
        }
        for (field, id) in [(45, unk), (46, bos), (47, eos)] {
            put_bytes(&mut trainer, field, piece(id).as_bytes());
        }
        put_bytes(&mut model, 2, &trainer);
        let mut normalizer = Vec::new();
        put_bytes(&mut normalizer, 1, b"identity");
        for (field, value) in [(3, self.space_in_front), (4, false), (5, true)] {
            put_integer(&mut normalizer, field, value.into());
        }
        put_bytes(&mut model, 3, &normalizer);
        model
    }
}

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;

/// Types of pieces.
const NORMAL: u32 = 1;
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const BYTE: u32 = 6;

/// Protobuf's wire types of what has a length, and of four bytes.
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_integer(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | LENGTH);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}
