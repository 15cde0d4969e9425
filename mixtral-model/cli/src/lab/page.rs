//! A page of what a comparison found.

use minijinja::{AutoEscape, Environment, Value, context};

use super::table::{TIME, Table};
use crate::failure::Result;

/// The page, but for what fills it.
const TEMPLATE: &str = include_str!("page.html");

/// What fills a page.
pub(super) struct Page<'a> {
    pub(super) model: String,
    pub(super) digest: String,
    pub(super) text: String,
    /// What was typed after the name of the program.
    pub(super) command: Vec<String>,
    pub(super) table: &'a Table,
    pub(super) pictures: &'a [Picture],
}

pub(super) struct Picture {
    pub(super) file: &'static str,
    pub(super) caption: &'static str,
    pub(super) svg: String,
}

impl Page<'_> {
    /// The page, which needs no other file. Nothing in it depends on the machine or the time.
    pub(super) fn html(&self) -> Result<String> {
        let Self { model, digest, text, command, table, pictures } = self;
        let mut lines = table.lines();
        if let Some(time) = lines.first().and_then(|heads| heads.iter().position(|head| head == TIME)) {
            lines.iter_mut().for_each(|line| drop(line.remove(time)));
        }
        let mut lines = lines.into_iter().map(|line| line.into_iter().collect::<Value>());
        let (heads, rows) = (lines.next(), lines.collect::<Value>());
        let picture = |picture: &Picture| {
            let Picture { file, caption, svg } = picture;
            context! { file => *file, caption => *caption, svg => Value::from_safe_string(svg.clone()) }
        };
        let pictures: Value = pictures.iter().map(picture).collect();
        let notes: Value = table.notes().into_iter().collect();
        let command: Vec<_> = command.iter().map(|word| quoted(word)).collect();
        let mut templates = Environment::new();
        templates.set_auto_escape_callback(|_| AutoEscape::Html);
        let version = env!("CARGO_PKG_VERSION");
        let html = templates.render_str(
            TEMPLATE,
            context! {
                model => &**model, digest => &**digest, text => &**text, command => command.join(" "), version,
                read => table.read(), heads, rows, notes, pictures,
            },
        );
        Ok(html.map_err(std::io::Error::other)?)
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_command_can_be_typed_again() {
        assert_eq!(quoted("capped(top-k:k=2)"), "'capped(top-k:k=2)'");
        assert_eq!(
            (quoted("top-k:k=1"), quoted(""), quoted("it's")),
            ("top-k:k=1".into(), "''".into(), "'it'\\''s'".into())
        );
    }
}
