//! The fields of a request's body: each is taken by name and type, and none is left over.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::fault::Fault;

/// What OpenAI's API has, and this server does not do.
const NOT_DONE: [&str; 22] = [
    "audio",
    "best_of",
    "frequency_penalty",
    "function_call",
    "functions",
    "metadata",
    "modalities",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning_effort",
    "response_format",
    "service_tier",
    "store",
    "suffix",
    "tool_choice",
    "tools",
    "top_logprobs",
    "verbosity",
    "web_search_options",
    "guided_json",
];

/// The fields of a body that are yet to be taken.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Those of a body, which must be a JSON object. A null counts as absent.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Fault> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut map)) => {
                map.retain(|_, value| !value.is_null());
                Ok(Self(map))
            }
            Ok(other) => Err(Fault::bad(format!("expected a JSON object, found {}", brief(&other)))),
            Err(error) => Err(Fault::bad(format!("expected a JSON object: {error}"))),
        }
    }

    /// Those of a field that is an object itself.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map))),
            Some(other) => Err(wrong(name, "an object", &other)),
        }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a text", &other)),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Fault> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    pub(crate) fn whole(&mut self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let number = number.filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| wrong(name, &expected, &value))
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f32>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| wrong(name, "a number", &value))
    }

    /// Any whole number of 64 bits, with or without a sign.
    pub(crate) fn seed(&mut self) -> Result<Option<u64>, Fault> {
        let Some(value) = self.take("seed") else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        seed.map(Some).ok_or_else(|| wrong("seed", "a whole number of 64 bits", &value))
    }

    /// A field of which only one value is done, the one that changes nothing.
    pub(crate) fn only(&mut self, name: &'static str, done: &Value) -> Result<(), Fault> {
        match self.take(name) {
            Some(value) if value != *done && value.as_f64() != done.as_f64().or(Some(f64::NAN)) => {
                Err(unsupported(name, &format!("anything but {done}")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is left, by name.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) if NOT_DONE.contains(&&**name) => Err(unsupported(name, "it here")),
            Some(name) => {
                let shown: String = name.chars().take(100).collect();
                Err(Fault::bad(format!("unknown field {shown:?}")).of(name).code("unknown_parameter"))
            }
        }
    }
}

fn unsupported(name: &str, what: &str) -> Fault {
    Fault::field(name, format!("this server does not do {what}")).code("unsupported_parameter")
}

/// A value that is not what was expected.
pub(crate) fn wrong(name: &str, expected: &str, found: &Value) -> Fault {
    Fault::field(name, format!("expected {expected}, found {}", brief(found))).code("invalid_value")
}

/// A value for a message: the kind of what may be long.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.len() > 40 => "a text".to_owned(),
        other => other.to_string(),
    }
}
