//! `POST /v1/completions`: what comes after texts.

use std::sync::Arc;

use serde_json::Value;

use super::Api;
use super::answer::{Answer, Echo, Shape};
use super::common::{Common, TOP};
use super::fault::Fault;
use super::fields::{Fields, wrong};

/// Tokens that a completion has where the request does not say, as OpenAI's.
const TOKENS: usize = 16;

/// A text to complete.
struct Prompt {
    /// As it was given, where it was given as a text.
    text: Option<String>,
    ids: Vec<u32>,
}

/// Reads a request.
pub(super) fn read(api: &Arc<Api>, body: &[u8]) -> Result<Answer, Fault> {
    let mut fields = Fields::read(body)?;
    let prompts = prompts(api, fields.take("prompt"))?;
    let logprobs = match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => None,
        Some(value) => {
            let count = value.as_u64().filter(|&count| count <= TOP as u64);
            Some(count.ok_or_else(|| wrong("logprobs", &format!("a whole number from 0 to {TOP}"), &value))?)
        }
    };
    let logprobs = logprobs.map(|count| count as usize);
    let echo = fields.flag("echo")?;
    let common = Common::take(api, &mut fields)?;
    fields.finish()?;

    let core = api.core();
    let count = prompts.len() * common.choices;
    if count > core.options.queue {
        let message =
            format!("expected at most {} choices of all prompts, found {count}", core.options.queue);
        return Err(Fault::field("prompt", message));
    }
    let mut answer = Answer::new(api, Shape::Text, &common, logprobs);
    for Prompt { text, ids } in prompts {
        let stop = &core.model.config().eos;
        let requests = common.requests(api, &ids, TOKENS, stop, logprobs, echo && logprobs.is_some())?;
        let text = || text.clone().unwrap_or_else(|| core.tokenizer.decode(&ids));
        for _ in &requests {
            let echo = echo.then(|| Echo { text: text(), ids: ids.clone() });
            answer.add(echo);
        }
        answer.prompt_tokens += ids.len();
        answer.requests.extend(requests);
    }
    Ok(answer)
}

/// A text, ids, or a list of either.
fn prompts(api: &Api, prompt: Option<Value>) -> Result<Vec<Prompt>, Fault> {
    let expected = "a text, a list of token ids, or a list of either";
    let value = prompt.ok_or_else(|| wrong("prompt", expected, &Value::Null))?;
    let prompts = match &value {
        Value::String(_) => vec![prompt_of(api, &value)?],
        Value::Array(list) if list.is_empty() => return Err(wrong("prompt", expected, &value)),
        Value::Array(list) if list.iter().all(Value::is_number) => vec![prompt_of(api, &value)?],
        Value::Array(list) => {
            if list.len() > api.core().options.queue {
                let most = api.core().options.queue;
                let message = format!("expected at most {most} prompts, found {}", list.len());
                return Err(Fault::field("prompt", message));
            }
            list.iter().map(|prompt| prompt_of(api, prompt)).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong("prompt", expected, &value)),
    };
    Ok(prompts)
}

fn prompt_of(api: &Api, prompt: &Value) -> Result<Prompt, Fault> {
    let core = api.core();
    let vocabulary = core.model.config().vocab_size;
    match prompt {
        Value::String(text) => {
            let context = core.options.session.context.unwrap_or(core.model.config().max_positions);
            let least = core.tokenizer.least_ids(text);
            if least > context {
                let message = format!("expected at most {context} tokens, found at least {least}");
                return Err(Fault::field("prompt", message).code("context_length_exceeded"));
            }
            let ids = core
                .tokenizer
                .encode_prompt(text)
                .map_err(|error| Fault::field("prompt", error.to_string()))?;
            Ok(Prompt { text: Some(text.clone()), ids })
        }
        Value::Array(list) => {
            let id = |value: &Value| {
                let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id.filter(|&id| (id as usize) < vocabulary);
                id.ok_or_else(|| wrong("prompt", &format!("token ids below {vocabulary}"), value))
            };
            Ok(Prompt { text: None, ids: list.iter().map(id).collect::<Result<_, _>>()? })
        }
        other => Err(wrong("prompt", "texts or lists of token ids", other)),
    }
}
