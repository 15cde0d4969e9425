//! The table of pieces: what each id stands for.

use std::collections::HashMap;

use super::Reason;
use super::table::Table;

/// What sentencepiece writes where the unknown piece is decoded, unless the file says otherwise.
pub(super) const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// No vocabulary has more pieces, nor higher ids. The largest in use have a quarter as many.
pub(super) const MAX_PIECES: usize = 1 << 20;

/// Ids by text.
pub(super) type Ids = HashMap<Box<str>, u32>;

/// One entry of the vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) text: Box<str>,
    pub(super) kind: Kind,
}

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Stands for its own text, with `▁` for a space.
    Normal,
    /// Stands for text that no other piece covers.
    Unknown,
    /// Steers the model, such as `<s>`; has no text.
    Control,
    /// Stands for its own text wherever that is written, and grows into nothing else.
    UserDefined,
    /// A step between normal pieces, cut up again where merging ends with it.
    Unused,
    /// Stands for one byte of UTF-8, `<0x00>` to `<0xFF>`.
    Byte(u8),
    /// Was added to a finished vocabulary: has its text, and takes no part in merging.
    Added,
}

/// All pieces, by id, and the ids that have a meaning of their own.
pub(super) struct Vocabulary {
    /// By ascending id. There may be gaps.
    pieces: Vec<(u32, Piece)>,
    ids: Ids,
    /// The pieces for what no other piece covers, if bytes are.
    bytes: Option<[u32; 256]>,
    pub(super) special: Special,
    pub(super) unknown_surface: Box<str>,
}

/// The ids that have a meaning of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Special {
    pub(super) unk: Option<u32>,
    pub(super) bos: u32,
    pub(super) eos: u32,
}

impl Vocabulary {
    /// Fails if one of the 256 byte pieces is missing where `byte_fallback` asks for them.
    pub(super) fn new(
        table: Table,
        special: Special,
        byte_fallback: bool,
        unknown_surface: &str,
    ) -> Reason<Self> {
        let (pieces, ids) = table.into_parts();
        let bytes = if byte_fallback { Some(bytes(&pieces)?) } else { None };
        Ok(Self { pieces, ids, bytes, special, unknown_surface: unknown_surface.into() })
    }

    /// One more than the highest id.
    pub(super) fn end(&self) -> usize {
        self.pieces.last().map_or(0, |(id, _)| *id as usize + 1)
    }

    /// The piece of an id, if there is one.
    pub(super) fn get(&self, id: u32) -> Option<&Piece> {
        // Without a gap below it, a piece stands where its id says.
        match self.pieces.get(id as usize) {
            Some((found, piece)) if *found == id => Some(piece),
            _ => Some(&self.pieces[self.pieces.binary_search_by_key(&id, |(id, _)| *id).ok()?].1),
        }
    }

    /// The id of the piece that is spelled so, whatever its kind.
    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The ids by byte for text that no other piece covers; if `None`, that text is unknown.
    pub(super) fn bytes(&self) -> Option<&[u32; 256]> {
        self.bytes.as_ref()
    }

    /// All pieces with their ids, in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Piece)> {
        self.pieces.iter().map(|(id, piece)| (*id, piece))
    }

    /// The pieces that merging makes, with their ids, in ascending order.
    pub(super) fn merging(&self) -> impl Iterator<Item = (u32, &Piece)> {
        self.iter().filter(|(_, piece)| matches!(piece.kind, Kind::Normal | Kind::Unused))
    }

    /// The ids of the pieces of one kind, in ascending order.
    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = u32> {
        self.iter().filter(move |(_, piece)| piece.kind == kind).map(|(id, _)| id)
    }
}

impl Kind {
    /// Sentencepiece's number of it. What was added later is user-defined to it.
    pub(super) fn number(self) -> u32 {
        match self {
            Kind::Normal => 1,
            Kind::Unknown => 2,
            Kind::Control => 3,
            Kind::UserDefined | Kind::Added => 4,
            Kind::Unused => 5,
            Kind::Byte(_) => 6,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Normal => "normal",
            Kind::Unknown => "unknown",
            Kind::Control => "control",
            Kind::UserDefined => "user-defined",
            Kind::Unused => "unused",
            Kind::Byte(_) => "byte",
            Kind::Added => "added",
        }
    }
}

/// The pieces of all bytes.
fn bytes(pieces: &[(u32, Piece)]) -> Reason<[u32; 256]> {
    let mut ids = [None; 256];
    for (id, piece) in pieces {
        if let Kind::Byte(byte) = piece.kind {
            ids[usize::from(byte)] = Some(*id);
        }
    }
    let mut found = [0; 256];
    for (byte, (id, found)) in ids.into_iter().zip(&mut found).enumerate() {
        *found = id.ok_or_else(|| format!("expected a piece \"<0x{byte:02X}>\", found none"))?;
    }
    Ok(found)
}

/// The byte that a text of the form `<0x0A>` stands for, with two upper-case digits.
pub(super) fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (format!("{byte:02X}") == digits).then_some(byte)
}
