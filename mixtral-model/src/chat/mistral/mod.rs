//! Mistral's own chat formats, id by id as in its library mistral-common.
//!
//! `[INST]` and the like are texts in version 1 and control pieces, never text, from version 2 on. `"..."` is encoded on its own
//! by [`Tokenizer::encode_ordinary`], which puts the customary space in front and knows no control pieces:
//!
//! ```text
//! v1      BOS "[INST] u [/INST]" "a" EOS "[INST] u [/INST]"
//! v2, v3  BOS [INST] "u" [/INST] "a" EOS [AVAILABLE_TOOLS] "json" [/AVAILABLE_TOOLS] [INST] "u" [/INST]
//! v7      BOS [SYSTEM_PROMPT] "s" [/SYSTEM_PROMPT] [INST] "u" [/INST] "a" EOS ...
//! calls   v2 to v7  [TOOL_CALLS] "json" EOS
//! results v2, v3    [TOOL_RESULTS] "json" [/TOOL_RESULTS]
//!         v7        [TOOL_RESULTS] "id" [TOOL_CONTENT] "result" [/TOOL_RESULTS]
//! ```
//!
//! A system message goes before the first user message in version 1 and before the last one in versions 2 and 3, with an empty
//! line between them. Tools stand in front of the last user turn. Version 2 writes calls and results only after that turn.

mod turns;

use std::fmt;
use std::str::FromStr;

use moe_core::memory;
use serde_json::{Map, Value};

use self::turns::{FUNCTION_NAME, Turn, What, is_function_name, parsed, turns};
use super::{Chat, json};
use crate::input::brief;
use crate::{Error, Result, Tokenizer};

/// Which of Mistral's formats; they are numbered as its tokenizers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum MistralVersion {
    /// Mixtral-8x7B-Instruct.
    V1,
    /// The first with control pieces and tools.
    V2,
    /// Mixtral-8x22B-Instruct: calls have ids.
    V3,
    /// System messages have a place of their own.
    V7,
}

impl MistralVersion {
    /// All of them, the oldest first.
    pub const ALL: [Self; 4] = [Self::V1, Self::V2, Self::V3, Self::V7];

