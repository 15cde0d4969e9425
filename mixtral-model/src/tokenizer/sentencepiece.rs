//! Reading a sentencepiece model, `tokenizer.model`.
//!
//! A model is a `ModelProto` of sentencepiece's `sentencepiece_model.proto`. Accepted is what the tokenizers of Mistral are:
//! BPE, usually with byte fallback, usually one space in front of the text, and no other normalisation.

use std::collections::HashMap;

use super::bpe::{Merge, Merges};
use super::protobuf::Fields;
use super::vocabulary::{Kind, MAX_PIECES, Names, Piece, UNKNOWN_SURFACE, Vocabulary, parse_byte};
use super::{Reason, shorten};

/// No piece is longer. Finding the merges of a piece takes time quadratic in its length;
/// sentencepiece itself stops at 16 characters unless told otherwise.
const MAX_PIECE_BYTES: usize = 128;

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;

/// The parts of a model that say how it encodes, with the defaults of the format.
struct Model<'a> {
    pieces: Vec<Piece>,
    scores: Vec<f32>,
    model_type: u64,
    byte_fallback: bool,
    names: Names<'a>,
    unknown_surface: &'a str,
    whitespace_as_suffix: bool,
    charsmap: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

/// Reads a model from its bytes.
///
/// The last value is whether a space is put in front of a text.
pub(super) fn read(bytes: &[u8]) -> Reason<(Vocabulary, Merges, bool)> {
    let model = Model::read(bytes)?;
    model.check()?;
    let vocabulary = Vocabulary::new(model.pieces, &model.names, model.byte_fallback, model.unknown_surface)?;
    let merges = merges(&vocabulary, &model.scores)?;
    Ok((vocabulary, merges, model.add_dummy_prefix))
}

impl<'a> Model<'a> {
    fn read(bytes: &'a [u8]) -> Reason<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            scores: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            names: Names { unk: "<unk>", bos: "<s>", eos: "</s>" },
            unknown_surface: UNKNOWN_SURFACE,
            whitespace_as_suffix: false,
            charsmap: false,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        for field in Fields::new(bytes) {
            match field? {
                (1, piece) => model.read_piece(piece.bytes()?)?,
                (2, trainer) => model.read_trainer(trainer.bytes()?)?,
                (3, normalizer) => model.read_normalizer(normalizer.bytes()?)?,
                (5, denormalizer) => model.read_denormalizer(denormalizer.bytes()?)?,
                _ => {}
            }
        }
        Ok(model)
    }

    fn read_piece(&mut self, message: &'a [u8]) -> Reason<()> {
        let id = self.pieces.len();
        if id == MAX_PIECES {
            return Err(format!("expected at most {MAX_PIECES} pieces, found more"));
        }
        let (mut text, mut score, mut kind) = ("", 0.0, 1);
        for field in Fields::new(message) {
            match field? {
                (1, value) => text = value.text()?,
                (2, value) => score = value.float()?,
                (3, value) => kind = value.integer()?,
                _ => {}
            }
        }
        let kind = match kind {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            6 => Kind::Byte(parse_byte(text).ok_or_else(|| {
                format!("piece {id}: expected a byte such as <0x0A>, found {:?}", shorten(text))
            })?),
            other => {
                return Err(format!(
                    "piece {id} {:?}: expected type 1 (normal), 2 (unknown), 3 (control) or 6 (byte), found {other}",
                    shorten(text)
                ));
            }
        };
        if text.len() > MAX_PIECE_BYTES {
            let len = text.len();
            return Err(format!("piece {id}: expected at most {MAX_PIECE_BYTES} bytes, found {len}"));
        }
        if score.is_nan() {
            return Err(format!("piece {id} {text:?}: expected a score, found {score}"));
        }
        self.pieces.push(Piece { text: text.into(), kind });
        self.scores.push(score);
        Ok(())
    }

    fn read_trainer(&mut self, message: &'a [u8]) -> Reason<()> {
        for field in Fields::new(message) {
            match field? {
                (3, value) => self.model_type = value.integer()?,
                (24, value) => self.whitespace_as_suffix = value.boolean()?,
                (35, value) => self.byte_fallback = value.boolean()?,
                (44, value) => self.unknown_surface = value.text()?,
                (45, value) => self.names.unk = value.text()?,
                (46, value) => self.names.bos = value.text()?,
                (47, value) => self.names.eos = value.text()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, message: &'a [u8]) -> Reason<()> {
        for field in Fields::new(message) {
            match field? {
                (2, value) => self.charsmap |= !value.bytes()?.is_empty(),
                (3, value) => self.add_dummy_prefix = value.boolean()?,
                (4, value) => self.remove_extra_whitespaces = value.boolean()?,
                (5, value) => self.escape_whitespaces = value.boolean()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_denormalizer(&mut self, message: &'a [u8]) -> Reason<()> {
        for field in Fields::new(message) {
            if let (2, value) = field? {
                self.charsmap |= !value.bytes()?.is_empty();
            }
        }
        Ok(())
    }

    fn check(&self) -> Reason<()> {
        if self.pieces.is_empty() {
            return Err("expected pieces, found none".to_owned());
        }
        if self.model_type != BPE {
            return Err(format!("model_type: expected {BPE} (BPE), found {}", self.model_type));
        }
        if self.charsmap {
            return Err("precompiled_charsmap: expected none, found one".to_owned());
        }
        let is_byte = |piece: &Piece| matches!(piece.kind, Kind::Byte(_));
        if let Some(id) = self.pieces.iter().position(is_byte).filter(|_| !self.byte_fallback) {
            return Err(format!("piece {id}: expected no bytes without byte_fallback, found one"));
        }
        for (field, found, expected) in [
            ("treat_whitespace_as_suffix", self.whitespace_as_suffix, false),
            ("remove_extra_whitespaces", self.remove_extra_whitespaces, false),
            ("escape_whitespaces", self.escape_whitespaces, true),
        ] {
            if found != expected {
                return Err(format!("{field}: expected {expected}, found {found}"));
            }
        }
        Ok(())
    }
}

/// Spells the model's scores out as merges.
///
/// Sentencepiece merges two neighbours if what they make is a piece, the highest score first. All characters of all pieces being
/// pieces, so are both neighbours, and the pair of ids says as much as the text. Pieces of equal score get equal ranks.
fn merges(vocabulary: &Vocabulary, scores: &[f32]) -> Reason<Merges> {
    let mut descending = scores.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    descending.dedup();
    let rank = |score: f32| descending.partition_point(|&other| other > score) as u32;

    let ids: HashMap<&str, u32> = vocabulary.normal().map(|(id, text)| (text, id)).collect();
    let mut merges = Merges::new();
    for (id, text) in vocabulary.normal() {
        let rank = rank(scores[id as usize]);
        for (at, character) in text.char_indices() {
            if !ids.contains_key(&text[at..at + character.len_utf8()]) {
                return Err(format!(
                    "piece {id} {text:?}: expected characters that are pieces, found {character:?}"
                ));
            }
            let (left, right) = text.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                merges.insert((left, right), Merge { rank, piece: id });
            }
        }
    }
    Ok(merges)
}
