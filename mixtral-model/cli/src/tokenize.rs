//! `mixtral tokenize`.

use std::fmt::Write as _;
use std::path::Path;

use mixtral_model::{Chat, Error, Tokenizer};
use serde::Serialize;

use crate::args::Tokenize;
use crate::failure::{Result, warn};
use crate::input;
use crate::load;
use crate::output::{Output, harmless};

#[derive(Serialize)]
struct Tokens<'a> {
    ids: &'a [u32],
    pieces: Vec<&'a str>,
}

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
    let text = if args.json { json(&tokenizer, &ids)? } else { lines(&tokenizer, &ids) };
    Ok(Output::new().text(&text)?)
}

fn chat(path: &Path) -> Result<Chat> {
    let json = input::file(path)?;
    let json = serde_json::from_str(&json).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    Ok(Chat::from_json(json)?)
}

fn pieces<'a>(tokenizer: &'a Tokenizer, ids: &[u32]) -> Vec<&'a str> {
    ids.iter().map(|&id| tokenizer.piece(id).unwrap_or_default()).collect()
}

fn json(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    let tokens = Tokens { ids, pieces: pieces(tokenizer, ids) };
    Ok(serde_json::to_string(&tokens).map_err(std::io::Error::other)? + "\n")
}

/// One line a token: id and piece.
fn lines(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut text = String::new();
    for (id, piece) in ids.iter().zip(pieces(tokenizer, ids)) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{id:>6}  {}", harmless(piece).replace(['\n', '\t'], "?"));
    }
    text
}
