//! The table of pieces: what each id stands for.

use super::find::Token;
use super::{Reason, shorten};

/// What sentencepiece writes where the unknown piece is decoded, unless the file says otherwise.
pub(super) const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// No vocabulary has more pieces, nor higher ids. The largest in use have a quarter as many.
pub(super) const MAX_PIECES: usize = 1 << 20;

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
    /// Positions in `pieces`, by ascending text.
    by_text: Vec<u32>,
    /// The pieces for what no other piece covers, if bytes are.
    bytes: Option<[u32; 256]>,
    pub(super) special: Special,
    pub(super) unknown_surface: Box<str>,
}

/// The ids that have a meaning of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Special {
    pub(super) unk: u32,
    pub(super) bos: u32,
    pub(super) eos: u32,
}

impl Vocabulary {
    /// Takes the pieces in ascending order of their ids.
    ///
    /// Fails where a text is empty or occurs twice, an id is too high,
    /// or one of the 256 byte pieces is missing where `byte_fallback` asks for them.
    pub(super) fn new(
        pieces: Vec<(u32, Piece)>,
        special: Special,
        byte_fallback: bool,
        unknown_surface: &str,
    ) -> Reason<Self> {
        if let Some((id, _)) = pieces.iter().find(|(id, _)| *id as usize >= MAX_PIECES) {
            return Err(format!("vocab: expected ids below {MAX_PIECES}, found {id}"));
        }
        if let Some((id, _)) = pieces.iter().find(|(_, piece)| piece.text.is_empty()) {
            return Err(format!("piece {id}: expected a text, found none"));
        }
        let mut by_text: Vec<u32> = (0..).take(pieces.len()).collect();
        let text = |at: u32| &*pieces[at as usize].1.text;
        by_text.sort_by(|&a, &b| text(a).cmp(text(b)));
        if let Some(pair) = by_text.windows(2).find(|pair| text(pair[0]) == text(pair[1])) {
            let [first, id] = [pair[0], pair[1]].map(|at| pieces[at as usize].0);
            let text = shorten(text(pair[0]));
            return Err(format!("piece {id}: expected a new text, found {text:?} of piece {first}"));
        }
        let bytes = if byte_fallback { Some(bytes(&pieces)?) } else { None };
        Ok(Self { pieces, by_text, bytes, special, unknown_surface: unknown_surface.into() })
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
        let entry = |at: u32| &self.pieces[at as usize];
        let at = self.by_text.binary_search_by(|&at| (*entry(at).1.text).cmp(text)).ok()?;
        Some(entry(self.by_text[at]).0)
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

    /// The pieces of some kinds, as tokens to look for.
    pub(super) fn of_kinds(&self, kinds: &[Kind]) -> Vec<Token> {
        let pieces = self.iter().filter(|(_, piece)| kinds.contains(&piece.kind));
        pieces.map(|(id, piece)| Token::plain(id, &piece.text)).collect()
    }
}

impl Kind {
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
