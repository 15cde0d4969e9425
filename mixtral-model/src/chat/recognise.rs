//! What a template writes, found by showing it chats.

use moe_core::OutOfMemory;
use serde_json::json;

use super::mistral::Writer;
use super::{Chat, Message, MistralVersion};
use crate::{Result, Tokenizer};

/// The version of Mistral's formats that a template writes, up to spaces, if one.
///
/// A template may refuse a system message, tools, or both, and may leave tools out; what it writes counts.
pub(super) fn version(
    write: impl Fn(&Chat) -> Result<String>,
    tokenizer: &Tokenizer,
) -> Option<MistralVersion> {
    let mut written = Vec::new();
    for (index, probe) in probes().into_iter().enumerate() {
        let text = write(&probe).ok();
        // A template that refuses plain chats is none of these.
        if index < PLAIN && text.is_none() {
            return None;
        }
        written.push((text, probe));
    }
    let (versions, _) = MistralVersion::of_vocabulary(tokenizer);
    versions.iter().copied().find(|version| {
        written.iter().all(|(written, probe)| {
            let Some(written) = written else { return true };
            let is = |chat: &Chat| {
                let expected = text(*version, tokenizer, chat);
                expected.is_ok_and(|expected| spaceless(written) == spaceless(&expected))
            };
            is(probe) || is(&Chat { tools: Vec::new(), ..probe.clone() })
        })
    })
}

/// The special token that a template writes after an answer, if it does.
pub(super) fn end_of_answer(write: impl Fn(&Chat) -> Result<String>, tokenizer: &Tokenizer) -> Vec<u32> {
    const ANSWER: &str = "Qwxz";
    let chat = Chat::new(vec![Message::user("a"), Message::assistant(ANSWER)]);
    let Ok(text) = write(&chat) else { return Vec::new() };
    let Some(at) = text.rfind(ANSWER) else { return Vec::new() };
    let after = text[at + ANSWER.len()..].trim_start();
    let first = tokenizer.encode(after).ok().and_then(|ids| ids.first().copied());
    first
        .filter(|&id| is_special(tokenizer, id) && after.starts_with(tokenizer.piece(id).unwrap_or("\0")))
        .into_iter()
        .collect()
}

/// Whether an id stands for a text that is more than ordinary where it is written.
pub(super) fn is_special(tokenizer: &Tokenizer, id: u32) -> bool {
    let Some(piece) = tokenizer.piece(id) else { return false };
    let is_it = |ids: Result<Vec<u32>>| ids.is_ok_and(|ids| ids == [id]);
    is_it(tokenizer.encode(piece)) && !is_it(tokenizer.encode_ordinary(piece))
}

/// How many of the [`probes`] are plain.
const PLAIN: usize = 2;

/// Chats that the formats write in different ways. Contents hold no spaces, for those are looked over, and the result of a call is
/// a number, for of what is JSON or a text, templates do not agree.
fn probes() -> Vec<Chat> {
    let (system, user, again) = (Message::system("Sys"), Message::user("Ask"), Message::user("More"));
    let answer = Message::assistant("Said");
    let tools = vec![json!({"type": "function", "function": {
        "name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}
    }})];
    let json = |value| Message::from_json(value).unwrap_or_else(|_| Message::assistant(""));
    let call = json(json!({"role": "assistant", "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]}));
    let result = json(json!({"role": "tool", "name": "f", "tool_call_id": "abcdefghi", "content": "2"}));
    vec![
        Chat::new(vec![user.clone()]),
        Chat::new(vec![user.clone(), answer.clone(), again.clone()]),
        Chat::new(vec![system.clone(), user.clone()]),
        Chat::new(vec![system, user.clone(), answer.clone(), again.clone()]),
        Chat::new(vec![user.clone()]).with_tools(tools.clone()),
        Chat::new(vec![user.clone(), answer, again]).with_tools(tools.clone()),
        Chat::new(vec![user, call, result]).with_tools(tools),
    ]
}

fn spaceless(text: &str) -> String {
    text.chars().filter(|&character| character != ' ').collect()
}

/// A chat in one of Mistral's formats, with control pieces written out.
pub(super) fn text(version: MistralVersion, tokenizer: &Tokenizer, chat: &Chat) -> Result<String> {
    let piece = |id| tokenizer.piece(id).unwrap_or_default().to_owned();
    let mut writer = Text { eos: piece(tokenizer.eos()), text: piece(tokenizer.bos()) };
    version.write(chat, &mut writer)?;
    Ok(writer.text)
}

struct Text {
    eos: String,
    text: String,
}

impl Writer for Text {
    fn text(&mut self, text: &str) -> Result<()> {
        self.text.try_reserve(text.len()).map_err(|_| OutOfMemory::of::<u8>("chat", text.len()))?;
        self.text.push_str(text);
        Ok(())
    }

    fn control(&mut self, piece: &'static str) -> Result<()> {
        self.text.push_str(piece);
        Ok(())
    }

    fn answer(&mut self, _: usize, text: &str) -> Result<()> {
        self.text(text)
    }

    fn end(&mut self) {
        self.text.push_str(&self.eos);
    }
}
