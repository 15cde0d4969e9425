//! The keys of a GGUF file that a tokenizer becomes.

use std::path::{Path, PathBuf};

use crate::gguf::Field;
use crate::input::require;
use crate::{Config, Error, Result, SentencePieces, Source, Tokenizer};

/// The score of a piece that merges never make.
const NEVER_MERGED: f32 = -1000.0;

/// Types of pieces, by sentencepiece's numbers.
const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const UNUSED: u32 = 5;

/// The keys of the tokenizer, where the source has one, and of the tokens of a config.
pub(super) fn fields(
    source: &Source,
    config: &Config,
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, Field)>> {
    let mut fields = Vec::new();
    let mut put = |name: &str, field: Field| fields.push((format!("tokenizer.{name}"), field));
    let pieces = pieces(source, config, warnings)?;
    let mut ends = config.eos.clone();
    if let Some(pieces) = &pieces {
        put("ggml.model", Field::Text("llama".to_owned()));
        put("ggml.pre", Field::Text("default".to_owned()));
        put("ggml.tokens", Field::Texts(pieces.texts.clone()));
        put("ggml.scores", Field::F32s(pieces.scores.clone()));
        put("ggml.token_type", Field::I32s(pieces.types.iter().map(|&kind| kind as i32).collect()));
        // What the tokenizer ends a text with goes first; a file has keys for two more ends.
        if let Some(eos) = pieces.eos {
            if !ends.contains(&eos) {
                warnings.push(format!(
                    "the tokenizer's end token {eos} is none of the config's, and ends texts from now on"
                ));
            }
            ends.retain(|&end| end != eos);
            ends.insert(0, eos);
        }
    }
    let bos = pieces.as_ref().and_then(|pieces| pieces.bos).or(config.bos);
    if config.bos.is_some() && bos != config.bos {
        warnings.push(format!(
            "the config's first token {:?} is not the tokenizer's, {bos:?}, which is written",
            config.bos
        ));
    }
    let mut keys = vec![("bos_token_id", bos)];
    keys.extend(
        ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().zip(ends.iter().copied().map(Some)),
    );
    keys.push(("unknown_token_id", pieces.as_ref().and_then(|pieces| pieces.unk)));
    for (name, id) in keys {
        if let Some(id) = id {
            put(&format!("ggml.{name}"), Field::U32(id));
        }
    }
    if ends.len() > 3 {
        warnings.push(format!(
            "of the {} end tokens, a GGUF file has keys for three: {:?} are left out",
            ends.len(),
            &ends[3..]
        ));
    }
    if let Some(pieces) = &pieces {
        put("ggml.add_bos_token", Field::Bool(pieces.add_bos.unwrap_or(true)));
        put("ggml.add_eos_token", Field::Bool(pieces.add_eos.unwrap_or(false)));
        put("ggml.add_space_prefix", Field::Bool(pieces.space_in_front));
    }
    let mut names = Vec::new();
    for template in source.chat_evidence()?.templates {
        match &*template.name {
            "default" => put("chat_template", Field::Text(template.text)),
            name => {
                put(&format!("chat_template.{name}"), Field::Text(template.text));
                names.push(name.to_owned());
            }
        }
    }
    if !names.is_empty() {
        put("chat_templates", Field::Texts(names));
    }
    Ok(fields)
}

