//! `mixtral tokenize`.

use std::fmt::Write as _;
use std::path::Path;

use mixtral_model::{Chat, Error, Tokenizer};

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
            if args.no_bos { tokenizer.encode(&text) } else { tokenizer.encode_prompt(&text)? }
        }
    };
    tokenizer.check(&ids)?;
    if args.json { write_json(&tokenizer, &ids) } else { write_lines(&tokenizer, &ids) }
}

fn chat(path: &Path) -> Result<Chat> {
    let json = input::file(path)?;
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
                text += comma;
                text += &spell(id).map_err(std::io::Error::other)?;
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
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{id:>6}  {}", harmless(piece(tokenizer, id)).replace(['\n', '\t'], "?"));
        }
        out.text(&text)?;
    }
    Ok(())
}
