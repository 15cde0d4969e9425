//! Reading a sentencepiece model, `tokenizer.model`.
//!
//! A model is a `ModelProto` of sentencepiece's `sentencepiece_model.proto`. Accepted is what the tokenizers of Mistral are:
//! BPE, usually with byte fallback, usually one space in front of the text, and no other normalisation.

use super::Reason;
use super::draft::{Begins, Draft, Surrounds};
use super::find::{Finder, Token};
use super::pieces::{self, SentencePieces};
use super::protobuf::Fields;
use super::table::Table;
use super::vocabulary::{Kind, MAX_PIECES, Piece, UNKNOWN_SURFACE};
use super::written::Layout;

/// The texts by which the special pieces are found.
struct Names<'a> {
    unk: &'a str,
    bos: &'a str,
    eos: &'a str,
}

/// `TrainerSpec.ModelType.BPE`.
const BPE: u64 = 2;

/// The parts of a model that say how it encodes, with the defaults of the format.
struct Model<'a> {
    pieces: Vec<(u32, Piece)>,
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
pub(super) fn read(bytes: &[u8]) -> Reason<Draft> {
    let model = Model::read(bytes)?;
    model.check()?;
    let Names { unk, bos, eos } = model.names;
    let table = Table::new(model.pieces)?;
    let find = |name: &str, kind: Kind| {
        let id = table.id_of(name).ok_or_else(|| format!("expected a piece {name:?}, found none"))?;
        match table.get(id).map(|piece| piece.kind) {
            Some(found) if found != kind => {
                let (expected, found) = (kind.name(), found.name());
                Err(format!("piece {id} {name:?}: expected kind {expected}, found {found}"))
            }
            _ => Ok(id),
        }
    };
    let (unk, bos, eos) = (find(unk, Kind::Unknown)?, find(bos, Kind::Control)?, find(eos, Kind::Control)?);
    let user_defined = table.pieces().filter(|(_, piece)| piece.kind == Kind::UserDefined);
    let user_defined = user_defined.map(|(id, piece)| Token::plain(id, &piece.text)).collect::<Vec<_>>();
    Ok(Draft {
        merges: pieces::merges(&table, &model.scores)?,
        layout: Layout::sentencepiece(model.add_dummy_prefix, Finder::new(user_defined.clone())?),
        table,
        space_in_front: model.add_dummy_prefix,
        user_defined,
        written: &[Kind::Unknown, Kind::Control],
        byte_fallback: model.byte_fallback,
        fuse_unknown: true,
        ignore_merges: false,
        unknown_surface: model.unknown_surface.to_owned(),
        unk: Some(unk),
        bos: Begins::Id(bos),
        eos: Begins::Id(eos),
        around: Surrounds::Flags { bos: true, eos: false },
        warnings: Vec::new(),
    })
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
        if self.pieces.len() == MAX_PIECES {
            return Err(format!("expected at most {MAX_PIECES} pieces, found more"));
        }
        let id = self.pieces.len() as u32;
        let (mut text, mut score, mut kind) = ("", 0.0, 1);
        for field in Fields::new(message) {
            match field? {
                (1, value) => text = value.text()?,
                (2, value) => score = value.float()?,
                (3, value) => kind = value.integer()?,
                _ => {}
            }
        }
        let kind = pieces::kind(id, text, kind)?;
        pieces::check(id, text, score)?;
        self.pieces.push((id, Piece { text: text.into(), kind }));
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
        let byte = self.pieces.iter().find(|(_, piece)| matches!(piece.kind, Kind::Byte(_)));
        if let Some((id, _)) = byte.filter(|_| !self.byte_fallback) {
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

/// The pieces of a model, spelled out.
pub(super) fn spelled(bytes: &[u8]) -> Reason<SentencePieces> {
    let model = Model::read(bytes)?;
    model.check()?;
    if model.unknown_surface != UNKNOWN_SURFACE {
        // There is no place for it among pieces.
        let found = model.unknown_surface;
        return Err(format!("unk_surface: expected {UNKNOWN_SURFACE:?}, found {found:?}"));
    }
    let id_of = |name: &str| {
        let found = model.pieces.iter().find(|(_, piece)| *piece.text == *name);
        found.map(|(id, _)| *id).ok_or_else(|| format!("expected a piece {name:?}, found none"))
    };
    let (unk, bos, eos) = (id_of(model.names.unk)?, id_of(model.names.bos)?, id_of(model.names.eos)?);
    let texts = model.pieces.iter().map(|(_, piece)| piece.text.to_string()).collect();
    let mut spelled = SentencePieces::new(texts, model.scores);
    spelled.types = model.pieces.iter().map(|(_, piece)| piece.kind.number()).collect();
    (spelled.unk, spelled.bos, spelled.eos) = (Some(unk), Some(bos), Some(eos));
    (spelled.add_bos, spelled.add_eos) = (Some(true), Some(false));
    spelled.space_in_front = model.add_dummy_prefix;
    Ok(spelled)
}
