//! `POST /v1/chat/completions`: what the model says next in a chat.

use std::sync::Arc;

use mixtral_model::Chat;
use serde_json::{Value, json};

use super::Api;
use super::answer::{Answer, Shape};
use super::common::{Common, TOP};
use super::fault::Fault;
use super::fields::{Fields, wrong};

/// Tokens that an answer has where the request does not say.
const TOKENS: usize = 512;

/// Reads a request.
pub(super) fn read(api: &Arc<Api>, body: &[u8]) -> Result<Answer, Fault> {
    let mut fields = Fields::read(body)?;
    let messages = match fields.take("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        other => return Err(wrong("messages", "a list of messages", &other.unwrap_or_default())),
    };
    let tools = tools(&mut fields)?;
    let variables = fields.take("chat_template_kwargs").unwrap_or_default();
    let mut logprobs = fields.flag("logprobs")?.then_some(0);
    if let Some(count) = fields.whole("top_logprobs", 0..=TOP)? {
        let beside = || Fault::field("top_logprobs", "expected logprobs to be true beside it");
        logprobs = Some(logprobs.map(|_| count).ok_or_else(beside)?);
    }
    let most = fields.whole("max_completion_tokens", 0..=api.core().options.max_tokens)?;
    let mut common = Common::take(api, &mut fields)?;
    common.max_tokens = most.or(common.max_tokens);
    fields.finish()?;

    let core = api.core();
    let refused = |error: mixtral_model::Error| Fault::field("messages", error.to_string());
    let chat = json!({"messages": messages, "tools": tools, "chat_template_kwargs": variables});
    let chat = Chat::from_json(chat).map_err(refused)?;
    let ids = api.chat.encode(&core.tokenizer, &chat).map_err(refused)?;
    let mut stop = core.model.config().eos.clone();
    stop.extend(api.chat.stop_tokens());
    let requests = common.requests(api, &ids, TOKENS, &stop, logprobs, false)?;
    let mut answer = Answer::new(api, Shape::Chat, &common, logprobs);
    requests.iter().for_each(|_| answer.add(None));
    answer.prompt_tokens = ids.len();
    answer.requests = requests;
    Ok(answer)
}

/// The functions that the model may call; none where it is not to call any.
fn tools(fields: &mut Fields) -> Result<Value, Fault> {
    let tools = fields.take("tools").unwrap_or_default();
    match fields.take("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => Ok(Value::Null),
        Some(Value::String(choice)) if choice == "auto" => Ok(tools),
        None => Ok(tools),
        Some(_) => {
            let message = "this server does not do anything but auto and none";
            Err(Fault::field("tool_choice", message).code("unsupported_parameter"))
        }
    }
}
