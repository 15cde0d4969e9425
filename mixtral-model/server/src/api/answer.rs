//! An answer in the making: events go in, JSON comes out, whole or in chunks.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::common::Common;
use super::fault::Fault;
use super::spelling::{bytes, spelled};
use super::{Api, now};
use crate::engine::{Event, Finish, Request, Score, TokenRouting};

/// Which of OpenAI's two kinds an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Text,
    Chat,
}

/// A prompt that comes first in its completion.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
}

/// An answer in the making.
pub(super) struct Answer {
    api: Arc<Api>,
    shape: Shape,
    id: String,
    created: u64,
    seed: u64,
    logprobs: Option<usize>,
    routing: bool,
    include_usage: bool,
    choices: Vec<Choice>,
    drawn: usize,
    pub(super) stream: bool,
    pub(super) prompt_tokens: usize,
    /// What it takes, one for each choice.
    pub(super) requests: Vec<Request>,
}

/// One of its texts, as much of it as was not written yet.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    /// Tokens with their scores, which the first of a prompt does not have.
    tokens: Vec<(u32, Option<Score>)>,
    routing: Vec<TokenRouting>,
    /// Characters of the tokens that were written.
    offset: usize,
    finish: Option<Finish>,
    /// Whether something was written.
    begun: bool,
    /// Whether its prompt is read, so that there is something to write.
    read: bool,
}

impl Answer {
    pub(super) fn new(api: &Arc<Api>, shape: Shape, common: &Common, logprobs: Option<usize>) -> Self {
        Self {
            api: api.clone(),
            shape,
            id: api.id(if shape == Shape::Chat { "chatcmpl" } else { "cmpl" }),
            created: now(),
            seed: common.seed,
            logprobs,
            routing: common.routing,
            include_usage: common.include_usage,
            choices: Vec::new(),
            drawn: 0,
            stream: common.stream,
            prompt_tokens: 0,
            requests: Vec::new(),
        }
    }

    /// Adds a choice.
    pub(super) fn add(&mut self, echo: Option<Echo>) {
        let mut choice = Choice::default();
        if let Some(Echo { text, ids }) = echo {
            choice.text = text;
            if self.logprobs.is_some() {
                choice.tokens.extend(ids.first().map(|&id| (id, None)));
            }
        }
        self.choices.push(choice);
    }

    /// Takes what happened to a choice.
    pub(super) fn take(&mut self, choice: usize, event: Event) -> Result<(), Fault> {
        let choice = &mut self.choices[choice];
        match event {
            Event::Prompt(scores) => {
                choice.tokens.extend(scores.into_iter().map(|score| (score.token, Some(score))));
            }
            Event::Routed(routing) => choice.routing.extend(routing),
            Event::Token { id, text, score } => {
                choice.read = true;
                choice.text += &text;
                choice.tokens.extend(score.map(|score| (id, Some(score))));
                self.drawn += 1;
            }
            Event::Ended { finish, text } => {
                choice.read = true;
                choice.text += &text;
                choice.finish = Some(finish);
            }
            Event::Failed(failure) => return Err(failure.into()),
        }
        Ok(())
    }

    /// Whether all choices have ended.
    pub(super) fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// All of it.
    pub(super) fn whole(mut self) -> Value {
        let choices = (0..self.choices.len()).map(|n| self.choice(n, true)).collect();
        let object = if self.shape == Shape::Chat { "chat.completion" } else { "text_completion" };
        let mut value = self.around(object, choices);
        value.insert("usage".to_owned(), self.usage());
        value.into()
    }

    /// What of a choice was not written yet, if there is something to write.
    pub(super) fn chunk(&mut self, n: usize) -> Option<Value> {
        let choice = &self.choices[n];
        let empty = choice.text.is_empty() && choice.tokens.is_empty() && choice.finish.is_none();
        if !choice.read || empty {
            return None;
        }
        let choices = vec![self.choice(n, false)];
        let object = if self.shape == Shape::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut value = self.around(object, choices);
        if self.include_usage {
            value.insert("usage".to_owned(), Value::Null);
        }
        Some(value.into())
    }

