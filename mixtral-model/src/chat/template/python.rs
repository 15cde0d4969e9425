//! What templates expect of Python and of Transformers beyond Jinja.

use jiff::Zoned;
use jiff::fmt::strtime;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde_json::{Map, Number};

use crate::chat::json::{Style, dumps_as, float};

/// The most levels of a value that is written.
const MAX_DEPTH: usize = 100;

/// The most values in one that is written.
const MAX_VALUES: usize = 1 << 20;

/// The most bytes that one value is written as.
const MAX_BYTES: usize = 1 << 24;

/// Adds the functions, filters and tests.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_formatter(write);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
}

/// A value of JSON as the engine has it.
pub(super) fn value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => ().into(),
        serde_json::Value::Bool(bit) => (*bit).into(),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (_, Some(number)) => number.into(),
            _ => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        serde_json::Value::String(text) => (&**text).into(),
        serde_json::Value::Array(items) => items.iter().map(value).collect(),
        serde_json::Value::Object(map) => object(map),
    }
}

/// An object of JSON, in its order.
pub(super) fn object(map: &Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(key, entry)| (&**key, value(entry))))
}

/// The error by which a template refuses a chat.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time in the form that Python's `strftime` gives it.
fn strftime_now(form: &str) -> Result<String, Error> {
    strtime::format(form, &Zoned::now()).map_err(|error| failed(format!("strftime_now: {error}")))
}

/// In Python, what is undefined has no items, a text has its characters, and a mapping its keys.
fn is_iterable(value: &Value) -> bool {
    let is_some =
        |kind| matches!(kind, ValueKind::String | ValueKind::Map | ValueKind::Seq | ValueKind::Iterable);
    value.is_undefined() || is_some(value.kind())
}

/// In Jinja, all that has a length and items.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::String | ValueKind::Map | ValueKind::Seq)
}

/// Writes a value where the template says `{{ value }}`.
fn write(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Ok(());
    }
    if let Some(text) = value.as_str() {
        return out.write_str(text).map_err(Error::from);
    }
    if value.kind() == ValueKind::Number
        && !value.is_integer()
        && let Ok(number) = f64::try_from(value.clone())
    {
        return out.write_str(&float(number)).map_err(Error::from);
    }
    let mut bounded = Bounded { out, left: MAX_BYTES };
    std::fmt::write(&mut bounded, format_args!("{value}"))
        .map_err(|_| failed(format!("a value of over {MAX_BYTES} bytes")))
}

struct Bounded<'a, 'o> {
    out: &'a mut Output<'o>,
    left: usize,
}

impl std::fmt::Write for Bounded<'_, '_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.left = self.left.checked_sub(text.len()).ok_or(std::fmt::Error)?;
        self.out.write_str(text)
    }
}

/// Python's `json.dumps`, which unlike Jinja's own filter keeps `<`, `>`, `&` and all letters.
fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let given = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = named.get(name)?;
        Ok(named.or_else(|| positional.get(at).cloned()).filter(|value| !value.is_none()))
    };
    let ascii = given(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let mut style = Style { ascii, ..Style::default() };
    if let Some(indent) = given(1, "indent")? {
        style.indent = Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_i64().unwrap_or(0).clamp(0, 64) as usize),
        });
        style.item = ",".to_owned();
    }
    if let Some(separators) = given(2, "separators")? {
        let text = |at: usize| {
            let text = separators.get_item_by_index(at)?;
            text.as_str().map(str::to_owned).ok_or_else(|| failed("tojson: expected texts as separators"))
        };
        (style.item, style.key) = (text(0)?, text(1)?);
    }
    let sorted = given(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let mut left = Left { values: MAX_VALUES, bytes: MAX_BYTES, sorted };
    Ok(dumps_as(&left.json(value, MAX_DEPTH)?, style))
}

/// How much may still be taken over, and in which order.
struct Left {
    values: usize,
    bytes: usize,
    sorted: bool,
}

impl Left {
    fn json(&mut self, value: &Value, depth: usize) -> Result<serde_json::Value, Error> {
        let too_large = || failed("tojson: a value that is too large, or nests too deeply");
        let depth = depth.checked_sub(1).ok_or_else(too_large)?;
        self.values = self.values.checked_sub(1).ok_or_else(too_large)?;
        Ok(match value.kind() {
            ValueKind::None => serde_json::Value::Null,
            ValueKind::Bool => value.is_true().into(),
            ValueKind::Number => match (value.is_integer(), value.as_i64(), u64::try_from(value.clone())) {
                (true, Some(number), _) => number.into(),
                (true, _, Ok(number)) => number.into(),
                _ => f64::try_from(value.clone())
                    .ok()
                    .and_then(Number::from_f64)
                    .ok_or_else(|| failed(format!("tojson: {value} cannot be written")))?
                    .into(),
            },
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?.into(),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| self.json(&item, depth));
                items.collect::<Result<Vec<_>, _>>()?.into()
            }
            ValueKind::Map => {
                let mut map = Map::new();
                for key in value.try_iter()? {
                    let entry = self.json(&value.get_item(&key)?, depth)?;
                    let key = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool => key.is_true().to_string(),
                        ValueKind::Number => key.to_string(),
                        kind => return Err(failed(format!("tojson: a {kind} cannot be a key"))),
                    };
                    map.insert(self.text(&key)?, entry);
                }
                if self.sorted {
                    map.sort_keys();
                }
                map.into()
            }
            kind => return Err(failed(format!("tojson: {kind} cannot be written"))),
        })
    }

    fn text(&mut self, text: &str) -> Result<String, Error> {
        self.bytes =
            self.bytes.checked_sub(text.len()).ok_or_else(|| failed("tojson: a value that is too large"))?;
        Ok(text.to_owned())
    }
}

fn failed(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}
