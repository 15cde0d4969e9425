//! From text to spec, left to right, without backing up.

use std::ops::Range;
use std::str::FromStr;

use moe_core::Error;

use super::settings::{ENDS, Settings, Value, one_of};
use super::{RouterEntry, RouterSpec, SpecError, catalogue};
use crate::Dense;

/// Routers in each other. Papers stack three.
const DEPTH: usize = 16;

impl FromStr for RouterSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parser = Parser { text, at: 0 };
        let spec = parser.spec(1)?;
        match parser.rest() {
            "" => Ok(spec),
            _ => Err(parser.unexpected("the end")),
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn spec(&mut self, depth: usize) -> Result<RouterSpec, SpecError> {
        self.spaces();
        let start = self.at;
        let name = self.word();
        let Some(entry) = catalogue::entries().find(|entry| entry.name == name) else {
            let names: Vec<&str> = catalogue::entries().map(|entry| entry.name).collect();
            self.at = start;
            return Err(match name {
                "" => self.unexpected(&format!("the name of a router, {}", one_of(&names))),
                _ => SpecError::new(start, one_of(&names), quote(name)),
            });
        };
        let inner = if entry.decorates { Some(Box::new(self.inner(depth)?)) } else { None };
        let mut spec = RouterSpec { entry, values: vec![None; entry.settings.len()], inner };
        self.settings(&mut spec)?;
        // The inner router has been checked; any will do in its place.
        let inner = spec.inner.as_ref().map(|_| Box::new(Dense::new()) as Box<_>);
        match spec.build_around(inner) {
            Ok(_) => Ok(spec),
            Err(Error::Router { setting, expected, found }) => {
                Err(SpecError::new(start, format!("{expected} ({setting})"), found))
            }
            Err(other) => Err(SpecError::new(start, format!("valid settings of {name}"), other.to_string())),
        }
    }

    fn inner(&mut self, depth: usize) -> Result<RouterSpec, SpecError> {
        if !self.take('(') {
            return Err(self.unexpected("\"(\" and another router"));
        }
        if depth == DEPTH {
            let expected = format!("at most {DEPTH} routers in each other");
            return Err(SpecError::new(self.at, expected, "more"));
        }
        let spec = self.spec(depth + 1)?;
        if !self.take(')') {
            return Err(self.unexpected("\")\""));
        }
        Ok(spec)
    }

    fn settings(&mut self, spec: &mut RouterSpec) -> Result<(), SpecError> {
        let entry = spec.entry;
        // Where each setting begins and ends, if it is there.
        let mut given: Vec<Option<Range<usize>>> = vec![None; entry.settings.len()];
        let mut more = self.take(':');
        while more {
            self.spaces();
            let start = self.at;
            let (i, value) = self.setting(entry, &given)?;
            given[i] = Some(start..self.at);
            spec.values[i] =
                Some(value).filter(|value| entry.settings[i].default_value().as_ref() != Some(value));
            more = self.take(',');
        }
        let missing = entry
            .settings
            .iter()
            .zip(&given)
            .find(|(setting, given)| setting.is_required() && given.is_none());
        if let Some((setting, _)) = missing {
            return Err(self.unexpected(&format!("the setting {setting} of {}", entry.name)));
        }
        // One that is as by default does what it would do anyway.
        let settings = Settings { entry, values: &spec.values };
        for ((setting, given), value) in entry.settings.iter().zip(given).zip(&spec.values) {
            if let (Some(given), Some(_), false) = (given, value, setting.applies(settings)) {
                let when = setting.condition().unwrap_or_default();
                let expected = format!("{} only {when}", setting.name);
                return Err(SpecError::new(given.start, expected, quote(&self.text[given])));
            }
        }
        Ok(())
    }

    fn setting(
        &mut self,
        entry: &RouterEntry,
        given: &[Option<Range<usize>>],
    ) -> Result<(usize, Value), SpecError> {
        let start = self.at;
        let name = self.word();
        let Some(i) = entry.settings.iter().position(|setting| setting.name == name) else {
            let names: Vec<&str> = entry.settings.iter().map(|setting| setting.name).collect();
            let expected =
                if names.is_empty() { format!("no settings of {}", entry.name) } else { one_of(&names) };
            self.at = start;
            return Err(match name {
                "" => self.unexpected(&expected),
                _ => SpecError::new(start, expected, quote(name)),
            });
        };
        if given[i].is_some() {
            return Err(SpecError::new(start, "each setting once", format!("{name} again")));
        }
        if !self.take('=') {
            return Err(self.unexpected("\"=\" and a value"));
        }
        self.spaces();
        // A list and a path in quotation marks go on to their end; one that has none ends as a word does.
        let rest = self.rest();
        let end = match rest.chars().next() {
            Some('[') => rest.find(']'),
            Some('"') => rest[1..].find('"').map(|end| end + 1),
            _ => None,
        };
        let text = match end {
            Some(end) => {
                self.at += end + 1;
                &rest[..=end]
            }
            None => self.word(),
        };
        match entry.settings[i].kind.parse(text) {
            Ok(value) => Ok((i, value)),
            Err((expected, "")) if text.is_empty() => Err(self.unexpected(&expected)),
            Err((expected, part)) => {
                // The part is a piece of the text.
                let at = part.as_ptr() as usize - self.text.as_ptr() as usize;
                Err(SpecError::new(at, expected, quote(part)))
            }
        }
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn spaces(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take(&mut self, c: char) -> bool {
        self.spaces();
        let found = self.rest().starts_with(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found
    }

    /// Everything before what ends a word, without spaces at its end.
    fn word(&mut self) -> &'t str {
        let rest = self.rest();
        let word = rest[..rest.find(ENDS).unwrap_or(rest.len())].trim_end();
        self.at += word.len();
        word
    }

    fn unexpected(&self, expected: &str) -> SpecError {
        let rest = self.rest().trim_start();
        let at = self.text.len() - rest.len();
        let found = if rest.is_empty() { "the end".to_owned() } else { quote(rest) };
        SpecError::new(at, expected, found)
    }
}

/// The text in quotation marks, shortened.
fn quote(text: &str) -> String {
    const LONGEST: usize = 24;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
