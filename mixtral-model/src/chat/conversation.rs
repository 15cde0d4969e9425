//! A chat in the making.

use super::{Chat, ChatFormat, Message};
use crate::{Result, Session, Tokenizer};

/// A chat in the making, of which a session holds the beginning, so that a turn costs the reading of that turn alone.
///
/// ```text
/// chat.ask(&tokenizer, "u1")?
/// if chat.unread(&session).clear { session.clear() }   generate(.., chat.unread(&session).ids, ..)
/// chat.answered(&tokenizer, &generated.tokens)
/// chat.ask(&tokenizer, "u2")?   ...
/// ```
///
/// It holds no tokenizer, and may be kept for as long as the chat lasts.
#[derive(Clone, Debug)]
pub struct Conversation {
    format: ChatFormat,
    chat: Chat,
    /// The ids of answers, by the number of their message.
    answers: Vec<(usize, Vec<u32>)>,
    /// The ids of the chat up to its last question, and of the answer to it.
    ids: Vec<u32>,
}

/// What a session is to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread<'c> {
    /// Whether the session holds something else than the conversation, and is to be cleared first.
    pub clear: bool,
    /// What it is to read then.
    pub ids: &'c [u32],
}

impl Conversation {
    /// A chat without turns, under a system message, which may be empty.
    pub fn new(format: ChatFormat, system: &str) -> Self {
        let messages = if system.is_empty() { Vec::new() } else { vec![Message::system(system)] };
        Self { format, chat: Chat::new(messages), answers: Vec::new(), ids: Vec::new() }
    }

    /// Appends a user turn. A question before it that has no answer is taken as answered by nothing.
    ///
    /// # Errors
    ///
    /// Those of [`ChatFormat::encode`]. The conversation is then as before.
    pub fn ask(&mut self, tokenizer: &Tokenizer, content: &str) -> Result<()> {
        let before = self.chat.messages.len();
        if self.chat.messages.last().is_some_and(|message| message.role() == "user") {
            self.chat.messages.push(Message::assistant(""));
        }
        self.chat.messages.push(Message::user(content));
        let encoded = self.encode(tokenizer);
        if encoded.is_err() {
            self.chat.messages.truncate(before);
        }
        encoded
    }

    /// Forgets the oldest turn, for a conversation that has become too long for its session: the first question, and all that was said
    /// until the next. Whatever stands before the first question, as the system message, stays. `false` where there is no turn before
    /// the last.
    ///
    /// # Errors
    ///
    /// Those of [`ChatFormat::encode`]. The conversation is then as before.
    pub fn forget_oldest(&mut self, tokenizer: &Tokenizer) -> Result<bool> {
        let is_question = |message: &Message| message.role() == "user";
        let mut questions =
            self.chat.messages.iter().enumerate().filter(|(_, m)| is_question(m)).map(|(n, _)| n);
        let (Some(first), Some(next)) = (questions.next(), questions.next()) else { return Ok(false) };
        let before = self.clone();
        self.chat.messages.drain(first..next);
        self.answers.retain(|(answered, _)| !(first..next).contains(answered));
        for (answered, _) in &mut self.answers {
            *answered -= if *answered >= next { next - first } else { 0 };
        }
        match self.encode(tokenizer) {
            Ok(()) => Ok(true),
            Err(error) => {
                *self = before;
                Err(error)
            }
        }
    }

    /// Makes the ids of the chat as it is.
    fn encode(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let answer =
            |index| self.answers.iter().find(|(answered, _)| *answered == index).map(|(_, ids)| &**ids);
        self.ids = self.format.encode_with(tokenizer, &self.chat, answer)?;
        Ok(())
    }

    /// Appends what the assistant said, without the token that ended it.
    pub fn answered(&mut self, tokenizer: &Tokenizer, tokens: &[u32]) {
        self.answers.push((self.chat.messages.len(), tokens.to_vec()));
        self.chat.messages.push(Message::assistant(&tokenizer.decode(tokens)));
        self.ids.extend(tokens);
    }

    /// The ids up to the last question, and of the answer to it if there is one.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What was said.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// What a session has not read.
    ///
    /// A session that holds the beginning of the conversation reads what follows. Another, as one whose answer the template
    /// spells otherwise than the model, or which has all of it already, is to be cleared and reads everything.
    pub fn unread(&self, session: &Session) -> Unread<'_> {
        match self.ids.strip_prefix(session.tokens()) {
            Some(ids) if !ids.is_empty() => Unread { clear: false, ids },
            _ => Unread { clear: session.position() > 0, ids: &self.ids },
        }
    }
}
