//! Python's methods and Jinja's filters that the engine lacks, or has otherwise.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Most characters that `format` fills up to.
const MAX_WIDTH: usize = 10_000;

/// Adds the methods and filters.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
}

/// A method of a text, or else one that the engine's companion knows.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return match (name, value.kind()) {
            // Nothing changes a value, so that it is its own copy.
            ("copy", ValueKind::Map | ValueKind::Seq) if args.is_empty() => Ok(value.clone()),
            _ => pycompat::unknown_method_callback(state, value, name, args),
        };
    };
    match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            let found = if before.len() < text.len() { separator } else { "" };
            Ok(triple(before, found, after))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.rsplit_once(separator).unwrap_or(("", text));
            let found = if after.len() < text.len() { separator } else { "" };
            Ok(triple(before, found, after))
        }
        "rsplit" => {
            let (separator, most): (&str, Option<i64>) = from_args(args)?;
            if separator.is_empty() {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "rsplit: expected a separator, found none",
                ));
            }
            let parts = usize::try_from(most.unwrap_or(-1)).map_or(usize::MAX, |most| most.saturating_add(1));
            let mut parts: Vec<Value> = text.rsplitn(parts, separator).map(Value::from).collect();
            parts.reverse();
            Ok(parts.into())
        }
        "format" => {
            check_widths(text, args)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Refuses to fill up to a width, or write a number of digits, that no chat has: the engine's companion would take the memory.
fn check_widths(form: &str, args: &[Value]) -> Result<(), Error> {
    let wrong = || {
        let expected = format!("format: expected widths and precisions of at most {MAX_WIDTH}, found more");
        Err(Error::new(ErrorKind::InvalidOperation, expected))
    };
    let (mut depth, mut number, mut nested) = (0usize, 0usize, false);
    for character in form.chars() {
        match character {
            '{' => (depth, number) = (depth + 1, 0),
            '}' => (depth, number) = (depth.saturating_sub(1), 0),
            _ => {
                let digit = character.to_digit(10).filter(|_| depth > 0);
                number = digit.map_or(0, |digit| number.saturating_mul(10).saturating_add(digit as usize));
            }
        }
        nested |= depth > 1;
        if number > MAX_WIDTH {
            return wrong();
        }
    }
    // A width may be one of the arguments.
    let is_wide = |arg: &Value| arg.as_i64().is_none_or(|number| number > MAX_WIDTH as i64);
    if nested && args.iter().filter(|arg| arg.is_number()).any(is_wide) { wrong() } else { Ok(()) }
}

fn triple(before: &str, separator: &str, after: &str) -> Value {
    Value::from(Tuple::from([before, separator, after].map(Value::from)))
}

/// The whole number that a value or its text is, without its fraction; the default, 0, where it is none.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = named.get::<Option<Value>>("default")?.or(default).unwrap_or_else(|| 0.into());
    let base = named.get::<Option<u32>>("base")?.or(base).unwrap_or(10);
    named.assert_all_used()?;
    if !(2..=36).contains(&base) {
        return Err(Error::new(ErrorKind::InvalidOperation, "int: expected a base of 2 to 36"));
    }
    if value.is_integer() {
        return Ok(value.clone());
    }
    if let Some(text) = value.as_str() {
        let digits = text.trim();
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
        let unsigned = unsigned.strip_prefix(prefix).unwrap_or(unsigned);
        let sign = if digits.starts_with('-') { "-" } else { "" };
        if unsigned.starts_with(|first: char| first.is_ascii_alphanumeric())
            && let Ok(number) = i128::from_str_radix(&format!("{sign}{unsigned}"), base)
        {
            return Ok(number.into());
        }
    }
    // Beyond the range of whole numbers there is no fraction to cut, and no default either.
    Ok(number(value).filter(|number| number.abs() < 1e38).map_or(default, |number| (number as i128).into()))
}

/// The number that a value or its text is; the default, 0.0, where it is none.
fn float(value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = named.get::<Option<Value>>("default")?.or(default).unwrap_or_else(|| 0.0.into());
    named.assert_all_used()?;
    Ok(number(value).map_or(default, Value::from))
}

fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => value.as_str()?.trim().parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// The text of a value as HTML.
fn escape(text: String) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            other => escaped.push(other),
        }
    }
    escaped
}
