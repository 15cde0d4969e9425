//! `mixtral tokenize`.

use std::path::Path;

use mixtral_model::{Chat, Error, Tokenizer};
use moe_core::{OutOfMemory, memory};

use crate::args::Tokenize;
use crate::failure::{Result, warn};
use crate::input;
use crate::load;
use crate::output::{Output, harmless};

pub(crate) fn run(args: &Tokenize) -> Result<()> {
    let source = args.model.source()?;
    let mut tokenizer = source.tokenizer()?;
    // A tokenizer without a model is welcome.
    if let Ok(config) = source.config() {
        tokenizer = tokenizer.for_model(config.vocab_size)?;
    }
    tokenizer.warnings().iter().for_each(|warning| warn(warning));
    let ids = match (&args.chat, args.text.as_deref()) {
        (Some(path), _) => {
            let format = load::chat_format(&source, args.format.chat_format.as_ref(), &tokenizer)?;
            format.encode(&tokenizer, &chat(path)?)?
        }
        (None, text) => {
            let text = input::text_or_stdin(text, "text")?;
            if args.no_bos { tokenizer.encode(&text)? } else { tokenizer.encode_prompt(&text)? }
        }
    };
    tokenizer.check(&ids)?;
    if args.json { write_json(&tokenizer, &ids) } else { write_lines(&tokenizer, &ids) }
}

fn chat(path: &Path) -> Result<Chat> {
    /// Bytes that go with a value, which a format copies before it writes it.
    const VALUE: usize = 512;
    /// How often the text is there: in the file, in values, in copies of them, as the format writes it, and as pieces spell that.
    const COPIES: usize = 8;
    let json = input::file(path)?;
    let values = json.bytes().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count();
    // Parsers and templates end the process where there is no memory: as much is asked for at once before, and given back.
    let needed = json.len().saturating_mul(COPIES).saturating_add(values.saturating_mul(VALUE));
    memory::reserve(&mut Vec::<u8>::new(), needed, "a chat")?;
    let json = serde_json::from_str(&json).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    Ok(Chat::from_json(json)?)
}

/// Tokens that are written together: output is no second text beside the tokens.
const TOGETHER: usize = 4096;

/// The piece of an id, as the tokenizer spells it.
fn piece(tokenizer: &Tokenizer, id: u32) -> &str {
    tokenizer.piece(id).unwrap_or_default()
}

fn write_json(tokenizer: &Tokenizer, ids: &[u32]) -> Result<()> {
    let mut out = Output::new();
    let mut list = |begin: &str, spell: &dyn Fn(u32) -> serde_json::Result<String>| -> Result<()> {
        out.text(begin)?;
        let mut comma = "";
        for ids in ids.chunks(TOGETHER) {
            let mut text = String::new();
            for &id in ids {
                append(&mut text, comma)?;
                append(&mut text, &spell(id).map_err(std::io::Error::other)?)?;
                comma = ",";
            }
            out.text(&text)?;
        }
        Ok(())
    };
    list("{\"ids\":[", &|id| Ok(id.to_string()))?;
    list("],\"pieces\":[", &|id| serde_json::to_string(piece(tokenizer, id)))?;
    Ok(out.text("]}\n")?)
}

/// One line a token: id and piece.
fn write_lines(tokenizer: &Tokenizer, ids: &[u32]) -> Result<()> {
    let mut out = Output::new();
    for ids in ids.chunks(TOGETHER) {
        let mut text = String::new();
        for &id in ids {
            let piece = harmless(piece(tokenizer, id)).replace(['\n', '\t'], "?");
            append(&mut text, &format!("{id:>6}  {piece}\n"))?;
        }
        out.text(&text)?;
    }
    Ok(())
}

/// Pieces may be of any length.
fn append(text: &mut String, more: &str) -> Result<()> {
    text.try_reserve(more.len()).map_err(|_| OutOfMemory::of::<u8>("output", text.len() + more.len()))?;
    text.push_str(more);
    Ok(())
}
