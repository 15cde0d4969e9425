//! The routers there are.

use std::fmt::Write as _;

use moe_router::{RouterEntry, RouterSpec, Setting};
use serde::Serialize;

use crate::failure::Result;

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    about: &'static str,
    paper: &'static str,
    locality: &'static str,
    may_drop: bool,
    decorates: bool,
    example: &'static str,
    settings: Vec<ListedSetting>,
}

#[derive(Serialize)]
struct ListedSetting {
    name: &'static str,
    about: &'static str,
    values: String,
    required: bool,
    default: Option<&'static str>,
    only: Option<&'static str>,
}

impl From<&RouterEntry> for Listed {
    fn from(entry: &RouterEntry) -> Self {
        let &RouterEntry { name, about, paper, locality, may_drop, decorates, example, .. } = entry;
        let setting = |s: &Setting| ListedSetting {
            name: s.name,
            about: s.about,
            values: s.values(),
            required: s.is_required(),
            default: s.default(),
            only: s.condition(),
        };
        let settings = entry.settings.iter().map(setting).collect();
        Self { name, about, paper, locality, may_drop, decorates, example, settings }
    }
}

/// The catalogue, as JSON or to be read.
pub(super) fn text(json: bool) -> Result<String> {
    if json {
        let list: Vec<Listed> = RouterSpec::catalogue().map(Listed::from).collect();
        return Ok(serde_json::to_string_pretty(&list).map_err(std::io::Error::other)? + "\n");
    }
    let mut text =
        String::from("A router is name:setting=value,...; a decorator is name(router):setting=value,...\n");
    for (heading, decorates) in [("Routers", false), ("Decorators", true)] {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{heading}\n");
        for entry in RouterSpec::catalogue().filter(|entry| entry.decorates == decorates) {
            write_entry(&mut text, entry);
        }
    }
    Ok(text)
}

fn write_entry(text: &mut String, entry: &RouterEntry) {
    let drops = if entry.may_drop { "; may drop" } else { "" };
    let paper = if entry.paper.is_empty() { "no paper" } else { entry.paper };
    let _ = write!(text, "\n  {}  {}\n", entry.name, entry.about);
    let _ = writeln!(text, "      {}", entry.example);
    let _ = writeln!(text, "      {paper}; locality: {}{drops}", entry.locality);
    for setting in entry.settings {
        let kind = setting.default().map_or_else(
            || if setting.is_required() { "required".to_owned() } else { "none by default".to_owned() },
            |default| format!("{default} by default"),
        );
        let only = setting.condition().map(|when| format!("; only {when}")).unwrap_or_default();
        let (name, about, values) = (setting.name, setting.about, setting.values());
        let _ = writeln!(text, "      {name:<12} {about} ({values}, {kind}{only})");
    }
}