    /// `v1`, `v2`, `v3` or `v7`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::V7 => "v7",
        }
    }

    /// The control pieces that the format writes.
    fn pieces(self) -> &'static [&'static str] {
        const V7: [&str; 10] = [
            "[INST]",
            "[/INST]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_CALLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
            "[TOOL_CONTENT]",
        ];
        match self {
            Self::V1 => &[],
            Self::V2 | Self::V3 => &V7[..7],
            Self::V7 => &V7,
        }
    }

    /// The versions that a vocabulary can write, the likeliest first, and the control piece that tells.
    ///
    /// Versions 2 and 3 have the same pieces. No open model is known to be of version 2, so 3 comes first.
    pub(super) fn of_vocabulary(tokenizer: &Tokenizer) -> (&'static [Self], Option<&'static str>) {
        if is_control(tokenizer, "[SYSTEM_PROMPT]") {
            (&[Self::V7, Self::V3, Self::V2], Some("[SYSTEM_PROMPT]"))
        } else if is_control(tokenizer, "[AVAILABLE_TOOLS]") {
            (&[Self::V3, Self::V2], Some("[AVAILABLE_TOOLS]"))
        } else {
            (&[Self::V1], None)
        }
    }

    /// Checks that a vocabulary has what the format writes.
    pub(super) fn check(self, tokenizer: &Tokenizer) -> Result<()> {
        self.pieces().iter().try_for_each(|piece| control(tokenizer, self, piece).map(|_| ()))
    }

    /// The ids of a chat, to where the model's answer begins.
    ///
    /// `answer` may give the ids of an assistant's message by its number, in place of those of its text.
    pub(super) fn encode<'a>(
        self,
        tokenizer: &Tokenizer,
        chat: &Chat,
        answer: impl Fn(usize) -> Option<&'a [u32]>,
    ) -> Result<Vec<u32>> {
        let mut writer = Ids { tokenizer, version: self, ids: vec![tokenizer.bos()], answer };
        self.write(chat, &mut writer)?;
        Ok(writer.ids)
    }

    /// Writes a chat, after BOS.
    pub(super) fn write(self, chat: &Chat, writer: &mut impl Writer) -> Result<()> {
        let nothing = |setting, empty: bool| match empty {
            true => Ok(()),
            false => Err(Error::Setting {
                setting,
                expected: format!("none in Mistral's {}", self.name()),
                found: "some".to_owned(),
            }),
        };
        nothing("documents", chat.documents.is_empty())?;
        nothing("chat_template_kwargs", chat.variables.is_empty())?;
        nothing("tools", chat.tools.is_empty() || self > Self::V1)?;
        let tools = definitions(&chat.tools)?;

        let (system, turns) = turns(self, chat)?;
        let is_user = |turn: &Turn| matches!(turn.what, What::User(_));
        let last_user = turns.iter().rposition(is_user);
        let system_at = if self == Self::V1 { turns.iter().position(is_user) } else { last_user };
        let mut results = 0;
        for (at, turn) in turns.iter().enumerate() {
            // Version 2 forgets calls and results once the user speaks again.
            let forgotten = self == Self::V2 && Some(at) < last_user;
            match &turn.what {
                What::System(text) => {
                    writer.control("[SYSTEM_PROMPT]")?;
                    writer.text(text)?;
                    writer.control("[/SYSTEM_PROMPT]")?;
                }
                What::User(text) => {
                    let text = match system_at {
                        Some(place) if place == at && !system.is_empty() => format!("{system}\n\n{text}"),
                        _ => text.clone(),
                    };
                    if self == Self::V1 {
                        writer.text(&format!("[INST] {text} [/INST]"))?;
                        continue;
                    }
                    if Some(at) == last_user && !tools.is_empty() {
                        writer.control("[AVAILABLE_TOOLS]")?;
                        writer.text(&json::dumps(&Value::Array(tools.clone())))?;
                        writer.control("[/AVAILABLE_TOOLS]")?;
                    }
                    writer.control("[INST]")?;
                    writer.text(&text)?;
                    writer.control("[/INST]")?;
                }
                What::Assistant { content, calls, prefix } => {
                    results = 0;
                    if forgotten && !calls.is_empty() {
                        continue;
                    }
                    let content = if self == Self::V1 { content } else { content.trim_end_matches(' ') };
                    writer.answer(turn.index, content)?;
                    if !calls.is_empty() {
                        writer.control("[TOOL_CALLS]")?;
                        writer.text(&json::dumps(&Value::Array(calls.clone())))?;
                    }
                    if !prefix {
                        writer.end();
                    }
                }
                What::Tool { .. } if forgotten => {}
                What::Tool { content, id, name } => {
                    results += 1;
                    if self == Self::V2 && results > 1 {
                        let reason =
                            "expected one result, for Mistral's v2 has no more, found another".to_owned();
                        return Err(Error::Chat { index: turn.index, reason });
                    }
                    writer.control("[TOOL_RESULTS]")?;
                    match self {
                        Self::V7 => {
                            writer.text(id)?;
                            writer.control("[TOOL_CONTENT]")?;
                            writer.text(content)?;
                        }
                        Self::V3 => {
                            let result =
                                object([("content", parsed(content)), ("call_id", id.as_str().into())]);
                            writer.text(&json::dumps(&result))?;
                        }
                        _ => {
                            let result = object([("name", name.clone()), ("content", parsed(content))]);
                            writer.text(&json::dumps(&Value::Array(vec![result])))?;
                        }
                    }
                    writer.control("[/TOOL_RESULTS]")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for MistralVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MistralVersion {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name).ok_or_else(|| Error::Setting {
            setting: "chat format",
            expected: "v1, v2, v3 or v7".to_owned(),
            found: name.to_owned(),
        })
    }
}

/// Where a format is written to.
pub(super) trait Writer {
    fn text(&mut self, text: &str) -> Result<()>;
    fn control(&mut self, piece: &'static str) -> Result<()>;
    /// What the assistant said in the message with this number.
    fn answer(&mut self, index: usize, text: &str) -> Result<()>;
    fn end(&mut self);
}

struct Ids<'t, F> {
    tokenizer: &'t Tokenizer,
    version: MistralVersion,
    ids: Vec<u32>,
    answer: F,
}

impl<F> Ids<'_, F> {
    fn extend(&mut self, ids: &[u32]) -> Result<()> {
        memory::reserve(&mut self.ids, ids.len(), "tokens")?;
        self.ids.extend(ids);
        Ok(())
    }
}

impl<'a, F: Fn(usize) -> Option<&'a [u32]>> Writer for Ids<'_, F> {
    fn text(&mut self, text: &str) -> Result<()> {
        self.extend(&self.tokenizer.encode_ordinary(text)?)
    }

    fn control(&mut self, piece: &'static str) -> Result<()> {
        self.ids.push(control(self.tokenizer, self.version, piece)?);
        Ok(())
    }

    fn answer(&mut self, index: usize, text: &str) -> Result<()> {
        match (self.answer)(index) {
            Some(ids) => self.extend(ids),
            None => self.text(text),
        }
    }

    fn end(&mut self) {
        self.ids.push(self.tokenizer.eos());
    }
}