/// The pieces of the source's tokenizer, one for every id of the model.
fn pieces(source: &Source, config: &Config, warnings: &mut Vec<String>) -> Result<Option<SentencePieces>> {
    let model = source.file("tokenizer.model")?;
    let json = match source.file("tokenizer.json")? {
        Some(json) => Some(json),
        None if model.is_none() => source.file("tekken.json")?,
        None => None,
    };
    if model.is_none() && json.is_none() {
        warnings.push("the model has no tokenizer: the file has none either".to_owned());
        return Ok(None);
    }
    let tokenizer = source.tokenizer()?.for_model(config.vocab_size)?;
    warnings.extend_from_slice(tokenizer.warnings());
    // Lists of all pieces, a tokenizer made of them, and what is written.
    let texts = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.piece(id)).map(str::len);
    let texts = texts.fold(0, usize::saturating_add).saturating_mul(6);
    let ids = tokenizer.vocab_size().max(config.vocab_size);
    require(ids.saturating_mul(768).saturating_add(texts), "tables of a vocabulary")?;
    let (mut pieces, path) = match model {
        Some((path, bytes)) => (SentencePieces::from_sentencepiece(&bytes, &path)?, path),
        None => {
            warnings.push(
                "the scores of pieces are made from the order of merges, for want of tokenizer.model"
                    .to_owned(),
            );
            (tokenizer.spell()?, json.map_or_else(PathBuf::new, |(path, _)| path))
        }
    };
    fit(&mut pieces, &tokenizer, config.vocab_size, &path)?;
    let written = Tokenizer::from_pieces(pieces.clone(), &path)?;
    if let Some(text) = first_difference(&tokenizer, &written) {
        warnings.push(format!("a GGUF file cannot say all of this tokenizer: {text:?} is encoded otherwise"));
    }
    Ok(Some(pieces))
}

/// Of some texts that show what tokenizers differ in, the first that two encode differently.
fn first_difference(one: &Tokenizer, other: &Tokenizer) -> Option<String> {
    let special = (0..one.vocab_size() as u32).rev().filter(|&id| one.is_control(id)).take(8);
    let around =
        special.filter_map(|id| one.piece(id)).map(|token| format!("Hello {token}you {token} there"));
    let plain = [
        "Hello, world",
        "  two  spaces ",
        "a\n\n\tb",
        "3.14 = 2\u{b2}",
        "caf\u{e9} \u{65e5}\u{672c} \u{1f600}",
    ];
    let differ = |text: &String| {
        let [ids, others] = [one, other].map(|tokenizer| tokenizer.encode_prompt(text).ok());
        ids != others || one.encode_ordinary(text).ok() != other.encode_ordinary(text).ok()
    };
    plain.map(str::to_owned).into_iter().chain(around).find(differ)
}

/// Makes of the pieces of a sentencepiece model those of the tokenizer that it is part of, which other files beside it have added
/// to or changed: one for each of so many ids.
fn fit(pieces: &mut SentencePieces, tokenizer: &Tokenizer, ids: usize, path: &Path) -> Result<()> {
    pieces.texts.truncate(ids);
    pieces.scores.truncate(ids);
    pieces.types.truncate(ids);
    for id in 0..ids {
        let found =
            u32::try_from(id).ok().and_then(|id| Some((tokenizer.piece(id)?, tokenizer.is_control(id))));
        let known = pieces.texts.get(id).cloned();
        match (known, found) {
            (Some(known), Some((text, control))) => {
                let kind = &mut pieces.types[id];
                if control {
                    *kind = CONTROL;
                }
                if known != text && !matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED) {
                    let reason = format!("piece {id}: expected {known:?}, found {text:?} in the tokenizer");
                    return Err(Error::Tokenizer { path: path.to_path_buf(), reason });
                }
                pieces.texts[id] = text.to_owned();
            }
            (Some(_), None) => {}
            (None, found) => {
                let (text, kind) = match found {
                    Some((text, true)) => (text.to_owned(), CONTROL),
                    Some((text, false)) => (text.to_owned(), USER_DEFINED),
                    None => (format!("[PAD{id}]"), UNUSED),
                };
                pieces.texts.push(text);
                pieces.scores.push(NEVER_MERGED);
                pieces.types.push(kind);
            }
        }
    }
    let of_model = |id: u32| Some(id).filter(|&id| (id as usize) < ids);
    pieces.unk = tokenizer.unk().and_then(of_model);
    (pieces.bos, pieces.eos) = (of_model(tokenizer.bos()), of_model(tokenizer.eos()));
    let around = tokenizer.encode_prompt("")?;
    pieces.add_bos = Some(around.first() == Some(&tokenizer.bos()));
    pieces.add_eos = Some(around.last() == Some(&tokenizer.eos()));
    Ok(())
}
