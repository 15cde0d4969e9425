//! What `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say of a tokenizer, and how it counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::directory::read;
use super::draft::{Begins, Draft, Surrounds};
use super::table::AddedToken;
use super::written::{Layout, Metaspace, Scheme, Step};
use super::{Reason, shorten};
use crate::input::{brief, json_object};
use crate::{Error, Result};

/// The parts that Transformers knows of, in the order in which tokens for them are added; further ones follow.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What three files beside the vocabulary say.
pub(super) struct Config {
    /// `added_tokens_decoder`, or if there is none `added_tokens.json`.
    added: Said,
    has_decoder: bool,
    /// `added_tokens.json`, where it does not count.
    unread: Option<Said>,
    /// Tokens with a part to play, such as `bos_token`, by the place that tells of them.
    special: Vec<(String, AddedToken)>,
    bos: Option<String>,
    eos: Option<String>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    legacy: Option<bool>,
    /// Where `add_bos_token` and the like are said.
    path: PathBuf,
    warnings: Vec<String>,
}

/// Tokens as one place numbers them.
struct Said {
    place: String,
    tokens: BTreeMap<u32, AddedToken>,
}

/// The kind of file that a draft was read from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Json,
    Sentencepiece,
}

/// One JSON object, with its path.
struct Object {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Config {
    /// Reads what there is in a directory.
    pub(super) fn from_dir(dir: &Path) -> Result<Self> {
        let config = Object::read(dir, "tokenizer_config.json")?;
        let map = Object::read(dir, "special_tokens_map.json")?;
        let numbers = Object::read(dir, "added_tokens.json")?;

        let decoder = config.decoder()?;
        let mut warnings = Vec::new();
        let special = specials(&config, &map, decoder.is_some(), &mut warnings)?;
        let by_number = numbers.numbered(&special)?;
        let has_decoder = decoder.is_some();
        let (added, unread) = match (decoder, by_number) {
            (Some(decoder), by_number) => (decoder, by_number),
            (None, Some(by_number)) => (by_number, None),
            (None, None) => (Said { place: String::new(), tokens: BTreeMap::new() }, None),
        };
        let named = |key: &str| {
            let suffix = format!(": {key}");
            let found = special.iter().find(|(place, _)| place.ends_with(&suffix));
            found.map(|(_, token)| token.content.clone())
        };
        Ok(Self {
            added,
            has_decoder,
            unread,
            bos: named("bos_token"),
            eos: named("eos_token"),
            special,
            add_bos: config.flag("add_bos_token")?,
            add_eos: config.flag("add_eos_token")?,
            legacy: config.flag("legacy")?,
            path: config.path,
            warnings,
        })
    }

