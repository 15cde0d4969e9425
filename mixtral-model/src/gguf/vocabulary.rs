//! The vocabulary of a GGUF file as a tokenizer.

use super::{Header, Metadata, Value};
use crate::input::require;
use crate::tokenizer::{BytePieces, SentencePieces};
use crate::{ChatEvidence, Error, Result, Template, Tokenizer};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";

const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const WORDS: &str = "tokenizer.ggml.pre";

impl Header {
    /// The tokenizer that the metadata describe: sentencepiece's, which is called `llama` there, or byte-level BPE, `gpt2`.
    ///
    /// # Errors
    ///
    /// Those of [`Metadata::pieces`], [`Tokenizer::from_pieces`] and [`Tokenizer::from_byte_pieces`].
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        self.metadata.require_tables()?;
        match self.metadata.text(MODEL)? {
            Some("gpt2") => Tokenizer::from_byte_pieces(&self.metadata.byte_pieces()?, self.metadata.path()),
            _ => Tokenizer::from_pieces(self.metadata.pieces()?, self.metadata.path()),
        }
    }
}

impl Metadata {
    /// Refuses a vocabulary for whose tables there is no memory, in a tokenizer or in another file.
    pub(crate) fn require_tables(&self) -> Result<()> {
        /// Bytes that go with a piece or a merge, without their texts.
        const ENTRY: usize = 512;
        let of_key = |key: &str| match self.get(key) {
            Some(Value::List(items)) => {
                let text = |item: &Value| ENTRY + 3 * item.text().map_or(0, str::len);
                items.iter().map(text).fold(0, usize::saturating_add)
            }
            _ => 0,
        };
        Ok(require(of_key(TOKENS).saturating_add(of_key(MERGES)), "tables of a vocabulary")?)
    }

    /// The pieces of a sentencepiece vocabulary.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config), naming the key, for another kind of tokenizer and where a key is missing or
    /// impossible.
    pub(crate) fn pieces(&self) -> Result<SentencePieces> {
        if self.text(MODEL)? != Some("llama") {
            return Err(self.error(MODEL, "\"llama\", a sentencepiece vocabulary"));
        }
        let texts = self.texts()?;
        let scores = self.list(SCORES, "numbers", |item| item.number().map(|number| number as f32))?;
        let scores = scores.ok_or_else(|| self.missing(SCORES))?;
        self.require_len(SCORES, scores.len(), texts.len())?;
        for (name, neutral) in [("remove_extra_whitespaces", false), ("escape_whitespaces", true)] {
            if self.flag_of_tokenizer(name)?.is_some_and(|found| found != neutral) {
                return Err(self.error(&format!("tokenizer.ggml.{name}"), neutral.to_string()));
            }
        }
        let len = texts.len();
        let mut pieces = SentencePieces::new(texts, scores);
        pieces.types = self.types(len)?;
        pieces.bos = self.special("bos_token_id", len)?;
        pieces.eos = self.special("eos_token_id", len)?;
        pieces.unk = self.special("unknown_token_id", len)?;
        pieces.add_bos = self.flag_of_tokenizer("add_bos_token")?;
        pieces.add_eos = self.flag_of_tokenizer("add_eos_token")?;
        pieces.space_in_front = self.flag_of_tokenizer("add_space_prefix")?.unwrap_or(true);
        Ok(pieces)
    }

    /// The pieces of a byte-level vocabulary.
    ///
    /// # Errors
    ///
    /// As [`pieces`](Self::pieces).
    fn byte_pieces(&self) -> Result<BytePieces> {
        let texts = self.texts()?;
        let merges = self.list(MERGES, "strings", |item| item.text().map(str::to_owned))?;
        let merges = merges.ok_or_else(|| self.missing(MERGES))?;
        let words =
            self.text(WORDS)?.ok_or_else(|| self.error(WORDS, "a name of what cuts a text into words"))?;
        let len = texts.len();
        let required = |name: &str| {
            let missing = || self.error(&format!("tokenizer.ggml.{name}"), "a token id");
            self.special(name, len)?.ok_or_else(missing)
        };
        let (bos, eos) = (required("bos_token_id")?, required("eos_token_id")?);
        let mut pieces = BytePieces::new(texts, merges, words, bos, eos);
        pieces.types = self.types(len)?;
        pieces.add_bos = self.flag_of_tokenizer("add_bos_token")?;
        pieces.add_eos = self.flag_of_tokenizer("add_eos_token")?;
        Ok(pieces)
    }

    fn texts(&self) -> Result<Vec<String>> {
        let texts = self.list(TOKENS, "strings", |item| item.text().map(str::to_owned))?;
        texts.ok_or_else(|| self.missing(TOKENS))
    }

    /// A type for each of so many pieces, or none at all.
    fn types(&self, pieces: usize) -> Result<Vec<u32>> {
        const TYPES: &str = "tokenizer.ggml.token_type";
        let types = self.list(TYPES, "types", |item| u32::try_from(item.size()?).ok())?;
        let Some(types) = types else { return Ok(Vec::new()) };
        self.require_len(TYPES, types.len(), pieces)?;
        Ok(types)
    }

    /// The id of one of so many pieces.
    fn special(&self, name: &str, pieces: usize) -> Result<Option<u32>> {
        let key = format!("tokenizer.ggml.{name}");
        match self.token(&key)? {
            Some(id) if id as usize >= pieces => {
                Err(self.error(&key, format!("an id of the {pieces} tokens")))
            }
            id => Ok(id),
        }
    }

    fn flag_of_tokenizer(&self, name: &str) -> Result<Option<bool>> {
        self.flag(&format!("tokenizer.ggml.{name}"))
    }

    fn missing(&self, key: &str) -> Error {
        self.error(key, "an array, without which text cannot be encoded")
    }

    fn require_len(&self, key: &str, found: usize, pieces: usize) -> Result<()> {
        if found == pieces { Ok(()) } else { Err(self.error(key, format!("{pieces} items, one a token"))) }
    }
}

impl Header {
    /// The chat templates: `tokenizer.chat_template`, and those with a name behind it.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config) where one is no string.
    pub(crate) fn chat_evidence(&self) -> Result<ChatEvidence> {
        let metadata = &self.metadata;
        let (mut templates, file) = (Vec::new(), metadata.path().display());
        for key in metadata.keys() {
            let Some(name) = key.strip_prefix("tokenizer.chat_template") else { continue };
            let name = match name.strip_prefix('.') {
                None if name.is_empty() => "default",
                Some(name) => name,
                None => continue,
            };
            let Some(text) = metadata.text(key)?.filter(|text| !text.is_empty()) else { continue };
            let origin = format!("{file}: {}", key.escape_debug());
            templates.push(Template { name: name.to_owned(), text: text.to_owned(), origin });
        }
        let mut evidence = ChatEvidence::new(templates);
        let texts = metadata.list(TOKENS, "strings", Value::text)?.unwrap_or_default();
        for (name, key) in [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        ] {
            let id = metadata.token(&format!("tokenizer.ggml.{key}"))?;
            if let Some(text) = id.and_then(|id| texts.get(id as usize)) {
                evidence.special_tokens.insert(name.to_owned(), (*text).to_owned());
            }
        }
        Ok(evidence)
    }
}
