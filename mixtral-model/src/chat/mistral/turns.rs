//! A chat brought into the form that Mistral's formats write: what may follow what, and messages of one role in a row as one.
//!
//! The rules are those of Mistral's own library, mistral-common, so that what it takes is taken, and what it refuses is refused
//! here with the number of the message. Three things differ: an empty answer is taken, for a conversation may hold one; results
//! without calls are refused wherever they stand; and of JSON in results and arguments, numbers beyond 64 bits become floats, and
//! `NaN` and the infinities, which are no JSON, stay text.

use serde_json::{Map, Value};

use super::MistralVersion;
use crate::chat::{Chat, Message, json};
use crate::input::brief;
use crate::{Error, Result};

/// What stands between messages, or parts of a message, that become one text.
const BETWEEN: &str = "\n\n";

/// A turn as it is written, with the number of its first message.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) index: usize,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// From version 7 on; earlier ones have no place for it but a user turn.
    System(String),
    User(String),
    Assistant {
        content: String,
        /// Objects with name, arguments and, from version 3 on, id.
        calls: Vec<Value>,
        /// Whether the model is to continue it.
        prefix: bool,
    },
    Tool {
        content: String,
        id: String,
        name: Value,
    },
}

/// The turns of a chat, with the system messages of versions before 7 put together.
pub(super) fn turns(version: MistralVersion, chat: &Chat) -> Result<(String, Vec<Turn>)> {
    check_order(&chat.messages)?;
    let mut system = Vec::new();
    let mut turns: Vec<Turn> = Vec::new();
    let mut before = None;
    for (index, message) in chat.messages.iter().enumerate() {
        let reader = Reader { version, index, message };
        let what = reader.read(index + 1 == chat.messages.len())?;
        let last = turns.last_mut().filter(|_| before == Some(message.role())).map(|turn| &mut turn.what);
        before = Some(message.role());
        match (last, what) {
            (_, What::System(text)) if version < MistralVersion::V7 => {
                if !message.texts().unwrap_or_default().is_empty()
                    && message.get("content") != Some(&"".into())
                {
                    system.push(text);
                }
            }
            (Some(What::User(text)), What::User(more)) => append(text, &more),
            (
                Some(What::Assistant { content, calls, prefix }),
                What::Assistant { content: more, calls: more_calls, prefix: more_prefix },
            ) => {
                append(content, &more);
                calls.extend(more_calls);
                *prefix |= more_prefix;
                if version < MistralVersion::V7 && !content.is_empty() && !calls.is_empty() {
                    return reader.wrong("expected content or tool_calls, found both in a row".to_owned());
                }
            }
            (_, what) => turns.push(Turn { index, what }),
        }
    }
    let begins_right = match turns.first() {
        None => false,
        Some(turn) => version >= MistralVersion::V7 || matches!(turn.what, What::User(_)),
    };
    if !begins_right {
        turns.insert(0, Turn { index: 0, what: What::User(String::new()) });
    }
    Ok((system.join(BETWEEN), turns))
}

fn append(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str(BETWEEN);
    }
    text.push_str(more);
}

/// Checks which role follows which, where the chat begins and ends, and that calls have their results.
fn check_order(messages: &[Message]) -> Result<()> {
    let at = |index: usize, expected: &str| {
        let found = messages.get(index).map_or("the end", Message::role);
        Err(Error::Chat { index, reason: format!("expected {expected}, found {found}") })
    };
    let mut before = "the beginning";
    let mut unanswered = 0_usize;
    for (index, message) in messages.iter().enumerate() {
        let role = message.role();
        let expected: &[&str] = match before {
            "system" => &["user", "assistant", "system"],
            "user" => &["assistant", "system", "user"],
            "assistant" => &["assistant", "user", "tool"],
            "tool" => &["assistant", "tool", "user"],
            // A chat of several messages may begin with any, a chat of one needs something to answer.
            _ if messages.len() > 1 => &["system", "user", "assistant", "tool"],
            _ => &["user", "system"],
        };
        if !expected.contains(&role) {
            return at(index, &alternatives(expected));
        }
        // As in mistral-common, which counts from the second message on.
        match role {
            "tool" if index > 0 && unanswered == 0 => return at(index, "no more results than calls"),
            "tool" if index > 0 => unanswered -= 1,
            "assistant" if index > 0 => {
                if unanswered > 0 {
                    return at(index, "tool, for a call without a result");
                }
                unanswered = message.get("tool_calls").and_then(Value::as_array).map_or(0, Vec::len);
            }
            _ => {}
        }
        before = role;
    }
    match messages.last() {
        None => at(0, "user"),
        Some(last) if last.role() == "assistant" && !last.is_prefix() => at(messages.len(), "user"),
        Some(_) => Ok(()),
    }
}

fn alternatives(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A message that is to be read for a version.
struct Reader<'m> {
    version: MistralVersion,
    index: usize,
    message: &'m Message,
}

