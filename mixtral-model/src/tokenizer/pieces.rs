//! A sentencepiece vocabulary that is spelled out piece by piece, as GGUF files hold it.

use std::collections::HashMap;

use super::bpe::{Merge, Merges};
use super::draft::{Begins, Draft, Surrounds};
use super::find::{Finder, Token};
use super::table::Table;
use super::vocabulary::{Kind, Piece, UNKNOWN_SURFACE, parse_byte};
use super::written::Layout;
use super::{Reason, shorten};

/// No piece is longer. Finding the merges of a piece takes time quadratic in its length;
/// sentencepiece itself stops at 16 characters unless told otherwise.
const MAX_PIECE_BYTES: usize = 128;

/// The vocabulary of a sentencepiece BPE model, piece by piece, with what else a GGUF file says of it.
///
/// Lists are by id.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SentencePieces {
    /// What each piece is spelled like, with `▁` for a space: `tokenizer.ggml.tokens`.
    pub texts: Vec<String>,
    /// How early a piece is merged, the highest first: `tokenizer.ggml.scores`. There is no encoding without them: the order of the ids
    /// is not theirs, since Mixtral's runs of spaces have low ids and are merged last.
    pub scores: Vec<f32>,
    /// What a piece is for: `tokenizer.ggml.token_type`, 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    /// If there are none, `unk`, and texts from `<0x00>` to `<0xFF>`, are what they look like, and the others normal.
    pub types: Vec<u32>,
    /// The id that begins a sequence; if absent, 1. Control, whatever its type.
    pub bos: Option<u32>,
    /// The id that ends a sequence; if absent, 2. Control, whatever its type.
    pub eos: Option<u32>,
    /// The id of unknown text; if absent, that of the first piece of that type, or 0.
    pub unk: Option<u32>,
    /// Whether a prompt begins with `bos`; if absent, it does.
    pub add_bos: Option<bool>,
    /// Whether a prompt ends with `eos`; if absent, it does not.
    pub add_eos: Option<bool>,
    /// Whether a space is put in front of a text.
    pub space_in_front: bool,
}

impl SentencePieces {
    /// Pieces of which nothing but their texts and scores is known, with a space in front of a text.
    pub fn new(texts: Vec<String>, scores: Vec<f32>) -> Self {
        Self {
            texts,
            scores,
            types: Vec::new(),
            bos: None,
            eos: None,
            unk: None,
            add_bos: None,
            add_eos: None,
            space_in_front: true,
        }
    }

    pub(super) fn draft(&self) -> Reason<Draft> {
        let len = self.texts.len();
        if len == 0 {
            return Err("expected pieces, found none".to_owned());
        }
        let types = if self.types.is_empty() { len } else { self.types.len() };
        for (list, found) in [("scores", self.scores.len()), ("types", types)] {
            if found != len {
                return Err(format!("{list}: expected {len}, one a piece, found {found}"));
            }
        }
        let unknown = self.types.iter().zip(0..).find(|(kind, _)| **kind == 2).map(|(_, id)| id);
        let unk = self.unk.or(unknown).unwrap_or(0);
        let (bos, eos) = (self.bos.unwrap_or(1), self.eos.unwrap_or(2));
        for (name, id) in [("unk", unk), ("bos", bos), ("eos", eos)] {
            if id as usize >= len {
                return Err(format!("{name}: expected an id below {len}, found {id}"));
            }
        }
        let pieces = (0..).zip(self.texts.iter().zip(&self.scores)).map(|(id, (text, &score))| {
            let kind = if id == unk { Kind::Unknown } else { self.kind(id, text)? };
            check(id, text, score)?;
            Ok((id, Piece { text: text.as_str().into(), kind }))
        });
        let table = Table::new(pieces.collect::<Reason<Vec<_>>>()?)?;
        let mut warnings = Vec::new();
        if len > 1 && self.scores.iter().all(|score| *score == self.scores[0]) {
            // Converters that do not know them write one number for all.
            warnings.push(format!(
                "scores: {} for all pieces, which are merged from left to right",
                self.scores[0]
            ));
        }
        let byte_fallback = table.pieces().any(|(_, piece)| matches!(piece.kind, Kind::Byte(_)));
        let user_defined = table.pieces().filter(|(_, piece)| piece.kind == Kind::UserDefined);
        let user_defined = user_defined.map(|(id, piece)| Token::plain(id, &piece.text)).collect::<Vec<_>>();
        Ok(Draft {
            merges: merges(&table, &self.scores)?,
            table,
            layout: Layout::sentencepiece(self.space_in_front, Finder::new(user_defined.clone())?),
            space_in_front: self.space_in_front,
            user_defined,
            // Unlike sentencepiece, llama.cpp puts a space in front of what follows a user-defined piece too.
            written: &[Kind::Unknown, Kind::Control, Kind::UserDefined],
            byte_fallback,
            fuse_unknown: true,
            ignore_merges: false,
            unknown_surface: UNKNOWN_SURFACE.to_owned(),
            unk: Some(unk),
            bos: Begins::Id(bos),
            eos: Begins::Id(eos),
            around: Surrounds::Flags {
                bos: self.add_bos.unwrap_or(true),
                eos: self.add_eos.unwrap_or(false),
            },
            warnings,
        })
    }

    fn kind(&self, id: u32, text: &str) -> Reason<Kind> {
        match self.types.get(id as usize) {
            Some(&number) => kind(id, text, u64::from(number)),
            None => Ok(parse_byte(text).map_or(Kind::Normal, Kind::Byte)),
        }
    }
}

/// What the type of a piece means in sentencepiece's numbers.
pub(super) fn kind(id: u32, text: &str, number: u64) -> Reason<Kind> {
    Ok(match number {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte(parse_byte(text).ok_or_else(|| {
            format!("piece {id}: expected a byte such as <0x0A>, found {:?}", shorten(text))
        })?),
        other => {
            let text = shorten(text);
            return Err(format!(
                "piece {id} {text:?}: expected a type from 1 (normal) to 6 (byte), found {other}"
            ));
        }
    })
}

/// Whether a piece is one that merges can be found for.
pub(super) fn check(id: u32, text: &str, score: f32) -> Reason<()> {
    if text.len() > MAX_PIECE_BYTES {
        let len = text.len();
        return Err(format!("piece {id}: expected at most {MAX_PIECE_BYTES} bytes, found {len}"));
    }
    if score.is_nan() {
        return Err(format!("piece {id} {text:?}: expected a score, found {score}"));
    }
    Ok(())
}

/// Spells scores, by id, out as merges.
///
/// Sentencepiece merges two neighbours if what they make is a piece, the highest score first. All characters of all pieces being
/// pieces, so are both neighbours, and the pair of ids says as much as the text. Pieces of equal score get equal ranks.
pub(super) fn merges(table: &Table, scores: &[f32]) -> Reason<Merges> {
    let mut descending = scores.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    descending.dedup();
    let rank = |score: f32| descending.partition_point(|&other| other > score) as u32;

    let merging = || table.pieces().filter(|(_, piece)| matches!(piece.kind, Kind::Normal | Kind::Unused));
    let ids: HashMap<&str, u32> = merging().map(|(id, piece)| (&*piece.text, id)).collect();
    let mut merges = Merges::new();
    for (id, piece) in merging() {
        let (text, rank) = (&*piece.text, rank(scores[id as usize]));
        for (at, character) in text.char_indices() {
            if !ids.contains_key(&text[at..at + character.len_utf8()]) {
                // Never met, such as `[PAD7]` among pieces that hold no digits.
                if piece.kind == Kind::Unused {
                    break;
                }
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
