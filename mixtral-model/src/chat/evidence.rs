//! What the files of a model say about its chat format.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::input::{brief, json_object, read_limited};
use crate::{Error, Result};

/// No template is longer; those in use are below 100 KB.
pub(super) const MAX_TEMPLATE_BYTES: u64 = 1 << 18;

/// No `tokenizer_config.json` is longer, though some list a hundred thousand tokens.
const MAX_CONFIG_BYTES: u64 = 1 << 26;

/// The most templates of one model.
const MAX_TEMPLATES: usize = 64;

/// A chat template, in the language of Jinja.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// `default`, or what it is for, such as `tool_use`.
    pub name: String,
    /// The template.
    pub text: String,
    /// Where it is from, for messages, such as `tokenizer_config.json: chat_template`.
    pub origin: String,
}

/// All that tells how a model writes chats; empty for a model that says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChatEvidence {
    /// The model's templates.
    pub templates: Vec<Template>,
    /// Special tokens by the name under which templates know them, as `eos_token`.
    pub special_tokens: BTreeMap<String, String>,
    /// Which of Mistral's formats a `tekken.json` is for, such as `v3`.
    pub version: Option<String>,
}

impl ChatEvidence {
    /// The evidence of these templates.
    pub fn new(templates: Vec<Template>) -> Self {
        Self { templates, ..Self::default() }
    }

    /// Reads what a model directory says.
    ///
    /// As in Transformers, `chat_template.jinja`, with `additional_chat_templates/*.jinja` beside it, comes before
    /// `chat_template` of `tokenizer_config.json`, a text or a list of `{"name", "template"}`. Where neither is there,
    /// `chat_template.json` counts, which older processors wrote. Where there is none at all, `tekken.json` says which of Mistral's
    /// formats it is for.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Checkpoint`] and [`Error::Json`] for a file that cannot be read, is no regular file, is too long
    /// or no JSON object; [`Error::Config`] for a template or a special token that is no text.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let mut evidence = Self::default();
        let path = dir.join("tokenizer_config.json");
        let config = object(&path)?.unwrap_or_default();
        for (key, value) in &config {
            if let Some(text) = special_token(&path, key, value)? {
                evidence.special_tokens.insert(key.clone(), text);
            }
        }
        evidence.templates = files(dir)?;
        if evidence.templates.is_empty() {
            evidence.templates = templates(&path, &config)?;
        }
        if evidence.templates.is_empty() {
            let path = dir.join("chat_template.json");
            evidence.templates = templates(&path, &object(&path)?.unwrap_or_default())?;
        }
        if evidence.templates.is_empty() {
            evidence.version = version(&dir.join("tekken.json"))?;
        }
        Ok(evidence)
    }

    /// The template of a name.
    pub(super) fn template(&self, name: &str) -> Option<&Template> {
        self.templates.iter().find(|template| template.name == name)
    }
}

impl Template {
    /// Reads a template from a file of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Checkpoint`] if it cannot be read, is no regular file, too long or not UTF-8.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = read_limited(path, MAX_TEMPLATE_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::checkpoint(path, "UTF-8", format!("another byte at offset {at}"))
        })?;
        Ok(Self { name: "default".to_owned(), text, origin: path.display().to_string() })
    }
}

/// The templates that have files of their own.
fn files(dir: &Path) -> Result<Vec<Template>> {
    let mut templates = Vec::new();
    let path = dir.join("chat_template.jinja");
    if is_there(&path) {
        let template = Template::from_file(&path)?;
        templates.push(Template { origin: "chat_template.jinja".to_owned(), ..template });
    }
    let folder = "additional_chat_templates";
    let path = dir.join(folder);
    let Ok(entries) = fs::read_dir(&path) else { return Ok(templates) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| Error::Io { path: path.clone(), source })?;
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.strip_suffix(".jinja")) {
            names.push(name.to_owned());
        }
        if names.len() > MAX_TEMPLATES {
            let expected = format!("at most {MAX_TEMPLATES} templates");
            return Err(Error::checkpoint(&path, expected, "more"));
        }
    }
    names.sort();
    for name in names {
        let file = format!("{name}.jinja");
        let template = Template::from_file(&path.join(&file))?;
        templates.push(Template { name, origin: format!("{folder}/{file}"), ..template });
    }
    Ok(templates)
}

