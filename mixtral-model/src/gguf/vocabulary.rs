//! The vocabulary of a GGUF file as a tokenizer.

use super::{Header, Metadata, Value};
use crate::tokenizer::SentencePieces;
use crate::{ChatEvidence, Result, Template, Tokenizer};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";

impl Header {
    /// The tokenizer that the metadata describe: sentencepiece's, which is called `llama` there.
    ///
    /// # Errors
    ///
    /// Those of [`Metadata::pieces`] and [`Tokenizer::from_pieces`].
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_pieces(self.metadata.pieces()?, self.metadata.path())
    }
}

impl Metadata {
    /// The pieces of the tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::Config`](crate::Error::Config), naming the key, for another kind of tokenizer and where a key is missing or
    /// impossible.
    pub(crate) fn pieces(&self) -> Result<SentencePieces> {
        let metadata = self;
        let expected = "\"llama\", a sentencepiece vocabulary";
        match metadata.text(MODEL)? {
            Some("llama") => {}
            Some("gpt2") => {
                return Err(metadata.error(
                    MODEL,
                    format!("{expected}, as byte-level BPE (GPT-2, Llama 3) is not supported"),
                ));
            }
            _ => return Err(metadata.error(MODEL, expected)),
        }
        let missing = |key: &str| metadata.error(key, "an array, without which text cannot be encoded");
        let texts = metadata.list(TOKENS, "strings", Value::text)?.ok_or_else(|| missing(TOKENS))?;
        let scores =
            numbers(metadata, "scores", texts.len())?.ok_or_else(|| missing("tokenizer.ggml.scores"))?;
        let types =
            metadata.list("tokenizer.ggml.token_type", "types", |item| u32::try_from(item.size()?).ok())?;
        require_len(metadata, "token_type", types.as_ref().map(Vec::len), texts.len())?;
        let token = |name: &str| -> Result<Option<u32>> {
            let key = format!("tokenizer.ggml.{name}");
            match metadata.token(&key)? {
                Some(id) if id as usize >= texts.len() => {
                    Err(metadata.error(&key, format!("an id of the {} tokens", texts.len())))
                }
                id => Ok(id),
            }
        };
        let flag = |name: &str| metadata.flag(&format!("tokenizer.ggml.{name}"));
        for (name, neutral) in [("remove_extra_whitespaces", false), ("escape_whitespaces", true)] {
            if flag(name)?.is_some_and(|found| found != neutral) {
                return Err(metadata.error(&format!("tokenizer.ggml.{name}"), neutral.to_string()));
            }
        }
        let mut pieces = SentencePieces::new(texts.iter().map(|&text| text.to_owned()).collect(), scores);
        pieces.types = types.unwrap_or_default();
        pieces.bos = token("bos_token_id")?;
        pieces.eos = token("eos_token_id")?;
        pieces.unk = token("unknown_token_id")?;
        pieces.add_bos = flag("add_bos_token")?;
        pieces.add_eos = flag("add_eos_token")?;
        pieces.space_in_front = flag("add_space_prefix")?.unwrap_or(true);
        Ok(pieces)
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
            let Some(text) = metadata.text(key)? else { continue };
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

/// An array of a number for each token.
fn numbers(metadata: &Metadata, name: &str, tokens: usize) -> Result<Option<Vec<f32>>> {
    let key = format!("tokenizer.ggml.{name}");
    let numbers = metadata.list(&key, "numbers", |item| item.number().map(|number| number as f32))?;
    require_len(metadata, name, numbers.as_ref().map(Vec::len), tokens)?;
    Ok(numbers)
}

fn require_len(metadata: &Metadata, name: &str, found: Option<usize>, tokens: usize) -> Result<()> {
    match found {
        Some(found) if found != tokens => {
            Err(metadata.error(&format!("tokenizer.ggml.{name}"), format!("{tokens} items, one a token")))
        }
        _ => Ok(()),
    }
}
