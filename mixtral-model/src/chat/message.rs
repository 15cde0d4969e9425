//! What a chat consists of, as chat clients write it in JSON.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::input::brief;
use crate::{Error, Result};

/// One message of a chat: a JSON object with at least a `role`, as `{"role": "user", "content": "Hello"}`.
///
/// The object is kept as it is, in its order, for a model's template may look at any of its keys. Those in common use:
///
/// | key | |
/// |---|---|
/// | `role` | who speaks: `system`, `user`, `assistant` (the model), `tool`; a template may know others |
/// | `content` | what is said: a text, or a list of parts `{"type": "text", "text": "..."}` |
/// | `tool_calls` | calls that the assistant makes: `[{"id", "type": "function", "function": {"name", "arguments"}}]` |
/// | `tool_call_id`, `name` | which call a `tool` message answers |
/// | `prefix` | `true` in a last message of the assistant: the beginning of an answer that the model is to continue |
///
/// A key whose value is null counts as absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, content: &str) -> Self {
        let entry = |key: &str, text: &str| (key.to_owned(), Value::from(text));
        Self([entry("role", role), entry("content", content)].into_iter().collect())
    }

    /// Instructions for the whole chat.
    pub fn system(content: &str) -> Self {
        Self::new("system", content)
    }

    /// What the person says who asks.
    pub fn user(content: &str) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    pub fn assistant(content: &str) -> Self {
        Self::new("assistant", content)
    }

    /// Takes an object that somebody else wrote.
    ///
    /// # Errors
    ///
    /// A text that says what is wrong: no `role`, a `role` that is no text, a `content` that is neither a text nor a list of
    /// objects, a `prefix` that is not true or false.
    pub fn from_json(value: Value) -> std::result::Result<Self, String> {
        let Value::Object(mut map) = value else {
            return Err(format!("expected an object with role and content, found {}", brief(&value)));
        };
        map.retain(|_, value| !value.is_null());
        let wrong = |key: &str, expected: &str, found: &Value| {
            Err(format!("{key}: expected {expected}, found {}", brief(found)))
        };
        match map.get("role") {
            Some(Value::String(_)) => {}
            other => return wrong("role", "a text", other.unwrap_or(&Value::Null)),
        }
        match map.get("content") {
            None | Some(Value::String(_)) => {}
            Some(Value::Array(parts)) if parts.iter().all(Value::is_object) => {}
            Some(other) => return wrong("content", "a text or a list of parts", other),
        }
        match map.get("prefix") {
            None | Some(Value::Bool(_)) => {}
            Some(other) => return wrong("prefix", "true or false", other),
        }
        Ok(Self(map))
    }

    /// Who speaks.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All keys and values, in the order they were written.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Whether the model is to continue this message.
    pub fn is_prefix(&self) -> bool {
        self.get("prefix").and_then(Value::as_bool).unwrap_or_default()
    }

    /// The texts of the content: one, or that of each part.
    ///
    /// The error is a part that is no text.
    pub(super) fn texts(&self) -> std::result::Result<Vec<&str>, &Value> {
        match self.get("content") {
            None => Ok(Vec::new()),
            Some(Value::Array(parts)) => parts
                .iter()
                .map(|part| match (part.get("type").and_then(Value::as_str), part.get("text")) {
                    (Some("text"), Some(Value::String(text))) => Ok(&**text),
                    _ => Err(part),
                })
                .collect(),
            Some(text) => text.as_str().map(|text| vec![text]).ok_or(text),
        }
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::from_json(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What is to be written in a chat format: messages, and what the model may use to answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chat {
    /// What was said, in order.
    pub messages: Vec<Message>,
    /// Functions that the model may call: `[{"type": "function", "function": {"name", "description", "parameters"}}]`.
    pub tools: Vec<Value>,
    /// Texts that the model may look things up in. Only templates may have a place for them.
    pub documents: Vec<Value>,
    /// Further variables of a template, such as `enable_thinking`. Only templates know any.
    pub variables: Map<String, Value>,
}

impl Chat {
    /// A chat of these messages alone.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// The same with functions that the model may call.
    pub fn with_tools(self, tools: Vec<Value>) -> Self {
        Self { tools, ..self }
    }

    /// Takes a list of messages, or an object with `messages` and, where wanted, `tools`, `documents` and
    /// `chat_template_kwargs`, the further variables of a template.
    ///
    /// # Errors
    ///
    /// [`Error::Chat`] for a message that is none, [`Error::Setting`] for another key and for values of a wrong type.
    pub fn from_json(value: Value) -> Result<Self> {
        let mut chat = Self::default();
        let messages = match value {
            Value::Object(mut map) => {
                let mut list = |key: &str| match map.shift_remove(key) {
                    None | Some(Value::Null) => Ok(Vec::new()),
                    Some(Value::Array(items)) if items.iter().all(Value::is_object) => Ok(items),
                    Some(other) => Err(wrong(format!("{key} to be a list of objects"), &other)),
                };
                (chat.tools, chat.documents) = (list("tools")?, list("documents")?);
                match map.shift_remove("chat_template_kwargs") {
                    None | Some(Value::Null) => {}
                    Some(Value::Object(variables)) => chat.variables = variables,
                    Some(other) => return Err(wrong("chat_template_kwargs to be an object", &other)),
                }
                let messages = map.shift_remove("messages").unwrap_or_default();
                if let Some(key) = map.keys().next() {
                    let expected = "messages, tools, documents or chat_template_kwargs";
                    return Err(wrong(expected, &Value::from(&**key)));
                }
                messages
            }
            list => list,
        };
        let Value::Array(messages) = messages else {
            return Err(wrong("a list of messages, or an object with such a list as messages", &messages));
        };
        for (index, message) in messages.into_iter().enumerate() {
            chat.messages.push(Message::from_json(message).map_err(|reason| Error::Chat { index, reason })?);
        }
        Ok(chat)
    }
}

fn wrong(expected: impl Into<String>, found: &Value) -> Error {
    Error::Setting { setting: "chat", expected: expected.into(), found: brief(found) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chat_is_a_list_or_an_object() {
        let list = json!([{"role": "user", "content": "a"}]);
        let chat = Chat::from_json(list.clone()).unwrap();
        assert_eq!(chat, Chat::new(vec![Message::user("a")]));
        let object = json!({"messages": list, "tools": null, "chat_template_kwargs": {"x": 1}});
        let chat = Chat::from_json(object).unwrap();
        assert_eq!((chat.messages.len(), chat.tools.len(), chat.variables["x"].as_i64()), (1, 0, Some(1)));
        let chat = Chat::from_json(json!({"messages": [], "tools": [{}]})).unwrap();
        assert_eq!(chat.tools, [json!({})]);
    }

    #[test]
    fn what_is_no_chat() {
        for (value, message) in [
            (
                json!("hi"),
                "chat: expected a list of messages, or an object with such a list as messages, found \"hi\"",
            ),
            (
                json!({}),
                "chat: expected a list of messages, or an object with such a list as messages, found null",
            ),
            (
                json!({"messages": [], "tool": []}),
                "chat: expected messages, tools, documents or chat_template_kwargs, found \"tool\"",
            ),
            (
                json!({"messages": [], "tools": [1]}),
                "chat: expected tools to be a list of objects, found [1]",
            ),
            (json!(["hi"]), "chat message 0: expected an object with role and content, found \"hi\""),
            (
                json!([{"role": "user"}, {"content": "x"}]),
                "chat message 1: role: expected a text, found null",
            ),
            (
                json!([{"role": "user", "content": 1}]),
                "chat message 0: content: expected a text or a list of parts, found 1",
            ),
            (
                json!([{"role": "user", "content": ["a"]}]),
                "chat message 0: content: expected a text or a list of parts, found [\"a\"]",
            ),
            (
                json!([{"role": "assistant", "content": "a", "prefix": 1}]),
                "chat message 0: prefix: expected true or false, found 1",
            ),
        ] {
            assert_eq!(Chat::from_json(value.clone()).unwrap_err().to_string(), message, "{value}");
        }
    }

    #[test]
    fn null_is_absent() {
        let message: Message =
            serde_json::from_value(json!({"content": null, "role": "assistant", "tool_calls": []})).unwrap();
        assert_eq!(serde_json::to_string(&message).unwrap(), r#"{"role":"assistant","tool_calls":[]}"#);
    }
}
