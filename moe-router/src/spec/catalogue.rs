//! What the catalogue says of a router. The entries are in `strategies`, `scored` and `decorators`.

use std::fmt;

use moe_core::{Error, Result, Router};

use super::settings::{Kind, Settings, Value};
use super::{decorators, scored, strategies};
use crate::{Capacity, Rounding};

/// One router of the catalogue: all that parsing, printing, listing and building know of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct RouterEntry {
    /// What a spec calls it.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Where it is from: a paper's arXiv number or a model.
    pub paper: &'static str,
    /// What a token's experts depend on: `token`, `causal`, `batch`, or `inner` for whatever the inner router's do.
    /// Settings that change it come after a semicolon.
    pub locality: &'static str,
    /// Whether a requested expert may turn a token away.
    pub may_drop: bool,
    /// Whether it has another router in brackets.
    pub decorates: bool,
    /// The constructor behind it, in Rust.
    pub constructor: &'static str,
    /// A spec that can be built.
    pub example: &'static str,
    /// Its settings, in the order in which they are printed.
    pub settings: &'static [Setting],
    pub(super) build: Build,
}

/// Makes a router of its settings and the router in brackets.
pub(super) type Build = fn(Settings<'_>, Option<Box<dyn Router>>) -> Result<Box<dyn Router>>;

impl PartialEq for RouterEntry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A setting of a router.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Setting {
    /// Its key.
    pub name: &'static str,
    /// What it means.
    pub about: &'static str,
    pub(super) kind: Kind,
    default: Default,
    only: Option<Condition>,
}

/// Other settings without which a setting would do nothing, in words and as a test.
type Condition = (&'static str, fn(Settings<'_>) -> bool);

#[derive(Clone, Copy, Debug)]
enum Default {
    Required,
    Absent,
    Text(&'static str),
}

impl Setting {
    /// One that must be given.
    pub(super) const fn required(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, about, kind, default: Default::Required, only: None }
    }

    /// One that may be left out, and is then not there.
    pub(super) const fn optional(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, about, kind, default: Default::Absent, only: None }
    }

    /// One with a value if it is left out.
    pub(super) const fn or(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        about: &'static str,
    ) -> Self {
        Self { name, about, kind, default: Default::Text(default), only: None }
    }

    /// The same, refused where it would do nothing; `when` completes "only".
    pub(super) const fn only(self, when: &'static str, holds: fn(Settings<'_>) -> bool) -> Self {
        Self { only: Some((when, holds)), ..self }
    }

    /// Beside which other settings it may be given, if not beside any: `with divide=norm`, `without places`.
    pub fn condition(&self) -> Option<&'static str> {
        self.only.map(|(when, _)| when)
    }

    /// Whether it does something beside these.
    pub(super) fn applies(&self, settings: Settings<'_>) -> bool {
        self.only.is_none_or(|(_, holds)| holds(settings))
    }

    /// Whether it must be given.
    pub fn is_required(&self) -> bool {
        matches!(self.default, Default::Required)
    }

    /// What it is if it is left out, as text.
    pub fn default(&self) -> Option<&'static str> {
        match self.default {
            Default::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What it may be: `number`, `whole number`, perhaps with its limit, the words with bars between.
    pub fn values(&self) -> String {
        self.kind.describe()
    }

    pub(super) fn default_value(&self) -> Option<Value> {
        self.kind.parse(self.default()?).ok()
    }
}

impl fmt::Display for Setting {
    /// As a spec has it: `k=<whole number>`, `scale=1.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.default {
            Default::Required => write!(f, "{}=<{}>", self.name, self.values()),
            Default::Absent => write!(f, "[{}=<{}>]", self.name, self.values()),
            Default::Text(text) => write!(f, "[{}={text}]", self.name),
        }
    }
}

pub(super) fn entries() -> impl Iterator<Item = &'static RouterEntry> {
    strategies::ENTRIES.iter().chain(scored::ENTRIES).chain(decorators::ENTRIES)
}

pub(super) const K: Setting = Setting::required("k", Kind::Whole, "choices a token");
pub(super) const BIAS: Setting =
    Setting::optional("bias", Kind::Singles, "added to the scores that are chosen by, one an expert");
pub(super) const SCALE: Setting = Setting::or("scale", Kind::Single, "1.0", "multiplies all weights");
pub(super) const PLACES: Setting =
    Setting::optional("places", Kind::Whole, "the places of an expert, in place of a factor");
pub(super) const ROUNDING: Setting =
    Setting::or("rounding", Kind::Word(&["up", "down", "half-even"]), "up", "of fractional places")
        .only("without places", |s| !s.has("places"));
pub(super) const LEAST: Setting = Setting::or("min", Kind::Whole, "0", "fewest places of an expert");
pub(super) const MULTIPLE: Setting =
    Setting::or("multiple", Kind::Whole, "1", "what places are rounded up to a multiple of");

/// The capacity of an entry with [`PLACES`], [`ROUNDING`], [`LEAST`], [`MULTIPLE`] and a factor of this name.
pub(super) fn capacity(settings: Settings<'_>, name: &str, of: fn(f64) -> Capacity) -> Result<Capacity> {
    let capacity = match (settings.has(name), settings.has("places")) {
        (true, false) => of(settings.number(name)),
        (false, true) => Capacity::absolute(settings.whole("places")),
        (both, _) => {
            let found = if both { "both" } else { "neither" };
            let expected = format!("one of {name}, places");
            return Err(Error::Router { setting: "capacity", expected, found: found.into() });
        }
    };
    let rounding = match settings.word("rounding") {
        "down" => Rounding::Down,
        "half-even" => Rounding::HalfEven,
        _ => Rounding::Up,
    };
    let capacity = capacity.rounded(rounding).at_least(settings.whole("min"));
    Ok(capacity.multiple_of(settings.whole("multiple")))
}
