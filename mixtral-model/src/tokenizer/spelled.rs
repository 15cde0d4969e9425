//! A sentencepiece model, spelled out piece by piece, and back.

use std::collections::HashMap;
use std::path::Path;

use super::bpe::{Merge, Merges};
use super::vocabulary::{Kind, parse_byte};
use super::{Reason, SentencePieces, Tokenizer, sentencepiece, unusable};
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

impl Tokenizer {
    /// The pieces of this tokenizer with scores that say what its merges do. Pieces that no merge makes have the least; ids without
    /// a piece have one that stands for nothing.
    ///
    /// Of two ways to merge one piece, scores prefer the first in the text, where merges have an order of their own. Tokenizers that
    /// were converted from sentencepiece's took theirs from scores.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) for byte-level BPE, and for merges that are not those of scores: some but not all
    /// that make a piece, or those of two pieces mixed.
    pub(crate) fn spell(&self) -> Result<SentencePieces> {
        self.scored().map_err(|reason| unusable(&self.path, reason))
    }

    fn scored(&self) -> Reason<SentencePieces> {
        let expected = "expected merges that scores can stand for, as a GGUF file has them";
        let Some(merges) = self.bpe.merges().filter(|_| !self.is_byte_level()) else {
            return Err(format!("{expected}, found byte-level BPE, or pieces that are not merged"));
        };
        // Of each piece, the ranks of the first and the last merge that makes it.
        let mut ranks: HashMap<u32, (u32, u32)> = HashMap::new();
        for merge in merges.values() {
            let (first, last) = ranks.entry(merge.piece).or_insert((merge.rank, merge.rank));
            (*first, *last) = (merge.rank.min(*first), merge.rank.max(*last));
        }
        let mut order: Vec<_> = ranks.into_iter().map(|(id, (first, last))| (first, last, id)).collect();
        order.sort_unstable();
        if let Some(pair) = order.windows(2).find(|pair| pair[0].1 >= pair[1].0) {
            let [a, b] = [pair[0].2, pair[1].2].map(|id| self.spelled(id));
            return Err(format!("{expected}, found merges of {a} and {b} in one another"));
        }
        let end = self.vocab_size();
        let mut pieces = SentencePieces::new(Vec::with_capacity(end), vec![-(order.len() as f32); end]);
        for id in 0..end as u32 {
            let piece = self.vocabulary.get(id);
            pieces.texts.push(piece.map_or_else(|| format!("[PAD{id}]"), |piece| piece.text.to_string()));
            pieces.types.push(piece.map_or(Kind::Unused, |piece| piece.kind).number());
        }
        for (place, (.., id)) in order.iter().enumerate() {
            pieces.scores[*id as usize] = -(place as f32);
        }
        (pieces.unk, pieces.bos, pieces.eos) = (self.unk(), Some(self.bos()), Some(self.eos()));
        pieces.space_in_front = self.space_in_front;
        let found = pieces.draft()?.merges;
        let differ = |(pair, merge): (&(u32, u32), &Merge), other: &Merges| {
            (other.get(pair).map(|other| other.piece) != Some(merge.piece)).then_some(merge.piece)
        };
        let missing = merges.iter().filter_map(|merge| differ(merge, &found));
        match missing.chain(found.iter().filter_map(|merge| differ(merge, merges))).min() {
            Some(id) => {
                Err(format!("{expected}, found other merges of {} than its text allows", self.spelled(id)))
            }
            None => Ok(pieces),
        }
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
