//! The table of pieces: what each id stands for.

use std::collections::HashMap;

use super::{Reason, shorten};

/// What sentencepiece writes where the unknown piece is decoded, unless the file says otherwise.
pub(super) const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// No vocabulary is larger. The largest in use have a quarter as many.
pub(super) const MAX_PIECES: usize = 1 << 20;

/// One entry of the vocabulary.
#[derive(Debug)]
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
    /// Stands for one byte of UTF-8, `<0x00>` to `<0xFF>`.
    Byte(u8),
}

/// All pieces, by id, and the ids that have a meaning of their own.
pub(super) struct Vocabulary {
    pieces: Vec<Piece>,
    /// The pieces for what no other piece covers, if bytes are.
    bytes: Option<[u32; 256]>,
    pub(super) unk: u32,
    pub(super) bos: u32,
    pub(super) eos: u32,
    pub(super) unknown_surface: Box<str>,
}

/// The texts by which the special pieces are found.
pub(super) struct Names<'a> {
    pub(super) unk: &'a str,
    pub(super) bos: &'a str,
    pub(super) eos: &'a str,
}

impl Vocabulary {
    /// Takes the pieces in the order of their ids.
    ///
    /// Fails where a text is empty or occurs twice, a special piece is missing or of another kind,
    /// or one of the 256 byte pieces is missing where `byte_fallback` asks for them.
    pub(super) fn new(
        pieces: Vec<Piece>,
        names: &Names<'_>,
        byte_fallback: bool,
        unknown_surface: &str,
    ) -> Reason<Self> {
        if pieces.len() > MAX_PIECES {
            return Err(format!("expected at most {MAX_PIECES} pieces, found {}", pieces.len()));
        }
        let mut ids = HashMap::with_capacity(pieces.len());
        for (id, piece) in (0..).zip(&pieces) {
            if piece.text.is_empty() {
                return Err(format!("piece {id}: expected a text, found none"));
            }
            if let Some(first) = ids.insert(&*piece.text, id) {
                let text = shorten(&piece.text);
                return Err(format!("piece {id}: expected a new text, found {text:?} of piece {first}"));
            }
        }
        let find = |text: &str, kind: Kind| match ids.get(text) {
            Some(&id) if pieces[id as usize].kind == kind => Ok(id),
            Some(&id) => {
                let (expected, found) = (kind.name(), pieces[id as usize].kind.name());
                Err(format!("piece {id} {text:?}: expected kind {expected}, found {found}"))
            }
            None => Err(format!("expected a piece {text:?}, found none")),
        };
        let mut bytes = byte_fallback.then_some([0; 256]);
        for (byte, id) in (0..=u8::MAX).zip(bytes.iter_mut().flatten()) {
            *id = find(&format!("<0x{byte:02X}>"), Kind::Byte(byte))?;
        }
        let unk = find(names.unk, Kind::Unknown)?;
        let bos = find(names.bos, Kind::Control)?;
        let eos = find(names.eos, Kind::Control)?;
        Ok(Self { pieces, bytes, unk, bos, eos, unknown_surface: unknown_surface.into() })
    }

    /// Number of pieces; ids are below it.
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The piece of an id, if there is one.
    pub(super) fn get(&self, id: u32) -> Option<&Piece> {
        self.pieces.get(id as usize)
    }

    /// The ids by byte for text that no other piece covers; if `None`, that text is unknown.
    pub(super) fn bytes(&self) -> Option<&[u32; 256]> {
        self.bytes.as_ref()
    }

    /// The normal pieces with their ids, in ascending order.
    pub(super) fn normal(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..)
            .zip(&self.pieces)
            .filter(|(_, piece)| piece.kind == Kind::Normal)
            .map(|(id, piece)| (id, &*piece.text))
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Normal => "normal",
            Kind::Unknown => "unknown",
            Kind::Control => "control",
            Kind::Byte(_) => "byte",
        }
    }
}

/// The byte that a text of the form `<0x0A>` stands for, with two upper-case digits.
pub(super) fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (format!("{byte:02X}") == digits).then_some(byte)
}