    /// Lets the files have their say, in the order in which Transformers hears them.
    pub(super) fn apply(self, draft: &mut Draft, from: Origin) -> Reason<()> {
        draft.warnings.extend(self.warnings);
        for (&said, token) in &self.added.tokens {
            // Of an id that `tokenizer.json` gives to a token, `added_tokens.json` is not heard.
            if !self.has_decoder && draft.table.added(said).is_some() {
                continue;
            }
            add(draft, from, &self.added.place, said, token)?;
        }
        for (place, token) in self.special {
            let known = draft.table.id_of(&token.content);
            if known.is_some_and(|id| draft.table.added(id).is_some()) {
                continue;
            }
            let content = shorten(&token.content).to_owned();
            let id = draft.table.add(AddedToken { special: true, ..token })?;
            if known.is_none() {
                draft.warnings.push(format!(
                    "{place}: {content:?} is no piece of the vocabulary; it is id {id}, which is how Transformers counts"
                ));
            }
        }
        for Said { place, tokens } in [Some(self.added), self.unread].into_iter().flatten() {
            draft.warnings.extend(contradiction(draft, &place, &tokens));
        }
        if let Some(bos) = self.bos {
            draft.bos = Begins::Text(bos);
        }
        if let Some(eos) = self.eos {
            draft.eos = Begins::Text(eos);
        }
        let path = self.path.display();
        match (&mut draft.around, from) {
            (Surrounds::Ids(around), Origin::Json) => {
                for (key, said, ids) in [
                    ("add_bos_token", self.add_bos, &around.before),
                    ("add_eos_token", self.add_eos, &around.after),
                ] {
                    if said.is_some_and(|said| said == ids.is_empty()) {
                        let (said, found) = (ids.is_empty(), if ids.is_empty() { "none" } else { "one" });
                        draft.warnings.push(format!(
                            "{path}: {key} is {said}, and the post_processor of tokenizer.json puts {found}, which counts"
                        ));
                    }
                }
            }
            (around, _) => {
                *around = Surrounds::Flags {
                    bos: self.add_bos.unwrap_or(true),
                    eos: self.add_eos.unwrap_or(false),
                };
            }
        }
        if from == Origin::Sentencepiece && self.legacy == Some(false) && draft.space_in_front {
            let metaspace = Some(Metaspace { scheme: Scheme::First, split: false });
            let isolated = std::mem::take(&mut draft.layout.isolated);
            draft.layout =
                Layout { normalizer: vec![Step::MarkSpaces], metaspace, isolated, ..Layout::default() };
        }
        Ok(())
    }
}

impl Object {
    /// The file's object, which is empty if there is no such file.
    fn read(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let map = match read(&path)? {
            Some(bytes) => json_object(&bytes, &path)?,
            None => Map::new(),
        };
        Ok(Self { path, map })
    }

    fn error(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::Config {
            path: self.path.clone(),
            field: key.to_owned(),
            expected: expected.to_owned(),
            found: brief(found),
        }
    }

