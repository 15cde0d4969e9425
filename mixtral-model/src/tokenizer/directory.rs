//! The tokenizer of a model directory, which several files tell of.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::config::{Config, Origin};
use super::draft::Draft;
use super::find::Token;
use super::vocabulary::Kind;
use super::{Tokenizer, json, sentencepiece, shorten, tekken, unusable};
use crate::input::{require, require_memory};
use crate::{Error, Result};

/// No tokenizer file is larger; Mixtral's are below 4 MB.
const MAX_FILE_BYTES: u64 = 1 << 26;

/// Names of a sentencepiece model, the first the usual one, the others those of Mistral's own downloads.
const MODELS: [&str; 5] = [
    "tokenizer.model",
    "tokenizer.model.v1",
    "tokenizer.model.v2",
    "tokenizer.model.v3",
    "tokenizer.model.v7",
];

/// The name of Mistral's own file of its byte-level BPE.
const TEKKEN: &str = "tekken.json";

/// Reads the tokenizer of a directory.
pub(super) fn open(dir: &Path) -> Result<Tokenizer> {
    let config = Config::from_dir(dir)?;
    let model = model(dir)?;
    let path = dir.join("tokenizer.json");
    let (mut draft, path, from) = match (read(&path)?, model) {
        (Some(bytes), model) => {
            let mut draft = json_draft(&bytes, &path)?;
            if let Some((other, model)) = model {
                compare(&mut draft, &model, &path, &other);
            }
            (draft, path, Origin::Json)
        }
        (None, Some((path, draft))) => (draft, path, Origin::Sentencepiece),
        (None, None) => {
            let path = dir.join(TEKKEN);
            let Some(bytes) = read(&path)? else { return Err(nothing(dir)) };
            (tekken_draft(&bytes, &path)?, path, Origin::Json)
        }
    };
    let built = config.apply(&mut draft, from).and_then(|()| draft.finish(&path));
    built.map_err(|reason| unusable(&path, reason))
}

/// The first sentencepiece model that there is.
fn model(dir: &Path) -> Result<Option<(PathBuf, Draft)>> {
    for name in MODELS {
        let path = dir.join(name);
        if let Some(bytes) = read(&path)? {
            let draft = sentencepiece_draft(&bytes, &path)?;
            return Ok(Some((path, draft)));
        }
    }
    Ok(None)
}

fn nothing(dir: &Path) -> Error {
    unusable(dir, "expected tokenizer.model, tokenizer.json or tekken.json, found none".to_owned())
}

/// Bytes that go with a value of a vocabulary, in the tables that are made of it too.
const ENTRY: usize = 384;

/// Bytes that go with a byte of a sentencepiece model, of which a piece has some ten or more.
const OF_BYTE: usize = 64;

/// What a sentencepiece model tells.
pub(super) fn sentencepiece_draft(bytes: &[u8], path: &Path) -> Result<Draft> {
    require(bytes.len().saturating_mul(OF_BYTE), "tables of a vocabulary")?;
    sentencepiece::read(bytes).map_err(|reason| unusable(path, reason))
}

/// What a `tokenizer.json` tells.
pub(super) fn json_draft(bytes: &[u8], path: &Path) -> Result<Draft> {
    require_memory(bytes, ENTRY)?;
    let file: json::File =
        serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    Ok(file.draft().map_err(|reason| unusable(path, reason))?.warning_of(path))
}

/// What a `tekken.json` tells.
fn tekken_draft(bytes: &[u8], path: &Path) -> Result<Draft> {
    require_memory(bytes, ENTRY)?;
    let file: tekken::File =
        serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    file.draft().map_err(|reason| unusable(path, reason))
}

/// Notes where the model of `tokenizer.json` and that of `tokenizer.model` differ; the former counts, but which pieces are
/// user-defined only the latter tells.
fn compare(draft: &mut Draft, model: &Draft, path: &Path, other: &Path) {
    let (path, other) = (path.display(), other.display());
    let missing = model.table.pieces().filter(|(id, _)| draft.table.get(*id).is_none()).count();
    let unheard = |id: u32| model.table.get(id).is_none() && draft.table.added(id).is_none();
    let further = draft.table.pieces().filter(|(id, _)| unheard(*id)).count();
    if missing + further > 0 {
        draft.warnings.push(format!(
            "{other}: {missing} of its pieces are not in {path}, which counts, and {further} more are"
        ));
    }
    let mut differing = model.table.pieces().filter_map(|(id, piece)| {
        let found = draft.table.get(id)?;
        (found.text != piece.text).then_some((id, &*piece.text, &*found.text))
    });
    if let Some((id, theirs, ours)) = differing.next() {
        let more = differing.count() + 1;
        let (theirs, ours) = (shorten(theirs), shorten(ours));
        draft.warnings.push(format!(
            "{other}: piece {id} is {theirs:?}, and {ours:?} in {path}, which counts ({more} such pieces)"
        ));
    }
    for (id, piece) in model.table.pieces().filter(|(_, piece)| piece.kind == Kind::UserDefined) {
        if draft.table.get(id).is_some_and(|found| found.text == piece.text) {
            draft.user_defined.push(Token::plain(id, &piece.text));
        }
    }
}

/// The bytes of a file, or `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        // Opening a pipe would wait for its writer.
        Ok(_) => return Err(unusable(path, "expected a regular file, found another kind".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unusable(path, format!("expected at most {MAX_FILE_BYTES} bytes, found more")));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        let reason = "expected a tokenizer, found a Git LFS pointer, not the file it stands for";
        return Err(unusable(path, reason.to_owned()));
    }
    Ok(Some(bytes))
}