/// The templates of a JSON file's `chat_template`.
fn templates(path: &Path, config: &Map<String, Value>) -> Result<Vec<Template>> {
    let wrong = |expected: &str, found: &Value| Error::Config {
        path: path.to_owned(),
        field: "chat_template".to_owned(),
        expected: expected.to_owned(),
        found: brief(found),
    };
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let template = |name: &str, text: &str, origin| {
        if text.len() as u64 > MAX_TEMPLATE_BYTES {
            return Err(wrong(&format!("at most {MAX_TEMPLATE_BYTES} bytes"), &text.len().into()));
        }
        Ok(Template { name: name.to_owned(), text: text.to_owned(), origin })
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![template("default", text, format!("{file}: chat_template"))?]),
        Some(Value::Array(list)) if list.len() <= MAX_TEMPLATES => {
            let mut templates: Vec<Template> = Vec::new();
            for entry in list {
                let (Some(Value::String(name)), Some(Value::String(text))) =
                    (entry.get("name"), entry.get("template"))
                else {
                    return Err(wrong("entries with name and template, both texts", entry));
                };
                if templates.iter().any(|template| template.name == *name) {
                    return Err(wrong("a name for each template", &Value::from(&**name)));
                }
                templates.push(template(name, text, format!("{file}: chat_template {name:?}"))?);
            }
            Ok(templates)
        }
        Some(other) => Err(wrong("a text, or a list of templates with names", other)),
    }
}

/// What a `tekken.json` says of the format of chats, if there is one.
fn version(path: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct File {
        config: Config,
    }
    #[derive(Deserialize)]
    struct Config {
        version: Option<String>,
    }
    if !is_there(path) {
        return Ok(None);
    }
    let file: File = serde_json::from_slice(&read_limited(path, MAX_CONFIG_BYTES)?)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    Ok(file.config.version)
}

/// The text of a special token, `"</s>"` or `{"content": "</s>", ...}`, if the key is one's.
fn special_token(path: &Path, key: &str, value: &Value) -> Result<Option<String>> {
    if !key.ends_with("_token") {
        return Ok(None);
    }
    match value {
        // `add_bos_token` and the like.
        Value::Bool(_) | Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Object(token) if token.get("content").is_some_and(Value::is_string) => {
            Ok(token.get("content").and_then(Value::as_str).map(str::to_owned))
        }
        other => Err(Error::Config {
            path: path.to_owned(),
            field: key.to_owned(),
            expected: "the text of a token".to_owned(),
            found: brief(other),
        }),
    }
}

/// The object of a JSON file, if there is one.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !is_there(path) {
        return Ok(None);
    }
    json_object(&read_limited(path, MAX_CONFIG_BYTES)?, path).map(Some)
}

/// Whether a name is taken, if only by a link to nowhere.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write(dir: &Path, file: &str, text: &str) {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn found(evidence: &ChatEvidence) -> Vec<(&str, &str, &str)> {
        evidence.templates.iter().map(|t| (&*t.name, &*t.text, &*t.origin)).collect()
    }

    #[test]
    fn files_of_their_own_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(ChatEvidence::from_dir(dir).unwrap(), ChatEvidence::default());
        write(dir, "chat_template.json", r#"{"chat_template": "p"}"#);
        assert_eq!(
            found(&ChatEvidence::from_dir(dir).unwrap()),
            [("default", "p", "chat_template.json: chat_template")]
        );
        let config = json!({
            "bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>", "pad_token": null, "add_bos_token": true,
            "chat_template": [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]
        });
        write(dir, "tokenizer_config.json", &config.to_string());
        let evidence = ChatEvidence::from_dir(dir).unwrap();
        assert_eq!(
            found(&evidence),
            [
                ("default", "d", "tokenizer_config.json: chat_template \"default\""),
                ("rag", "r", "tokenizer_config.json: chat_template \"rag\"")
            ]
        );
        let tokens: Vec<_> = evidence.special_tokens.iter().map(|(name, text)| (&**name, &**text)).collect();
        assert_eq!(tokens, [("bos_token", "<s>"), ("eos_token", "</s>")]);
        write(dir, "chat_template.jinja", "j\n");
        write(dir, "additional_chat_templates/tool_use.jinja", "t");
        let evidence = ChatEvidence::from_dir(dir).unwrap();
        assert_eq!(
            found(&evidence),
            [
                ("default", "j\n", "chat_template.jinja"),
                ("tool_use", "t", "additional_chat_templates/tool_use.jinja")
            ]
        );
    }

    #[test]
    fn what_is_no_evidence() {
        let dir = tempfile::tempdir().unwrap();
        for (config, message) in [
            ("{", "EOF while parsing"),
            ("[]", "expected a JSON object"),
            (
                r#"{"chat_template": 7}"#,
                "chat_template: expected a text, or a list of templates with names, found 7",
            ),
            (
                r#"{"chat_template": ["x"]}"#,
                "chat_template: expected entries with name and template, both texts",
            ),
            (r#"{"chat_template": "a", "chat_template": "b"}"#, "key \"chat_template\" occurs twice"),
            (
                r#"{"chat_template": [{"name": "a", "template": ""}, {"name": "a", "template": "b"}]}"#,
                "chat_template: expected a name for each template, found \"a\"",
            ),
            (r#"{"eos_token": 2}"#, "eos_token: expected the text of a token, found 2"),
        ] {
            write(dir.path(), "tokenizer_config.json", config);
            let error = ChatEvidence::from_dir(dir.path()).unwrap_err().to_string();
            assert!(
                error.contains("tokenizer_config.json: ") && error.contains(message),
                "{config}: {error}"
            );
        }
    }
}
