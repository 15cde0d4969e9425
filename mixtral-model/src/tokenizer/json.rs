//! Reading `tokenizer.json`, the format of the `tokenizers` library.
//!
//! Accepted is what sentencepiece BPE is converted to, in its two layouts: an older one, where a normaliser
//! puts `▁` in front and for spaces, and a newer one, where the `Metaspace` pre-tokeniser does.
//! The file's decoder, post-processor, padding and truncation are not applied: decoding is sentencepiece's for either kind of
//! file, and which tokens surround a text is the caller's choice.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::bpe::{Merge, Merges};
use super::find::{Finder, Token};
use super::vocabulary::{Kind, Piece, Special, UNKNOWN_SURFACE, Vocabulary, parse_byte};
use super::written::{Layout, Metaspace, Scheme, Written};
use super::{Reason, shorten};

/// The fields that matter here.
#[derive(Deserialize)]
#[serde(expecting = "an object with `model`")]
pub(super) struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    r#type: String,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Pair>,
}

/// A merge: `["a", "b"]`, in older files `"a b"`.
struct Pair(String, String);

impl File {
    /// Builds what the file describes.
    pub(super) fn build(self) -> Reason<(Vocabulary, Merges, Written)> {
        self.model.check()?;
        let layout = layout(&self.normalizer, &self.pre_tokenizer)?;
        let mut merges = merges(&self.model)?;
        let Model { vocab, unk_token, byte_fallback, .. } = self.model;
        let unk = unk_token.as_deref().unwrap_or("<unk>");

        // By id, so that a gap shows; a hostile id costs no more than any other.
        let mut pieces: BTreeMap<u32, Piece> = BTreeMap::new();
        for (text, id) in vocab {
            let kind = match parse_byte(&text).filter(|_| byte_fallback) {
                Some(byte) => Kind::Byte(byte),
                None if text == unk => Kind::Unknown,
                None => Kind::Normal,
            };
            if let Some(other) = pieces.insert(id, Piece { text: text.into(), kind }) {
                return Err(format!(
                    "vocab: expected one piece for id {id}, found {:?} and another",
                    other.text
                ));
            }
        }
        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        for token in self.added_tokens {
            let AddedToken { id, content, single_word, lstrip, rstrip, normalized: is_normalized, special } =
                token;
            if single_word || lstrip || rstrip {
                return Err(format!(
                    "added token {id}: expected no single_word, lstrip or rstrip, found one"
                ));
            }
            if content.is_empty() {
                return Err(format!("added token {id}: expected a text, found none"));
            }
            let piece = pieces
                .entry(id)
                .or_insert_with(|| Piece { text: content.as_str().into(), kind: Kind::Added });
            if *piece.text != *content {
                return Err(format!(
                    "added token {id}: expected {:?} as in vocab, found {content:?}",
                    piece.text
                ));
            }
            if special && matches!(piece.kind, Kind::Normal | Kind::Added) {
                piece.kind = Kind::Control;
            }
            if is_normalized {
                normalized.push(Token::plain(id, &layout.normalize(&content)));
            } else {
                raw.push(Token::plain(id, &content));
            }
        }
        if let Some((expected, (found, _))) = (0..).zip(&pieces).find(|(expected, (id, _))| expected != *id) {
            return Err(format!("vocab: expected ids without gaps, found {found} for {expected}"));
        }
        let find = |name: &str, kind: Kind| {
            let found = pieces.iter().find(|(_, piece)| *piece.text == *name);
            let (id, piece) = found.ok_or_else(|| format!("expected a piece {name:?}, found none"))?;
            if piece.kind != kind {
                let (expected, found) = (kind.name(), piece.kind.name());
                return Err(format!("piece {id} {name:?}: expected kind {expected}, found {found}"));
            }
            Ok(*id)
        };
        let special = Special {
            unk: find(unk, Kind::Unknown)?,
            bos: find("<s>", Kind::Control)?,
            eos: find("</s>", Kind::Control)?,
        };
        let vocabulary =
            Vocabulary::new(pieces.into_iter().collect(), special, byte_fallback, UNKNOWN_SURFACE)?;
        // Nor does sentencepiece let text grow into `</s>` or `<0x0A>`.
        merges.retain(|_, merge| vocabulary.get(merge.piece).is_some_and(|piece| piece.kind == Kind::Normal));
        Ok((vocabulary, merges, Written::new(layout, Finder::new(raw)?, Finder::new(normalized)?)))
    }
}

impl Model {
    fn check(&self) -> Reason<()> {
        let absent = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        if self.r#type != "BPE" {
            return Err(format!("model: expected type BPE, found {}", shorten(&self.r#type)));
        }
        for (option, holds) in [
            ("byte_fallback or fuse_unk", self.byte_fallback || self.fuse_unk),
            ("ignore_merges false", !self.ignore_merges),
            ("no dropout", self.dropout.is_none_or(|dropout| dropout == 0.0)),
            ("no continuing_subword_prefix", absent(&self.continuing_subword_prefix)),
            ("no end_of_word_suffix", absent(&self.end_of_word_suffix)),
        ] {
            if !holds {
                return Err(format!("model: expected {option}, found the contrary"));
            }
        }
        Ok(())
    }
}

/// Recognises the two layouts, exactly.
fn layout(normalizer: &Value, pre_tokenizer: &Value) -> Reason<Layout> {
    let prepend = json!({
        "type": "Sequence",
        "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ],
    });
    let metaspace = |scheme: &str| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
    if *normalizer == prepend && pre_tokenizer.is_null() {
        Ok(Layout::sentencepiece(true, Finder::default()))
    } else if normalizer.is_null() && *pre_tokenizer == metaspace("always") {
        Ok(Layout { metaspace: Some(Metaspace { scheme: Scheme::Always }), ..Layout::default() })
    } else if normalizer.is_null() && *pre_tokenizer == metaspace("first") {
        Ok(Layout { metaspace: Some(Metaspace { scheme: Scheme::First }), ..Layout::default() })
    } else {
        let found = format!("{normalizer} and {pre_tokenizer}");
        let found: String = found.chars().take(300).collect();
        Err(format!(
            "normalizer and pre_tokenizer: expected Prepend ▁ and Replace, or Metaspace without split, found {found}"
        ))
    }
}

/// The merges by id. Of a pair that is listed twice, the last counts.
fn merges(model: &Model) -> Reason<Merges> {
    let id = |rank: u32, text: &str| {
        let id = model.vocab.get(text).copied();
        id.ok_or_else(|| format!("merge {rank}: expected pieces of vocab, found {:?}", shorten(text)))
    };
    let mut merges = Merges::with_capacity(model.merges.len());
    for (rank, Pair(left, right)) in (0..).zip(&model.merges) {
        let piece = id(rank, &format!("{left}{right}"))?;
        merges.insert((id(rank, left)?, id(rank, right)?), Merge { rank, piece });
    }
    Ok(merges)
}

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairVisitor;

        impl<'de> Visitor<'de> for PairVisitor {
            type Value = Pair;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two pieces, as [\"a\", \"b\"] or \"a b\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Pair, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Pair(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Pair, A::Error> {
                let left = pair.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let right = pair.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                Ok(Pair(left, right))
            }
        }

        deserializer.deserialize_any(PairVisitor)
    }
}
