//! The values of settings: their kinds, their text, and how an entry reads them.

use std::fmt;
use std::str::FromStr;

use super::RouterEntry;

/// What ends a word.
pub(super) const ENDS: [char; 5] = ['(', ')', ':', ',', '='];

/// What a setting may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A whole number.
    Whole,
    /// A whole number that is at most this.
    UpTo(u64),
    /// A number, kept as f64.
    Number,
    /// A number, kept as f32.
    Single,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of f32 numbers.
    Singles,
    /// A list of whole numbers below 2³².
    Wholes,
    /// The path of a file, bare or between quotation marks.
    Path,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Number(f64),
    Single(f32),
    Word(&'static str),
    Singles(Vec<f32>),
    Wholes(Vec<u32>),
    Path(String),
}

impl Kind {
    /// The value of a text, or what was expected and which piece of the text is something else.
    pub(super) fn parse(self, text: &str) -> Result<Value, (String, &str)> {
        let wrong = |expected: &str| (expected.to_owned(), text);
        match self {
            Self::Whole => whole(text).map(Value::Whole).ok_or_else(|| wrong("a whole number")),
            Self::UpTo(most) => whole(text)
                .filter(|n| *n <= most)
                .map(Value::Whole)
                .ok_or_else(|| wrong(&format!("a whole number, at most {most}"))),
            Self::Number => number(text, f64::is_nan, f64::is_infinite)
                .map(Value::Number)
                .ok_or_else(|| wrong("a number")),
            Self::Single => single(text).map(Value::Single).ok_or_else(|| wrong("a number of f32")),
            Self::Word(words) => {
                let word = words.iter().find(|&&word| word == text);
                word.map(|word| Value::Word(word)).ok_or_else(|| (one_of(words), text))
            }
            Self::Singles => list(text, "a number of f32", single).map(Value::Singles),
            Self::Wholes => list(text, "a whole number below 4294967296", whole).map(Value::Wholes),
            Self::Path => match text.strip_prefix('"') {
                Some(rest) => rest.strip_suffix('"'),
                None => Some(text),
            }
            .filter(|path| !path.is_empty() && !path.contains(['"', '\0']))
            .map(|path| Value::Path(path.to_owned()))
            .ok_or_else(|| wrong("a path, in quotation marks where it has any of ( ) : , =")),
        }
    }

    /// What the catalogue calls it.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Whole => "whole number".into(),
            Self::UpTo(most) => format!("whole number, at most {most}"),
            Self::Number | Self::Single => "number".into(),
            Self::Word(words) => words.join("|"),
            Self::Singles => "[numbers]".into(),
            Self::Wholes => "[whole numbers]".into(),
            Self::Path => "path".into(),
        }
    }
}

/// "one of a, b, c".
pub(super) fn one_of(names: &[&str]) -> String {
    match names {
        [name] => (*name).to_owned(),
        _ => format!("one of {}", names.join(", ")),
    }
}

/// Digits alone: no sign, which `u64` would take.
fn whole<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

fn single(text: &str) -> Option<f32> {
    number(text, f32::is_nan, f32::is_infinite)
}

/// A number other than NaN, infinite only if it is written so.
fn number<T: FromStr + Copy>(text: &str, is_nan: fn(T) -> bool, is_infinite: fn(T) -> bool) -> Option<T> {
    let written = matches!(text.trim_start_matches(['+', '-']), "inf" | "infinity");
    text.parse().ok().filter(|&v| !is_nan(v) && (written || !is_infinite(v)))
}

fn list<'t, T>(text: &'t str, item: &str, parse: fn(&str) -> Option<T>) -> Result<Vec<T>, (String, &'t str)> {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let inside = inside.ok_or_else(|| ("a list in square brackets".to_owned(), text))?;
    if inside.trim().is_empty() {
        return Ok(vec![]);
    }
    let items = inside.split(',').map(str::trim);
    items.map(|text| parse(text).ok_or_else(|| (item.to_owned(), text))).collect()
}

impl fmt::Display for Value {
    /// `Debug` of a number is the shortest text that reads back to it, with an exponent where it is far from 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Debug>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
            f.write_str("[")?;
            for (i, item) in items.iter().enumerate() {
                write!(f, "{}{item:?}", if i == 0 { "" } else { "," })?;
            }
            f.write_str("]")
        }
        match self {
            Self::Whole(n) => write!(f, "{n}"),
            Self::Number(x) => write!(f, "{x:?}"),
            Self::Single(x) => write!(f, "{x:?}"),
            Self::Word(word) => f.write_str(word),
            Self::Singles(list_) => list(f, list_),
            Self::Wholes(list_) => list(f, list_),
            // What stands around specs of several layers does not end a word, but would end the spec.
            Self::Path(path)
                if path.contains(ENDS) || path.contains([';', '@', '[']) || path.trim() != path =>
            {
                write!(f, "\"{path}\"")
            }
            Self::Path(path) => f.write_str(path),
        }
    }
}

/// The settings of one router, as its constructor reads them: given, or as by default.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    pub(super) entry: &'static RouterEntry,
    pub(super) values: &'a [Option<Value>],
}

impl Settings<'_> {
    /// The value, or the default; none if there is neither.
    ///
    /// # Panics
    ///
    /// If the entry has no such setting: a mistake in the catalogue, which building every example finds.
    #[track_caller]
    fn get(&self, name: &str) -> Option<Value> {
        let Some(i) = self.entry.settings.iter().position(|s| s.name == name) else {
            panic!("{} has no setting {name}", self.entry.name)
        };
        self.values[i].clone().or_else(|| self.entry.settings[i].default_value())
    }

    /// Whether it was given.
    #[track_caller]
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    #[track_caller]
    pub(super) fn whole(&self, name: &str) -> usize {
        usize::try_from(self.seed(name)).unwrap_or(usize::MAX)
    }

    #[track_caller]
    pub(super) fn seed(&self, name: &str) -> u64 {
        match self.get(name) {
            Some(Value::Whole(n)) => n,
            other => self.mistaken(name, other),
        }
    }

    #[track_caller]
    pub(super) fn number(&self, name: &str) -> f64 {
        match self.get(name) {
            Some(Value::Number(x)) => x,
            other => self.mistaken(name, other),
        }
    }

    #[track_caller]
    pub(super) fn single(&self, name: &str) -> f32 {
        match self.get(name) {
            Some(Value::Single(x)) => x,
            other => self.mistaken(name, other),
        }
    }

    #[track_caller]
    pub(super) fn word(&self, name: &str) -> &'static str {
        match self.get(name) {
            Some(Value::Word(word)) => word,
            other => self.mistaken(name, other),
        }
    }

    /// The list; empty if there is none.
    #[track_caller]
    pub(super) fn singles(&self, name: &str) -> Vec<f32> {
        match self.get(name) {
            Some(Value::Singles(list)) => list,
            None => vec![],
            other => self.mistaken(name, other),
        }
    }

    #[track_caller]
    pub(super) fn wholes(&self, name: &str) -> Vec<u32> {
        match self.get(name) {
            Some(Value::Wholes(list)) => list,
            None => vec![],
            other => self.mistaken(name, other),
        }
    }

    #[track_caller]
    pub(super) fn path(&self, name: &str) -> String {
        match self.get(name) {
            Some(Value::Path(path)) => path,
            other => self.mistaken(name, other),
        }
    }

    #[track_caller]
    fn mistaken(&self, name: &str, found: Option<Value>) -> ! {
        panic!("{}: {name} is of another kind: {found:?}", self.entry.name)
    }
}
