//! Reading `tokenizer.json`, the format of the `tokenizers` library.
//!
//! Accepted is what sentencepiece BPE is converted to, in all its layouts: a normaliser or the `Metaspace` pre-tokeniser
//! puts `▁` in front and for spaces; and byte-level BPE ([`super::byte_level`]). The file's decoder, padding and truncation are not applied: decoding is sentencepiece's
//! for either kind of file, and how long a text may be is the model's business.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use super::bpe::{Merge, Merges};
use super::draft::{Begins, Draft, Surrounds};
use super::table::{AddedToken, Table};
use super::vocabulary::{Kind, Piece, UNKNOWN_SURFACE, parse_byte};
use super::written::{Scheme, Step};
use super::{Reason, byte_level, pipeline, shorten};

/// What ends a sequence if no other file says so, the first that is there.
const ENDS: [&str; 4] = ["</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>"];

/// The fields that matter here.
#[derive(Deserialize)]
#[serde(expecting = "an object with `model`")]
pub(super) struct File {
    #[serde(default)]
    added_tokens: Vec<Numbered>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Numbered {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
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
    pub(super) fn draft(self) -> Reason<Draft> {
        self.model.check()?;
        let merges = merges(&self.model)?;
        let Model { vocab, unk_token, byte_fallback, fuse_unk, ignore_merges, .. } = self.model;
        let layout = match pipeline::byte_level(&self.normalizer, &self.pre_tokenizer)? {
            Some(layout) => {
                all_bytes(&vocab)?;
                layout
            }
            None => pipeline::layout(&self.normalizer, &self.pre_tokenizer, |text| vocab.get(text).copied())?,
        };
        if !layout.isolated.is_empty() && !ignore_merges {
            return Err("model: expected ignore_merges beside the pre-tokeniser Split, found none".to_owned());
        }

        // By id, so that messages name the same pieces every time.
        let vocab: BTreeMap<(u32, String), Kind> = vocab
            .into_iter()
            .map(|(text, id)| {
                let kind = match parse_byte(&text).filter(|_| byte_fallback) {
                    Some(byte) => Kind::Byte(byte),
                    None if unk_token.as_ref() == Some(&text) => Kind::Unknown,
                    None => Kind::Normal,
                };
                ((id, text), kind)
            })
            .collect();
        let pieces = vocab.into_iter().map(|((id, text), kind)| (id, Piece { text: text.into(), kind }));
        let mut table = Table::new(pieces)?;
        let unk = match &unk_token {
            Some(name) => {
                Some(table.id_of(name).ok_or_else(|| format!("expected a piece {name:?}, found none"))?)
            }
            None => None,
        };
        let mut warnings = Vec::new();
        for Numbered { id, token } in self.added_tokens {
            add(&mut table, id, token, &mut warnings)?;
        }
        let (around, names) = pipeline::around(&self.post_processor)?;
        for (name, id) in &names {
            if table.get(*id).is_none_or(|piece| *piece.text != **name) {
                let found = shorten(name);
                warnings.push(format!(
                    "post_processor: {found:?} is id {id} there, and another in the vocabulary"
                ));
            }
        }
        if let Some(id) = around.before.iter().chain(&around.after).find(|id| table.get(**id).is_none()) {
            return Err(format!("post_processor: expected ids of pieces, found {id}"));
        }
        let first = names.first().map(|(name, _)| &**name);
        let known = |names: &[&str]| {
            names.iter().find(|name| table.id_of(name).is_some()).map(|name| Begins::Text((*name).to_owned()))
        };
        let bos = known(&["<s>", first.unwrap_or_default()]).unwrap_or(Begins::Text("<s>".to_owned()));
        let eos = known(&ENDS).unwrap_or(Begins::Text(ENDS[0].to_owned()));
        let prepends = layout.normalizer.contains(&Step::Prepend);
        let space_in_front = layout.metaspace.map_or(prepends, |metaspace| metaspace.scheme != Scheme::Never);
        Ok(Draft {
            table,
            merges,
            user_defined: layout.isolated.tokens().to_vec(),
            layout,
            space_in_front,
            written: &[],
            byte_fallback,
            fuse_unknown: fuse_unk,
            ignore_merges,
            unknown_surface: UNKNOWN_SURFACE.to_owned(),
            unk,
            bos,
            eos,
            around: Surrounds::Ids(around),
            warnings,
        })
    }
}

/// Checks that there is a piece for each byte, standing as a character.
fn all_bytes(vocab: &HashMap<String, u32>) -> Reason<()> {
    let spelled = |byte: u8| byte_level::character(byte).to_string();
    match (0..=u8::MAX).find(|&byte| !vocab.contains_key(&spelled(byte))) {
        Some(byte) => {
            let expected = spelled(byte);
            Err(format!("vocab: expected a piece {expected:?}, which stands for byte {byte}, found none"))
        }
        None => Ok(()),
    }
}

/// Adds a token of the file, which says that its id is `id`.
fn add(table: &mut Table, id: u32, token: AddedToken, warnings: &mut Vec<String>) -> Reason<()> {
    let content = token.content.clone();
    if content.is_empty() {
        return Err(format!("added token {id}: expected a text, found none"));
    }
    let other = table.get(id).filter(|piece| *piece.text != *content);
    if let Some(piece) = other {
        let (expected, content) = (shorten(&piece.text), shorten(&content));
        return Err(format!("added token {id}: expected {expected:?} as in vocab, found {content:?}"));
    }
    let known = table.id_of(&content).is_some();
    let given = table.add(token)?;
    let content = shorten(&content);
    if given == id {
        Ok(())
    } else if known {
        Err(format!("added token {id} {content:?}: expected id {given} as before, found {id}"))
    } else {
        warnings.push(format!(
            "added_tokens: {content:?}: id {id} leaves a gap; it is {given}, which is how Transformers counts"
        ));
        Ok(())
    }
}

impl Model {
    fn check(&self) -> Reason<()> {
        let absent = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
        if self.r#type != "BPE" {
            return Err(format!("model: expected type BPE, found {}", shorten(&self.r#type)));
        }
        for (option, holds) in [
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
