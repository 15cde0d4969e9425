//! A tokenizer in the making: what one file tells of it, before other files have their say.

use std::path::Path;

use super::bpe::{Bpe, Merges};
use super::find::{Finder, Token};
use super::table::Table;
use super::vocabulary::{Kind, Special, Vocabulary};
use super::written::{Layout, Written};
use super::{Around, Reason, Tokenizer};

/// No more is said against a tokenizer, for who reads it is a person.
const MAX_WARNINGS: usize = 16;

/// All that a tokenizer is made of.
pub(super) struct Draft {
    pub(super) table: Table,
    pub(super) merges: Merges,
    /// What is done to a text in which tokens may be written.
    pub(super) layout: Layout,
    /// Whether sentencepiece puts a space in front of a text.
    pub(super) space_in_front: bool,
    /// The pieces that count as such even in a text where nothing is special.
    pub(super) user_defined: Vec<Token>,
    /// Kinds of pieces that are recognised where they are written though nobody added them.
    pub(super) written: &'static [Kind],
    /// Text that no piece covers falls back on bytes.
    pub(super) byte_fallback: bool,
    /// Each run of characters without pieces is one unknown piece.
    pub(super) fuse_unknown: bool,
    /// A stretch of text that is a piece is that piece, whatever merges would make of it.
    pub(super) ignore_merges: bool,
    pub(super) unknown_surface: String,
    pub(super) unk: Option<u32>,
    pub(super) bos: Begins,
    pub(super) eos: Begins,
    pub(super) around: Surrounds,
    pub(super) warnings: Vec<String>,
}

/// How the piece that begins or ends a sequence is told.
#[derive(Clone, Debug)]
pub(super) enum Begins {
    Id(u32),
    /// By its text, of which there must be a piece.
    Text(String),
}

/// How what surrounds a prompt is told.
#[derive(Clone, Debug)]
pub(super) enum Surrounds {
    Ids(Around),
    /// BOS, EOS, or both.
    Flags {
        bos: bool,
        eos: bool,
    },
}

impl Draft {
    /// Names the file in the warnings so far.
    pub(super) fn warning_of(mut self, path: &Path) -> Self {
        for warning in &mut self.warnings {
            *warning = format!("{}: {warning}", path.display());
        }
        self
    }

    pub(super) fn finish(mut self, path: &Path) -> Reason<Tokenizer> {
        let more = self.warnings.len().saturating_sub(MAX_WARNINGS);
        if more > 0 {
            self.warnings.truncate(MAX_WARNINGS);
            self.warnings.push(format!("{}: {more} more contradictions like these", path.display()));
        }
        let find = |begins: &Begins, key: &str| match begins {
            Begins::Id(id) => Ok(*id),
            Begins::Text(text) => {
                let id = self.table.id_of(text);
                id.ok_or_else(|| format!("{key}: expected a piece {text:?}, found none"))
            }
        };
        let special =
            Special { unk: self.unk, bos: find(&self.bos, "bos_token")?, eos: find(&self.eos, "eos_token")? };
        let mut control: Vec<u32> = vec![special.bos, special.eos];
        control.extend(self.table.all_added().filter(|(_, token)| token.special).map(|(id, _)| id));
        control.into_iter().for_each(|id| self.table.make_control(id));

        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        for (id, token) in self.table.all_added() {
            if token.is_normalized() {
                let text = self.layout.normalize(&token.content).map_err(|error| error.to_string())?;
                normalized.push(token.token(id, &text));
            } else {
                raw.push(token.token(id, &token.content));
            }
        }
        let of_kinds = |kinds: &[Kind]| {
            let pieces = self.table.pieces().filter(|(_, piece)| kinds.contains(&piece.kind));
            pieces.map(|(id, piece)| Token::plain(id, &piece.text)).collect::<Vec<_>>()
        };
        raw.extend(of_kinds(self.written).into_iter().filter(|token| self.table.added(token.id).is_none()));
        let harmless = |id: u32| self.table.get(id).is_some_and(|piece| piece.kind != Kind::Control);
        self.user_defined.retain(|token| harmless(token.id));
        let user_defined = Finder::new(self.user_defined)?;
        let written = Written::new(self.layout, Finder::new(raw)?, Finder::new(normalized)?);

        let vocabulary = Vocabulary::new(self.table, special, self.byte_fallback, &self.unknown_surface)?;
        // Text does not grow into `</s>` or `<0x0A>`.
        let grows = |kind: Kind| matches!(kind, Kind::Normal | Kind::Unused);
        self.merges.retain(|_, merge| vocabulary.get(merge.piece).is_some_and(|piece| grows(piece.kind)));
        let ids = |wanted: bool, id: u32| if wanted { vec![id] } else { Vec::new() };
        Ok(Tokenizer {
            bpe: Bpe::new(&vocabulary, self.merges, self.fuse_unknown, self.ignore_merges),
            around: match self.around {
                Surrounds::Ids(around) => around,
                Surrounds::Flags { bos, eos } => {
                    Around { before: ids(bos, special.bos), after: ids(eos, special.eos) }
                }
            },
            vocabulary,
            space_in_front: self.space_in_front,
            user_defined,
            written,
            warnings: self.warnings,
            path: path.to_owned(),
            model_size: None,
        })
    }
}