fn is_control(tokenizer: &Tokenizer, piece: &str) -> bool {
    tokenizer.id_of(piece).is_some_and(|id| tokenizer.is_control(id))
}

fn control(tokenizer: &Tokenizer, version: MistralVersion, piece: &str) -> Result<u32> {
    tokenizer.id_of(piece).filter(|&id| tokenizer.is_control(id)).ok_or_else(|| Error::Setting {
        setting: "chat format",
        expected: format!("a vocabulary with the control piece {piece}, for Mistral's {version}"),
        found: "one without it".to_owned(),
    })
}

/// Tools with the keys that Mistral's formats write, in their order.
fn definitions(tools: &[Value]) -> Result<Vec<Value>> {
    let wrong = |expected: &str, found: &Value| Error::Setting {
        setting: "tools",
        expected: expected.to_owned(),
        found: brief(found),
    };
    let known = |object: &Map<String, Value>, keys: &[&str]| match object
        .iter()
        .find(|(key, value)| !keys.contains(&&***key) && !value.is_null())
    {
        None => Ok(()),
        Some((key, _)) => Err(wrong(&format!("no keys but {}", keys.join(", ")), &Value::from(&**key))),
    };
    let define = |tool: &Value| {
        let function = tool.get("function").and_then(Value::as_object);
        let function = function.filter(|_| tool.get("type").is_none_or(|kind| kind == "function"));
        let (Some(function), Some(outer)) = (function, tool.as_object()) else {
            return Err(wrong("functions, each an object with type and function", tool));
        };
        known(outer, &["type", "function"])?;
        known(function, &["name", "description", "parameters", "strict"])?;
        let given = |key: &str| function.get(key).filter(|value| !value.is_null());
        let name = given("name").cloned().unwrap_or_default();
        if !name.as_str().is_some_and(is_function_name) {
            return Err(wrong(&format!("a name of {FUNCTION_NAME}"), &name));
        }
        let description = given("description").cloned().unwrap_or_else(|| "".into());
        if !description.is_string() {
            return Err(wrong("a description that is a text", &description));
        }
        let parameters = given("parameters").cloned().unwrap_or_else(|| Map::new().into());
        if !parameters.is_object() {
            return Err(wrong("parameters that are an object", &parameters));
        }
        let function = object([("name", name), ("description", description), ("parameters", parameters)]);
        Ok(object([("type", "function".into()), ("function", function)]))
    };
    tools.iter().map(define).collect()
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>().into()
}
