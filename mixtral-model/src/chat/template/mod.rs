//! A model's own chat template, run by the crate minijinja as Transformers runs it by Jinja.
//!
//! Templates come with models and are not trusted. One can reach no files and change nothing; what it may compute, write and hold
//! is bounded, and it runs on a thread of its own with a stack of its own, for values that nest deeply are dropped level by level.
//! The engine counts what a template does, but not all that comes of values which hold each other many times over. Such a template
//! is given up after [`TIME`], and its thread goes on alone; until that ends, if ever, the template is not run again.

mod methods;
mod python;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::Map;

use super::{Chat, ChatEvidence, Template};
use crate::{Error, Result, Tokenizer};

/// What a template may do, in steps of the engine: one for each operation, and one for every 64 bytes that it makes.
const FUEL: u64 = 1 << 20;

/// The most bytes that come of a template.
const MAX_TEXT: usize = 1 << 24;

/// Characters of an error that are told.
const MAX_REASON: usize = 400;

/// Time to compile or run a template. Those in use take milliseconds.
const TIME: Duration = Duration::from_secs(5);

/// Virtual memory for the stack of a template; pages count as they are touched.
const STACK: usize = 1 << 28;

/// Stands where a message that is to be continued ends, as in Transformers.
const END_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A compiled template.
#[derive(Clone, Debug)]
pub(super) struct Renderer {
    origin: String,
    environment: Arc<Environment<'static>>,
    /// Whether it was given up and runs on.
    astray: Arc<AtomicBool>,
}

impl Renderer {
    /// Compiles a template, which will see special tokens by their names.
    pub(super) fn new(template: &Template, tokens: &BTreeMap<String, String>) -> Result<Self> {
        let origin = template.origin.clone();
        let wrong = |(line, reason)| Error::ChatTemplate { origin: origin.clone(), line: Some(line), reason };
        let text = source::prepare(&template.text).map_err(wrong)?;
        let tokens = tokens.clone();
        let astray = Arc::default();
        let environment = apart(&template.origin, &astray, move || {
            let mut environment = Environment::new();
            environment.set_fuel(Some(FUEL));
            environment.set_auto_escape_callback(|_| AutoEscape::None);
            let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
            environment.set_syntax(syntax);
            environment.remove_global("debug");
            methods::add_to(&mut environment);
            python::add_to(&mut environment);
            for (name, token) in tokens {
                environment.add_global(name, token);
            }
            environment.add_template_owned(NAME, text)?;
            Ok(environment)
        })?;
        Ok(Self { origin: template.origin.clone(), environment: Arc::new(environment), astray })
    }

    /// The text of a chat, to where the model's answer begins.
    ///
    /// Where the last message is a prefix, the text ends where it does. `answer` adds what a template puts in front of an answer.
    pub(super) fn render(&self, chat: &Chat, answer: bool) -> Result<String> {
        let prefix = chat.messages.last().is_some_and(super::Message::is_prefix);
        let mut messages: Vec<Map<_, _>> =
            chat.messages.iter().map(|message| message.fields().clone()).collect();
        messages.iter_mut().for_each(alias_reasoning);
        let mut tagged = true;
        if let Some(last) = messages.last_mut().filter(|_| prefix) {
            last.shift_remove("prefix");
            tagged = tag(last.get_mut("content"));
        }
        if !tagged {
            let reason = "expected a text to continue, found none".to_owned();
            return Err(Error::Chat { index: chat.messages.len() - 1, reason });
        }
        let list = |items: &[serde_json::Value]| match items {
            [] => Value::from(()),
            items => items.iter().map(python::value).collect(),
        };
        let variables = chat.variables.iter().map(|(name, value)| (&**name, python::value(value)));
        let variables = Value::from_pairs(variables.chain([
            ("messages", messages.iter().map(python::object).collect()),
            ("tools", list(&chat.tools)),
            ("documents", list(&chat.documents)),
            ("add_generation_prompt", (answer && !prefix).into()),
        ]));
        let environment = Arc::clone(&self.environment);
        let text =
            apart(&self.origin, &self.astray, move || environment.get_template(NAME)?.render(variables))?;
        if text.len() > MAX_TEXT {
            let reason = format!("expected at most {MAX_TEXT} bytes of text, found {}", text.len());
            return Err(Error::ChatTemplate { origin: self.origin.clone(), line: None, reason });
        }
        if !prefix {
            return Ok(text);
        }
        let Some(at) = text.rfind(END_TAG.trim_end()) else {
            let reason =
                "expected the message that is to be continued in the text, found it left out".to_owned();
            return Err(Error::ChatTemplate { origin: self.origin.clone(), line: None, reason });
        };
        // A template that trims what was said takes the space of the tag with it.
        Ok(match text[at..].starts_with(END_TAG) {
            true => text[..at].to_owned(),
            false => text[..at].trim_end().to_owned(),
        })
    }
}

