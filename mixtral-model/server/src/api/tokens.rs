//! `/tokenize`, `/detokenize` and `/tokenizer_info`, as lm-evaluation-harness asks for them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Api;
use super::fault::Fault;
use super::fields::{Fields, wrong};

pub(super) fn tokenize(api: &Arc<Api>, body: &[u8]) -> Result<Value, Fault> {
    let mut fields = Fields::read(body)?;
    let text = fields.text("prompt")?;
    let text = text.ok_or_else(|| wrong("prompt", "a text", &Value::Null))?;
    let special = match fields.take("add_special_tokens") {
        None => true,
        Some(Value::Bool(flag)) => flag,
        Some(other) => return Err(wrong("add_special_tokens", "true or false", &other)),
    };
    fields.text("model")?;
    fields.finish()?;
    let core = api.core();
    let ids = if special { core.tokenizer.encode_prompt(&text) } else { core.tokenizer.encode(&text) };
    let ids = ids.map_err(|error| Fault::field("prompt", error.to_string()))?;
    let context = core.options.session.context.unwrap_or(core.model.config().max_positions);
    Ok(json!({"count": ids.len(), "max_model_len": context, "tokens": ids}))
}

pub(super) fn detokenize(api: &Arc<Api>, body: &[u8]) -> Result<Value, Fault> {
    let mut fields = Fields::read(body)?;
    let tokens = fields.take("tokens").unwrap_or_default();
    fields.text("model")?;
    fields.finish()?;
    let core = api.core();
    let vocabulary = core.model.config().vocab_size as u64;
    let id = |value: &Value| value.as_u64().filter(|&id| id < vocabulary).map(|id| id as u32);
    let ids = tokens.as_array().and_then(|ids| ids.iter().map(id).collect::<Option<Vec<_>>>());
    let ids = ids.ok_or_else(|| wrong("tokens", &format!("a list of ids below {vocabulary}"), &tokens))?;
    Ok(json!({"prompt": core.tokenizer.decode(&ids)}))
}

pub(super) fn info(api: &Api) -> Value {
    let tokenizer = &api.core().tokenizer;
    let piece = |id: u32| tokenizer.piece(id);
    let ids = tokenizer.encode_prompt("a").unwrap_or_default();
    json!({
        "tokenizer_class": "mixtral",
        "vocab_size": tokenizer.vocab_size(),
        "bos_token": piece(tokenizer.bos()),
        "bos_token_id": tokenizer.bos(),
        "eos_token": piece(tokenizer.eos()),
        "eos_token_id": tokenizer.eos(),
        "pad_token": null,
        "add_bos_token": ids.first() == Some(&tokenizer.bos()),
        "add_eos_token": ids.last() == Some(&tokenizer.eos()),
        "chat_template": null,
    })
}
