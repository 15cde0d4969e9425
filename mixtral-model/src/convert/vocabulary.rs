//! The keys of a GGUF file that a tokenizer becomes.

use std::path::Path;

use crate::gguf::Field;
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
    for template in source.chat_evidence()?.templates {
        match &*template.name {
            "default" => put("chat_template", Field::Text(template.text)),
            name => put(&format!("chat_template.{name}"), Field::Text(template.text)),
        }
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
    let tokenizer = source.tokenizer()?.for_model(config.vocab_size)?;
    warnings.extend_from_slice(tokenizer.warnings());
    add_others(&mut pieces, &tokenizer, config.vocab_size, &path)?;
    Ok(Some(pieces))
}

/// Adds what the tokenizer has beyond the pieces of its sentencepiece model, from other files beside it, and for the ids of the model
/// that nobody has a piece for one that stands for nothing.
fn add_others(
    pieces: &mut SentencePieces,
    tokenizer: &Tokenizer,
    vocab_size: usize,
    path: &Path,
) -> Result<()> {
    for id in 0..vocab_size as u32 {
        match (pieces.texts.get(id as usize), tokenizer.piece(id)) {
            (Some(text), Some(found)) if text != found => {
                let reason = format!("piece {id}: expected {text:?}, found {found:?} in the tokenizer");
                return Err(Error::Tokenizer { path: path.to_path_buf(), reason });
            }
            (Some(_), _) => {}
            (None, found) => {
                pieces.types.push(match found {
                    Some(_) if tokenizer.is_control(id) => CONTROL,
                    Some(_) => USER_DEFINED,
                    None => UNUSED,
                });
                pieces.texts.push(found.map_or_else(|| format!("[PAD{id}]"), str::to_owned));
                pieces.scores.push(NEVER_MERGED);
            }
        }
    }
    Ok(())
}