    fn place(&self, key: &str) -> String {
        format!("{}: {key}", self.path.display())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.error(key, "true or false", other)),
        }
    }

    /// The tokens of `added_tokens_decoder`, by id.
    fn decoder(&self) -> Result<Option<Said>> {
        let key = "added_tokens_decoder";
        let entries = match self.map.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(entries)) => entries,
            Some(other) => return Err(self.error(key, "an object of tokens by id", other)),
        };
        let mut tokens = BTreeMap::new();
        for (id, value) in entries {
            let key = format!("{key}.{}", shorten(id));
            let id = id.parse().map_err(|_| self.error(&key, "an id as key", value))?;
            tokens.insert(id, self.token(&key, value)?);
        }
        Ok(Some(Said { place: self.place(key), tokens }))
    }

    /// The tokens of an object of ids by text, of which those that play a part are special.
    fn numbered(&self, special: &[(String, AddedToken)]) -> Result<Option<Said>> {
        let special: HashSet<&str> = special.iter().map(|(_, token)| &*token.content).collect();
        let mut tokens = BTreeMap::new();
        for (text, value) in &self.map {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| self.error(shorten(text), "an id", value))?;
            if let Some(other) = tokens.insert(id, AddedToken::new(text, special.contains(&**text))) {
                let expected = format!("another id than that of {:?}", shorten(&other.content));
                return Err(self.error(shorten(text), &expected, value));
            }
        }
        let place = self.path.display().to_string();
        Ok((!tokens.is_empty()).then_some(Said { place, tokens }))
    }

    /// A token, written as its text or as an object.
    fn token(&self, key: &str, value: &Value) -> Result<AddedToken> {
        let token = match value {
            Value::String(text) => Some(AddedToken::new(text, true)),
            object => AddedToken::deserialize(object).ok(),
        };
        let token = token.filter(|token| !token.content.is_empty());
        token.ok_or_else(|| self.error(key, "a token, as a text or with its content", value))
    }

    /// The tokens that play a part, by key: `bos_token` and the like, and lists of further ones.
    fn roles(&self) -> Result<Vec<(String, AddedToken)>> {
        let mut found = Vec::new();
        for (key, value) in &self.map {
            match (&**key, value) {
                (_, Value::Null | Value::Bool(_)) => {}
                ("additional_special_tokens" | "extra_special_tokens", Value::Array(items)) => {
                    for item in items {
                        found.push((key.clone(), self.token(key, item)?));
                    }
                }
                ("extra_special_tokens", Value::Object(items)) => {
                    for item in items.values() {
                        found.push((key.clone(), self.token(key, item)?));
                    }
                }
                (role, value) if role.ends_with("_token") => {
                    found.push((key.clone(), self.token(key, value)?));
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// The tokens that play a part, by the place that tells of them.
///
/// Without `added_tokens_decoder`, `special_tokens_map.json` counts where both files name one.
fn specials(
    config: &Object,
    map: &Object,
    has_decoder: bool,
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, AddedToken)>> {
    let (mine, others) = (config.roles()?, map.roles()?);
    let by_key: HashMap<String, AddedToken> = others.iter().cloned().collect();
    for (key, token) in mine.iter().filter(|(key, _)| key.ends_with("_token")) {
        if let Some(other) = by_key.get(key).filter(|other| other.content != token.content) {
            let counts = if has_decoder { token } else { other };
            warnings.push(format!(
                "{}: {:?}, and {:?} in {}; {:?} counts",
                config.place(key),
                shorten(&token.content),
                shorten(&other.content),
                map.path.display(),
                shorten(&counts.content),
            ));
        }
    }
    let mut found: Vec<_> = mine.into_iter().map(|(key, token)| (config, key, token)).collect();
    if !has_decoder {
        found.retain(|(_, key, _)| !by_key.contains_key(key));
        found.extend(others.into_iter().map(|(key, token)| (map, key, token)));
    }
    found.sort_by_key(|(_, key, _)| {
        let further = if key.ends_with("_token") { ROLES.len() } else { ROLES.len() + 1 };
        ROLES.iter().position(|role| role == key).unwrap_or(further)
    });
    Ok(found.into_iter().map(|(object, key, token)| (object.place(&key), token)).collect())
}

/// Adds a token of which `place` says that its id is `said`.
fn add(draft: &mut Draft, from: Origin, place: &str, said: u32, token: &AddedToken) -> Reason<()> {
    let content = &token.content;
    let mut token = token.clone();
    if from == Origin::Sentencepiece {
        let other = draft.table.get(said).filter(|piece| *piece.text != **content);
        let other = other.filter(|_| said < draft.table.own()).map(|piece| piece.text.clone());
        if let Some(old) = other
            && draft.table.rename(said, content)
        {
            let (old, new) = (shorten(&old), shorten(content));
            draft
                .warnings
                .push(format!("{place}: {said} is {new:?}, {old:?} in the model; the former counts"));
        }
        if draft.space_in_front {
            token = token.raw();
        }
    }
    let known = draft.table.id_of(content).and_then(|id| draft.table.added(id));
    match known {
        Some(known) if known.is_like(&token) => return Ok(()),
        Some(_) => draft.warnings.push(format!(
            "{place}: {said} {:?} is recognised otherwise than tokenizer.json says; the former counts",
            shorten(content)
        )),
        None => {}
    }
    draft.table.add(token).map(|_| ())
}

/// That a place gives tokens other ids than they have, if it does.
fn contradiction(draft: &Draft, place: &str, tokens: &BTreeMap<u32, AddedToken>) -> Option<String> {
    let id_of = |token: &AddedToken| draft.table.id_of(&token.content);
    let mut wrong = tokens.iter().filter(|(said, token)| id_of(token) != Some(**said));
    let (said, token) = wrong.next()?;
    let content = shorten(&token.content);
    let found = match id_of(token) {
        Some(id) => format!("it is {id}, which is how Transformers counts"),
        None => "no token is added for it".to_owned(),
    };
    let more = match wrong.count() {
        0 => String::new(),
        n => format!(", and so for {n} more"),
    };
    Some(format!("{place}: {content:?} is {said} there; {found}{more}"))
}