impl Reader<'_> {
    fn wrong<T>(&self, reason: String) -> Result<T> {
        Err(Error::Chat { index: self.index, reason })
    }

    fn read(&self, last: bool) -> Result<What> {
        let content = self.content()?;
        let keys: &[&str] = match self.message.role() {
            "assistant" => &["role", "content", "tool_calls", "prefix"],
            "tool" => &["role", "content", "tool_call_id", "name"],
            _ => &["role", "content"],
        };
        // Empty lists and texts say nothing; clients put them everywhere.
        let says_something = |value: &Value| !matches!(value, Value::Bool(false)) && !is_empty(value);
        let mut fields = self.message.fields().iter();
        if let Some((key, value)) =
            fields.find(|(key, value)| !keys.contains(&&***key) && says_something(value))
        {
            let format = self.version.name();
            return self.wrong(format!("{key}: expected none in Mistral's {format}, found {}", brief(value)));
        }
        match self.message.role() {
            "system" => Ok(What::System(content)),
            "user" => Ok(What::User(content)),
            "tool" => self.result(content),
            _ => {
                let calls = self.calls()?;
                if !calls.is_empty() && !content.is_empty() && self.version < MistralVersion::V7 {
                    return self.wrong("expected content or tool_calls, found both".to_owned());
                }
                let prefix = self.message.is_prefix();
                if prefix && !last {
                    return self
                        .wrong("expected prefix in the last message alone, found it earlier".to_owned());
                }
                Ok(What::Assistant { content, calls, prefix })
            }
        }
    }

    fn content(&self) -> Result<String> {
        let texts = match self.message.texts() {
            Ok(texts) => texts,
            Err(part) => {
                return self.wrong(format!("content: expected parts of text, found {}", brief(part)));
            }
        };
        let mut content = String::new();
        for text in texts {
            append(&mut content, text);
        }
        Ok(content)
    }

    fn result(&self, content: String) -> Result<What> {
        if self.version == MistralVersion::V1 {
            return self.wrong(
                "expected system, user or assistant, for Mistral's v1 has no tools, found tool".to_owned(),
            );
        }
        let name = self.message.get("name").cloned().unwrap_or_default();
        if !name.is_null() {
            self.function_name("name", &name)?;
        }
        let id = self.message.get("tool_call_id");
        if self.version >= MistralVersion::V3 {
            self.call_id("tool_call_id", id)?;
        }
        let id = id.and_then(Value::as_str).unwrap_or_default().to_owned();
        // Version 7 writes a result as it is, earlier ones as JSON.
        let content = if self.version < MistralVersion::V7 { normalised(&content) } else { content };
        Ok(What::Tool { content, id, name })
    }

    fn calls(&self) -> Result<Vec<Value>> {
        let calls = match self.message.get("tool_calls") {
            None => return Ok(Vec::new()),
            Some(Value::Array(calls)) => calls,
            Some(other) => return self.wrong(format!("tool_calls: expected a list, found {}", brief(other))),
        };
        if self.version == MistralVersion::V1 && !calls.is_empty() {
            return self
                .wrong("tool_calls: expected none, for Mistral's v1 has no tools, found some".to_owned());
        }
        calls.iter().map(|call| self.call(call)).collect()
    }

    fn call(&self, call: &Value) -> Result<Value> {
        let function = call.get("function").and_then(Value::as_object);
        let Some(function) = function.filter(|_| call.get("type").is_none_or(|kind| kind == "function"))
        else {
            return self.wrong(format!("tool_calls: expected calls of functions, found {}", brief(call)));
        };
        let mut written = Map::new();
        let name = function.get("name").unwrap_or(&Value::Null);
        self.function_name("tool_calls: name", name)?;
        written.insert("name".to_owned(), name.clone());
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(Value::String(text)) => parsed(&normalised(text)),
            Some(Value::Object(map)) => Value::Object(map.clone()),
            Some(other) => {
                return self.wrong(format!(
                    "tool_calls: arguments: expected a text or an object, found {}",
                    brief(other)
                ));
            }
        };
        written.insert("arguments".to_owned(), arguments);
        if self.version >= MistralVersion::V3 {
            let id = call.get("id");
            self.call_id("tool_calls: id", id)?;
            written.insert("id".to_owned(), id.cloned().unwrap_or_default());
        }
        Ok(Value::Object(written))
    }

    fn function_name(&self, key: &str, name: &Value) -> Result<()> {
        match name.as_str() {
            Some(text) if is_function_name(text) => Ok(()),
            _ => self.wrong(format!("{key}: expected {FUNCTION_NAME}, found {}", brief(name))),
        }
    }

    fn call_id(&self, key: &str, id: Option<&Value>) -> Result<()> {
        match id.and_then(Value::as_str) {
            Some(text) if text.len() == 9 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) => Ok(()),
            _ => {
                let found = brief(id.unwrap_or(&Value::Null));
                self.wrong(format!("{key}: expected nine letters and digits, found {found}"))
            }
        }
    }
}

pub(super) const FUNCTION_NAME: &str = "1 to 64 letters, digits, underscores and dashes";

pub(super) fn is_function_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A JSON text in Python's spelling, and any other text as it is; no text is an empty object.
fn normalised(text: &str) -> String {
    match text {
        "" => "{}".to_owned(),
        text => serde_json::from_str(text).map_or_else(|_| text.to_owned(), |value| json::dumps(&value)),
    }
}

/// The value of a JSON text, and any other text as a text.
pub(super) fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