/// The special tokens by the names that templates know: those of the evidence, and where it is silent, the tokenizer's own.
pub(super) fn tokens(evidence: &ChatEvidence, tokenizer: &Tokenizer) -> BTreeMap<String, String> {
    let mut tokens = evidence.special_tokens.clone();
    let own = [
        ("bos_token", Some(tokenizer.bos())),
        ("eos_token", Some(tokenizer.eos())),
        ("unk_token", tokenizer.unk()),
    ];
    for (name, id) in own {
        if let Some(piece) = id.and_then(|id| tokenizer.piece(id)) {
            tokens.entry(name.to_owned()).or_insert_with(|| piece.to_owned());
        }
    }
    tokens
}

/// The name of the one template of an environment.
const NAME: &str = "template";

/// Puts what a message says of its reasoning under the two names that templates look for, as Transformers does.
fn alias_reasoning(message: &mut Map<String, serde_json::Value>) {
    let names = ["reasoning_content", "thinking", "reasoning"];
    if let Some(reasoning) = names.iter().find_map(|name| message.get(*name)).cloned() {
        if !message.contains_key("thinking") {
            message.shift_insert(0, "thinking".to_owned(), reasoning.clone());
        }
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}

/// Puts the tag at the end of a content, in its last part of text.
fn tag(content: Option<&mut serde_json::Value>) -> bool {
    match content {
        Some(serde_json::Value::String(text)) => {
            text.push_str(END_TAG);
            true
        }
        Some(serde_json::Value::Array(parts)) => {
            let text = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
            text.is_some_and(|text| tag(Some(text)))
        }
        _ => false,
    }
}

/// Runs something of the engine on a thread with a large stack, for a limited time, unless it has gone astray before.
fn apart<T: Send + 'static>(
    origin: &str,
    astray: &Arc<AtomicBool>,
    run: impl FnOnce() -> std::result::Result<T, minijinja::Error> + Send + 'static,
) -> Result<T> {
    let wrong = |line, reason| Error::ChatTemplate { origin: origin.to_owned(), line, reason };
    let given_up = || wrong(None, format!("expected an end within {} seconds, found none", TIME.as_secs()));
    if astray.load(Ordering::SeqCst) {
        return Err(given_up());
    }
    let (sender, receiver) = sync_channel(1);
    let found = Arc::clone(astray);
    let job = move || {
        // Nobody listens any more once the time is over.
        let _ = sender.send(run().map_err(|error| explain(&error)));
        found.store(false, Ordering::SeqCst);
    };
    let spawned = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK).spawn(job);
    spawned.map_err(|error| wrong(None, format!("no thread to run it: {error}")))?;
    let result = match receiver.recv_timeout(TIME) {
        Err(RecvTimeoutError::Timeout) => {
            astray.store(true, Ordering::SeqCst);
            // What came before this was said will not be taken back by the thread.
            let result = receiver.try_recv().map_err(|_| given_up())?;
            astray.store(false, Ordering::SeqCst);
            result
        }
        other => other.map_err(|_| wrong(None, "the template engine failed".to_owned()))?,
    };
    result.map_err(|(line, reason)| wrong(line, reason))
}

/// The line of an error, and what it says.
fn explain(error: &minijinja::Error) -> (Option<usize>, String) {
    let mut innermost = error;
    while let Some(inner) = std::error::Error::source(innermost).and_then(|e| e.downcast_ref()) {
        innermost = inner;
    }
    let reason = match (innermost.kind(), innermost.detail()) {
        (ErrorKind::OutOfFuel, _) => {
            "expected an end within a million steps and 64 MiB, found none".to_owned()
        }
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    // A template may raise whatever text it makes.
    let reason = match reason.char_indices().nth(MAX_REASON) {
        Some((end, _)) => format!("{}...", &reason[..end]),
        None => reason,
    };
    (innermost.line().or(error.line()), reason)
}
