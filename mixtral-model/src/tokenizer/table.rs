//! A vocabulary in the making: a model's own pieces, and the tokens that were added to them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::find::Token;
use super::vocabulary::{Ids, Kind, MAX_PIECES, Piece};
use super::{Reason, shorten};

/// A token that was added to a finished vocabulary, with how it is recognised in a text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct AddedToken {
    pub(super) content: String,
    /// Only where no letter, digit or underscore stands beside it.
    #[serde(default)]
    pub(super) single_word: bool,
    /// With the white space on its left.
    #[serde(default)]
    pub(super) lstrip: bool,
    /// With the white space on its right.
    #[serde(default)]
    pub(super) rstrip: bool,
    /// In what the normaliser makes of the text; if absent, unless it is special.
    #[serde(default)]
    pub(super) normalized: Option<bool>,
    /// It has no text when ids are decoded.
    #[serde(default)]
    pub(super) special: bool,
}

/// Pieces by id and by text.
pub(super) struct Table {
    pieces: BTreeMap<u32, Piece>,
    ids: Ids,
    /// How many pieces are the model's own.
    own: u32,
    added: BTreeMap<u32, AddedToken>,
}

impl AddedToken {
    /// A token that is recognised wherever its text is, and steers the model if it is `special`.
    pub(super) fn new(content: &str, special: bool) -> Self {
        let content = content.to_owned();
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: None, special }
    }

    /// Whether it is looked for in what the normaliser makes of the text.
    pub(super) fn is_normalized(&self) -> bool {
        self.normalized.unwrap_or(!self.special)
    }

    /// The same token, recognised in a text as it is.
    pub(super) fn raw(self) -> Self {
        Self { normalized: Some(false), ..self }
    }

    /// Whether both are recognised in the same places and have the same text.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let spelled_out = |token: &Self| Self { normalized: Some(token.is_normalized()), ..token.clone() };
        spelled_out(self) == spelled_out(other)
    }

    /// What to look for, `text` being how the token is spelled where it is looked for.
    pub(super) fn token(&self, id: u32, text: &str) -> Token {
        let &Self { single_word, lstrip, rstrip, .. } = self;
        Token { id, text: text.to_owned(), single_word, lstrip, rstrip }
    }
}

impl Table {
    /// Takes a model's own pieces. Fails where a text is empty or occurs twice, or an id is too high or occurs twice.
    pub(super) fn new(own: impl IntoIterator<Item = (u32, Piece)>) -> Reason<Self> {
        let mut table = Self { pieces: BTreeMap::new(), ids: Ids::new(), own: 0, added: BTreeMap::new() };
        for (id, piece) in own {
            table.insert(id, piece)?;
            table.own += 1;
        }
        Ok(table)
    }

    fn insert(&mut self, id: u32, piece: Piece) -> Reason<()> {
        if id as usize >= MAX_PIECES {
            return Err(format!("vocab: expected ids below {MAX_PIECES}, found {id}"));
        }
        if piece.text.is_empty() {
            return Err(format!("piece {id}: expected a text, found none"));
        }
        if let Some(first) = self.ids.insert(piece.text.clone(), id) {
            let text = shorten(&piece.text);
            return Err(format!("piece {id}: expected a new text, found {text:?} of piece {first}"));
        }
        match self.pieces.insert(id, piece) {
            Some(other) => {
                let text = shorten(&other.text);
                Err(format!("vocab: expected one piece for id {id}, found {text:?} and another"))
            }
            None => Ok(()),
        }
    }

    /// Adds a token and returns its id: that of the piece which is spelled so, or else the next that is free.
    ///
    /// This is how the `tokenizers` library gives out ids, whatever a file says of them. Of a token that is added twice,
    /// the second counts.
    pub(super) fn add(&mut self, token: AddedToken) -> Reason<u32> {
        let id = match self.id_of(&token.content) {
            Some(id) => id,
            None => {
                let highest = self.added.last_key_value().map_or(0, |(id, _)| id + 1);
                let id = highest.max(self.own);
                if let Some(taken) = self.pieces.get(&id) {
                    let (taken, text) = (shorten(&taken.text), shorten(&token.content));
                    return Err(format!(
                        "added token {text:?}: expected the next id {id} to be free, found {taken:?}"
                    ));
                }
                self.insert(id, Piece { text: token.content.as_str().into(), kind: Kind::Added })?;
                id
            }
        };
        self.added.insert(id, token);
        Ok(id)
    }

    /// Spells one of the model's own pieces in another way, unless a piece is spelled so already; returns whether it does.
    pub(super) fn rename(&mut self, id: u32, text: &str) -> bool {
        if text.is_empty() || self.ids.contains_key(text) {
            return false;
        }
        let Some(piece) = self.pieces.get_mut(&id) else { return false };
        let old = std::mem::replace(&mut piece.text, text.into());
        self.ids.remove(&old);
        self.ids.insert(text.into(), id);
        true
    }

    /// The id of the piece that is spelled so, whatever its kind.
    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The piece of an id, if there is one.
    pub(super) fn get(&self, id: u32) -> Option<&Piece> {
        self.pieces.get(&id)
    }

    /// How many pieces are the model's own.
    pub(super) fn own(&self) -> u32 {
        self.own
    }

    /// The token that was added with an id, if one was.
    pub(super) fn added(&self, id: u32) -> Option<&AddedToken> {
        self.added.get(&id)
    }

    /// The tokens that were added, by ascending id.
    pub(super) fn all_added(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.added.iter().map(|(id, token)| (*id, token))
    }

    /// The pieces by ascending id.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u32, &Piece)> {
        self.pieces.iter().map(|(id, piece)| (*id, piece))
    }

    /// Makes a piece one that steers the model, unless it stands for unknown text or a byte.
    pub(super) fn make_control(&mut self, id: u32) {
        match self.pieces.get_mut(&id) {
            Some(Piece { kind: Kind::Unknown | Kind::Byte(_), .. }) | None => {}
            Some(piece) => piece.kind = Kind::Control,
        }
    }

    /// The pieces by ascending id, and the ids by text.
    pub(super) fn into_parts(self) -> (Vec<(u32, Piece)>, Ids) {
        (self.pieces.into_iter().collect(), self.ids)
    }
}