    /// The last chunk, without choices, where it is wished.
    pub(super) fn usage_chunk(&self) -> Option<Value> {
        let object = if self.shape == Shape::Chat { "chat.completion.chunk" } else { "text_completion" };
        self.include_usage.then(|| {
            let mut value = self.around(object, Vec::new());
            value.insert("usage".to_owned(), self.usage());
            value.into()
        })
    }

    fn around(&self, object: &str, choices: Vec<Value>) -> Map<String, Value> {
        let entries = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.api.core().options.model_name)),
            ("choices", choices.into()),
            ("seed", json!(self.seed)),
        ];
        entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.drawn,
            "total_tokens": self.prompt_tokens + self.drawn,
        })
    }

    /// Writes what of a choice was not written yet.
    fn choice(&mut self, n: usize, whole: bool) -> Value {
        let logprobs = match (self.logprobs, self.shape) {
            (None, _) => Value::Null,
            (Some(_), Shape::Text) => self.text_logprobs(n),
            (Some(_), Shape::Chat) => self.chat_logprobs(n),
        };
        let choice = &mut self.choices[n];
        let text = std::mem::take(&mut choice.text);
        let finish = choice.finish.map(|finish| match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        });
        let begun = std::mem::replace(&mut choice.begun, true);
        let mut value = match (self.shape, whole) {
            (Shape::Text, _) => json!({"index": n, "text": text}),
            (Shape::Chat, true) => json!({"index": n, "message": {"role": "assistant", "content": text}}),
            (Shape::Chat, false) if begun => json!({"index": n, "delta": {"content": text}}),
            (Shape::Chat, false) => json!({"index": n, "delta": {"role": "assistant", "content": text}}),
        };
        value["logprobs"] = logprobs;
        value["finish_reason"] = json!(finish);
        if self.routing {
            value["routing"] = std::mem::take(&mut choice.routing).iter().map(routing).collect();
        }
        value
    }

    fn text_logprobs(&mut self, n: usize) -> Value {
        let tokenizer = &self.api.core().tokenizer;
        let choice = &mut self.choices[n];
        let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for (id, score) in choice.tokens.drain(..) {
            let token = spelled(tokenizer, id);
            offsets.push(choice.offset);
            choice.offset += token.chars().count();
            logprobs.push(score.as_ref().map(|score| score.logprob));
            tops.push(score.map(|score| {
                let mut top = Map::new();
                for (other, logprob) in score.top.into_iter().chain([(id, score.logprob)]) {
                    // Where two tokens are spelled alike, the more probable one is told of.
                    top.entry(spelled(tokenizer, other)).or_insert_with(|| json!(logprob));
                }
                top
            }));
            tokens.push(token);
        }
        json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
    }

    fn chat_logprobs(&mut self, n: usize) -> Value {
        let tokenizer = &self.api.core().tokenizer;
        let entry = |id: u32, logprob: f64| {
            let token = spelled(tokenizer, id);
            json!({"token": token, "logprob": logprob, "bytes": bytes(&token)})
        };
        let scores = self.choices[n].tokens.drain(..).filter_map(|(_, score)| score);
        let content = scores.map(|score| {
            let mut value = entry(score.token, score.logprob);
            value["top_logprobs"] = score.top.into_iter().map(|(id, logprob)| entry(id, logprob)).collect();
            value
        });
        json!({"content": content.collect::<Vec<_>>()})
    }
}

/// The experts of a token, layer by layer.
fn routing(token: &TokenRouting) -> Value {
    let layer = |choices: &Vec<(usize, f32)>| {
        let (experts, weights): (Vec<_>, Vec<_>) = choices.iter().copied().unzip();
        json!({"experts": experts, "weights": weights})
    };
    token.layers.iter().map(layer).collect()
}
