//! Control tokens that are spelled in what others wrote: they stay text.

use moe_core::memory;
use serde_json::{Map, Value};

use super::recognise::is_special;
use super::{Chat, Message};
use crate::{Error, Result, Tokenizer};

/// The texts that the tokenizer takes for tokens where they are written, and how each is encoded as a text.
#[derive(Clone, Debug)]
pub(super) struct Spelled {
    /// The longest first.
    texts: Vec<String>,
}

impl Spelled {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let special = ids.filter(|&id| is_special(tokenizer, id));
        let mut texts: Vec<_> = special.filter_map(|id| tokenizer.piece(id)).map(str::to_owned).collect();
        texts.retain(|text| !text.trim().is_empty());
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Self { texts }
    }

    /// The ids of what `write` makes of a chat, where special tokens count if they are not from the chat.
    ///
    /// A token spelled in the chat is replaced by a character that occurs nowhere, and the ids of that character, which no piece
    /// grows beyond, by those of the token's text.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        chat: &Chat,
        write: impl Fn(&Chat) -> Result<String>,
    ) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        each_text(chat, &mut |text| {
            for token in self.texts.iter().filter(|token| text.contains(&***token)) {
                if !found.contains(token) {
                    found.push(token.clone());
                }
            }
        });
        if found.is_empty() {
            return tokenizer.encode(&write(chat)?);
        }
        let mut used = std::collections::BTreeSet::new();
        each_text(chat, &mut |text| used.extend(text.chars().filter(|c| STAND_INS.contains(c))));
        let mut free = STAND_INS.filter(|character| !used.contains(character));
        found.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let mut stand_ins = Vec::new();
        for token in found {
            let character = free.next().ok_or_else(|| unwritable(&token))?;
            let mut buffer = [0; 4];
            let stand_in = character.encode_utf8(&mut buffer).to_owned();
            let ids = inner(tokenizer, &stand_in)?
                .filter(|ids| tokenizer.unk().is_none_or(|unk| !ids.contains(&unk)));
            let ids = ids.ok_or_else(|| unwritable(&token))?;
            let text = inner(tokenizer, &token)?.ok_or_else(|| unwritable(&token))?;
            stand_ins.push(StandIn { token, stand_in, ids, text });
        }
        let text = write(&replaced(chat, &stand_ins))?;
        let ids = tokenizer.encode(&text)?;
        let mut out = Vec::new();
        let mut missing: usize =
            stand_ins.iter().map(|stand_in| text.matches(&stand_in.stand_in).count()).sum();
        let mut rest = &*ids;
        while let Some((&id, after)) = rest.split_first() {
            match stand_ins.iter().find(|stand_in| rest.starts_with(&stand_in.ids)) {
                Some(stand_in) => {
                    memory::reserve(&mut out, stand_in.text.len(), "tokens")?;
                    out.extend(&stand_in.text);
                    missing = missing.saturating_sub(1);
                    rest = &rest[stand_in.ids.len()..];
                }
                None => {
                    memory::push(&mut out, id, "tokens")?;
                    rest = after;
                }
            }
        }
        // A vocabulary whose pieces grow over the stand-ins would lose what they stand for.
        match stand_ins.first() {
            Some(stand_in) if missing > 0 => Err(unwritable(&stand_in.token)),
            _ => Ok(out),
        }
    }
}

/// Characters for private use, of which no vocabulary has pieces.
const STAND_INS: std::ops::RangeInclusive<char> = '\u{10FF00}'..='\u{10FFFD}';

struct StandIn {
    token: String,
    stand_in: String,
    ids: Vec<u32>,
    text: Vec<u32>,
}

/// The ids of a text that stands within another, without a space in front.
fn inner(tokenizer: &Tokenizer, text: &str) -> Result<Option<Vec<u32>>> {
    let alone = tokenizer.encode_ordinary(text)?;
    // Decoding drops a space in front, so only what comes before tells whether there is one.
    let before = tokenizer.encode_ordinary("\n")?;
    let within = tokenizer.encode_ordinary(&format!("\n{text}"))?;
    Ok(within.strip_prefix(&*before).map(<[u32]>::to_vec).or((before.len() == 1).then_some(alone)))
}

fn unwritable(token: &str) -> Error {
    Error::Setting {
        setting: "chat",
        expected: "texts that the vocabulary can write".to_owned(),
        found: format!("{token:?}, which it has as a token alone"),
    }
}

fn replaced(chat: &Chat, stand_ins: &[StandIn]) -> Chat {
    let replace = |text: &str| {
        stand_ins
            .iter()
            .fold(text.to_owned(), |text, StandIn { token, stand_in, .. }| text.replace(token, stand_in))
    };
    let values = |values: &[Value]| values.iter().map(|value| map(value, &replace)).collect();
    let messages = chat.messages.iter().map(|message| {
        let fields = map(&Value::Object(message.fields().clone()), &replace);
        Message::from_json(fields).unwrap_or_else(|_| message.clone())
    });
    Chat {
        messages: messages.collect(),
        tools: values(&chat.tools),
        documents: values(&chat.documents),
        variables: chat.variables.iter().map(|(key, value)| (key.clone(), map(value, &replace))).collect(),
    }
}

/// A value with its texts and keys replaced.
fn map(value: &Value, replace: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => replace(text).into(),
        Value::Array(items) => items.iter().map(|item| map(item, replace)).collect(),
        Value::Object(object) => object
            .iter()
            .map(|(key, value)| (replace(key), map(value, replace)))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

fn each_text(chat: &Chat, look: &mut impl FnMut(&str)) {
    chat.messages.iter().for_each(|message| each_in_object(message.fields(), look));
    chat.tools.iter().chain(&chat.documents).for_each(|value| each_in(value, look));
    each_in_object(&chat.variables, look);
}

fn each_in(value: &Value, look: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().for_each(|item| each_in(item, look)),
        Value::Object(object) => each_in_object(object, look),
        _ => {}
    }
}

fn each_in_object(object: &Map<String, Value>, look: &mut impl FnMut(&str)) {
    for (key, value) in object {
        look(key);
        each_in(value, look);
    }
}
