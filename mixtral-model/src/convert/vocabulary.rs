//! The keys of a GGUF file that a tokenizer becomes.

use std::path::Path;

use serde_json::{Map, Value};

use crate::gguf::Field;
use crate::input::json_object;
use crate::{Config, Error, Result, SentencePieces, Source, Tokenizer};

/// The score of a piece that merges never make.
const NEVER_MERGED: f32 = -1000.0;

/// Types of pieces, by sentencepiece's numbers.
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
    if let Some(template) = chat_template(source, warnings)? {
        put("chat_template", Field::Text(template));
    }
    Ok(fields)
}

/// The pieces of the source's tokenizer, one for every id of the model.
fn pieces(source: &Source, config: &Config, warnings: &mut Vec<String>) -> Result<Option<SentencePieces>> {
    let Some((path, bytes)) = source.file("tokenizer.model")? else {
        let Some((path, _)) = source.file("tokenizer.json")? else {
            warnings.push("the model has no tokenizer: the file has none either".to_owned());
            return Ok(None);
        };
        let reason = "expected tokenizer.model beside it: a GGUF file has a score for each piece, which this file lacks";
        return Err(Error::Tokenizer { path, reason: reason.to_owned() });
    };
    let mut pieces = SentencePieces::from_sentencepiece(&bytes, &path)?;
    let tokenizer = source.tokenizer()?;
    tokenizer.require_at_most(config.vocab_size)?;
    add_others(&mut pieces, &tokenizer, &path)?;
    for id in pieces.texts.len()..config.vocab_size {
        pieces.texts.push(format!("[PAD{id}]"));
        pieces.scores.push(NEVER_MERGED);
        pieces.types.push(UNUSED);
    }
    Ok(Some(pieces))
}

/// Adds what the tokenizer has beyond the pieces of its sentencepiece model, from other files beside it.
fn add_others(pieces: &mut SentencePieces, tokenizer: &Tokenizer, path: &Path) -> Result<()> {
    let error = |reason: String| Error::Tokenizer { path: path.to_path_buf(), reason };
    for id in 0..tokenizer.vocab_size() as u32 {
        let found = tokenizer.piece(id).ok_or_else(|| error(format!("expected a piece {id}, found none")))?;
        match pieces.texts.get(id as usize) {
            Some(text) if text == found => {}
            Some(text) => {
                return Err(error(format!(
                    "piece {id}: expected {text:?}, found {found:?} in the tokenizer"
                )));
            }
            None => {
                pieces.texts.push(found.to_owned());
                pieces.scores.push(NEVER_MERGED);
                pieces.types.push(if tokenizer.is_control(id) { CONTROL } else { USER_DEFINED });
            }
        }
    }
    Ok(())
}

/// The template by which the model's chats are written.
fn chat_template(source: &Source, warnings: &mut Vec<String>) -> Result<Option<String>> {
    let object = |name: &str| -> Result<Map<String, Value>> {
        match source.file(name)? {
            Some((path, bytes)) => json_object(&bytes, &path),
            None => Ok(Map::new()),
        }
    };
    let text = |(path, bytes)| {
        String::from_utf8(bytes)
            .map_err(|_| Error::Tokenizer { path, reason: "expected UTF-8, found other bytes".to_owned() })
    };
    let key = "chat_template";
    let template = match object("tokenizer_config.json")?.remove(key) {
        None | Some(Value::Null) => match source.file("chat_template.jinja")?.map(text).transpose()? {
            Some(template) => Value::from(template),
            None => object("chat_template.json")?.remove(key).unwrap_or_default(),
        },
        Some(template) => template,
    };
    let named = |template: &Value| template.get("name").and_then(Value::as_str) == Some("default");
    Ok(match &template {
        Value::Null => None,
        Value::String(template) => Some(template.clone()),
        other => {
            let of_list = other.as_array().and_then(|list| list.iter().find(|template| named(template)));
            let default = of_list.and_then(|template| template.get("template")?.as_str());
            warnings.push(match default {
                Some(_) => "of the model's chat templates, the default one is written".to_owned(),
                None => "the model's chat template is no text, and is left out".to_owned(),
            });
            default.map(str::to_owned)
        }
    })
}
