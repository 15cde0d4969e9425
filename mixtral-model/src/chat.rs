//! Chats in the instruct format of Mixtral-8x7B-Instruct-v0.1, as ids.
//!
//! A chat of user turns `u` and assistant turns `a` becomes
//!
//! ```text
//! BOS  "[INST] u [/INST]"  "a" EOS  "[INST] u [/INST]"  ...  "[INST] u [/INST]"
//! ```
//!
//! where each quoted text is encoded on its own by [`Tokenizer::encode_ordinary`], which puts the customary space in front.
//! BOS and EOS are ids and not text, so no message can forge them; `[INST]` is text in this format, and a message may contain it.
//! A system message is not part of the format: as in Mistral's own library, it goes in front of the first user message,
//! with an empty line between them, and an empty one counts for nothing.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Session, Tokenizer};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole chat.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, taken as it is.
    pub content: String,
}

/// Encodes a chat, with BOS in front and EOS after each turn of the assistant.
///
/// The ids end where the assistant's next answer begins. To go on without encoding the chat again, append what the model
/// generated, EOS, and [`encode_user_turn`]: this gives the ids of the whole chat, provided that the generated ids are those
/// that their text encodes to.
///
/// ```text
/// encode_chat([u1])  ++  generated  ++  [EOS]  ++  encode_user_turn(u2)  ==  encode_chat([u1, a1, u2])
/// ```
///
/// An empty turn of the assistant is EOS alone; Mistral's library refuses it.
///
/// # Errors
///
/// [`Error::Chat`] unless the roles are an optional system message, then user and assistant by turns, from user to user.
pub fn encode_chat(tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
    let (system, turns) = match messages {
        [first, turns @ ..] if first.role == Role::System => (&*first.content, turns),
        turns => ("", turns),
    };
    check(messages, messages.len() - turns.len())?;

    let mut ids = vec![tokenizer.bos()];
    for (index, turn) in turns.iter().enumerate() {
        if turn.role == Role::Assistant {
            ids.extend(tokenizer.encode_ordinary(&turn.content));
            ids.push(tokenizer.eos());
        } else if index == 0 && !system.is_empty() {
            ids.extend(encode_user_turn(tokenizer, &format!("{system}\n\n{}", turn.content)));
        } else {
            ids.extend(encode_user_turn(tokenizer, &turn.content));
        }
    }
    Ok(ids)
}

/// The ids of one more user turn, to append after the EOS of the assistant's turn; no BOS.
pub fn encode_user_turn(tokenizer: &Tokenizer, content: &str) -> Vec<u32> {
    tokenizer.encode_ordinary(&format!("[INST] {content} [/INST]"))
}

/// A chat in the making, of which a session holds the beginning, so that a turn costs the reading of that turn alone.
///
/// ```text
/// chat.ask("u1")   generate(.., chat.unread(&session), ..)   chat.answered(&generated.tokens)   chat.ask("u2")   ...
/// ```
#[derive(Clone, Debug)]
pub struct Conversation<'t> {
    tokenizer: &'t Tokenizer,
    /// Goes in front of the first user turn; empty from then on.
    preface: String,
    /// BOS, then the turns.
    ids: Vec<u32>,
}

impl<'t> Conversation<'t> {
    /// A chat without turns, under a system message, which may be empty.
    pub fn new(tokenizer: &'t Tokenizer, system: &str) -> Self {
        let preface = if system.is_empty() { String::new() } else { format!("{system}\n\n") };
        Self { tokenizer, preface, ids: Vec::new() }
    }

    /// Appends a user turn. The assistant's turn before it, answered or not, is ended by EOS.
    pub fn ask(&mut self, content: &str) {
        self.ids.push(if self.ids.is_empty() { self.tokenizer.bos() } else { self.tokenizer.eos() });
        let content = std::mem::take(&mut self.preface) + content;
        self.ids.extend(encode_user_turn(self.tokenizer, &content));
    }

    /// Appends what the assistant said, without EOS.
    pub fn answered(&mut self, tokens: &[u32]) {
        self.ids.extend(tokens);
    }

    /// All ids so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The ids that a session of this conversation has not read.
    pub fn unread(&self, session: &Session) -> &[u32] {
        self.ids.get(session.position()..).unwrap_or_default()
    }
}

/// Checks that the roles alternate from `begin` on, from user to user.
fn check(messages: &[Message], begin: usize) -> Result<()> {
    for (index, message) in messages.iter().enumerate().skip(begin) {
        let expected = if (index - begin).is_multiple_of(2) { Role::User } else { Role::Assistant };
        if message.role != expected {
            return Err(unexpected(index, expected.name(), message.role.name()));
        }
    }
    match messages.len() {
        len if (len - begin).is_multiple_of(2) => Err(unexpected(len, "user", "the end")),
        _ => Ok(()),
    }
}

fn unexpected(index: usize, expected: &str, found: &str) -> Error {
    Error::Chat { index, expected: expected.to_owned(), found: found.to_owned() }
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}
