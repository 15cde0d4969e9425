//! A byte-level BPE vocabulary that is spelled out piece by piece, as GGUF files hold it.

use super::bpe::{Merge, Merges};
use super::byte_level::{ByteLevel, Words};
use super::draft::{Begins, Draft, Surrounds};
use super::find::Token;
use super::pieces::kind;
use super::table::Table;
use super::vocabulary::{Kind, Piece, UNKNOWN_SURFACE};
use super::written::Layout;
use super::{Reason, shorten};

/// The vocabulary of a byte-level BPE model, piece by piece, with what else a GGUF file says of it.
///
/// Lists are by id, but for the merges, which come by rank.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BytePieces {
    /// What each piece is spelled like, each byte a character of its own: `tokenizer.ggml.tokens`.
    pub texts: Vec<String>,
    /// Pairs of pieces with a space between, the first to be merged first: `tokenizer.ggml.merges`.
    pub merges: Vec<String>,
    /// How a text is cut into words: `tokenizer.ggml.pre`, of which `gpt-2`, `llama-bpe`, `qwen2` and `tekken` are known.
    pub words: String,
    /// What a piece is for: `tokenizer.ggml.token_type`, 1 normal, 3 control, 4 user-defined, 5 unused; none are all normal.
    pub types: Vec<u32>,
    /// The id that begins a sequence.
    pub bos: u32,
    /// The id that ends a sequence.
    pub eos: u32,
    /// Whether a prompt begins with `bos`; if absent, as the kind of words has it: with Llama 3's and tekken's.
    pub add_bos: Option<bool>,
    /// Whether a prompt ends with `eos`; if absent, it does not.
    pub add_eos: Option<bool>,
}

impl BytePieces {
    /// Pieces of which nothing but this is known.
    pub fn new(texts: Vec<String>, merges: Vec<String>, words: &str, bos: u32, eos: u32) -> Self {
        let (types, words) = (Vec::new(), words.to_owned());
        Self { texts, merges, words, types, bos, eos, add_bos: None, add_eos: None }
    }

    pub(super) fn draft(&self) -> Reason<Draft> {
        let len = self.texts.len();
        if !self.types.is_empty() && self.types.len() != len {
            return Err(format!("types: expected {len}, one a piece, found {}", self.types.len()));
        }
        for (name, id) in [("bos", self.bos), ("eos", self.eos)] {
            if id as usize >= len {
                return Err(format!("{name}: expected an id below {len}, found {id}"));
            }
        }
        let Some((words, is_whole_first, has_bos)) = self.words() else {
            let found = shorten(&self.words);
            return Err(format!(
                "words: expected those of gpt-2, llama-bpe, qwen2 or tekken, found {found:?}"
            ));
        };
        let pieces = (0..).zip(&self.texts).map(|(id, text)| {
            let kind = match self.types.get(id as usize) {
                Some(&number) => kind(id, text, u64::from(number))?,
                None => Kind::Normal,
            };
            Ok((id, Piece { text: text.as_str().into(), kind }))
        });
        let table = Table::new(pieces.collect::<Reason<Vec<_>>>()?)?;
        let user_defined = table.pieces().filter(|(_, piece)| piece.kind == Kind::UserDefined);
        let user_defined = user_defined.map(|(id, piece)| Token::plain(id, &piece.text)).collect();
        Ok(Draft {
            merges: self.merges(&table)?,
            table,
            layout: Layout { bytes: Some(ByteLevel::new(words, false)?), ..Layout::default() },
            space_in_front: false,
            user_defined,
            written: &[Kind::Control, Kind::UserDefined],
            byte_fallback: false,
            fuse_unknown: false,
            ignore_merges: is_whole_first,
            unknown_surface: UNKNOWN_SURFACE.to_owned(),
            unk: None,
            bos: Begins::Id(self.bos),
            eos: Begins::Id(self.eos),
            around: Surrounds::Flags {
                bos: self.add_bos.unwrap_or(has_bos),
                eos: self.add_eos.unwrap_or(false),
            },
            warnings: Vec::new(),
        })
    }

    /// The words of that name, whether a word that is a piece is that piece whatever merges say, and whether a prompt has BOS.
    fn words(&self) -> Option<(Words, bool, bool)> {
        match &*self.words {
            "gpt-2" | "gpt2" => Some((Words::Gpt2, false, false)),
            "llama-bpe" | "llama3" | "llama-v3" => Some((Words::Llama3 { digits: 3 }, true, true)),
            "qwen2" => Some((Words::Llama3 { digits: 1 }, false, false)),
            "tekken" => Some((Words::Tekken, true, true)),
            _ => None,
        }
    }

    fn merges(&self, table: &Table) -> Reason<Merges> {
        let mut merges = Merges::with_capacity(self.merges.len());
        for (rank, pair) in (0..).zip(&self.merges) {
            let wrong =
                || format!("merge {rank}: expected two pieces and what they make, found {:?}", shorten(pair));
            // A space is spelled otherwise in pieces.
            let (left, right) = pair.split_once(' ').ok_or_else(wrong)?;
            let id = |text: &str| table.id_of(text).ok_or_else(wrong);
            let piece = id(&format!("{left}{right}"))?;
            merges.insert((id(left)?, id(right)?), Merge { rank, piece });
        }
        Ok(merges)
    }
}
