//! A text in the making: a value that gives steps and takes logits.

use std::borrow::BorrowMut;
use std::sync::Arc;

use moe_core::Locality;
use moe_core::memory;

use crate::{
    Ended, Error, Event, GenerateOptions, LayerRouters, Model, Result, Sampler, Session, Span, Step, Wanted,
};

/// A text in the making: a prompt that is read in chunks, then one token after the other.
///
/// It runs no model. Whoever has one asks for the next [step](Self::step), puts it into a pass, alone or beside those of others, and
/// gives back what came of it; then there may be [events](Self::next_event) to be told of.
///
/// ```text
/// while let Some(step) = generation.step() {
///     let logits = model.forward(&mut [step], ..)?;
///     generation.take(logits)?;
///     while let Some(event) = generation.next_event() { .. }
/// }
/// ```
///
/// With a session of token locality the text depends on prompt, options and model alone, to the bit. `S` is a [`Session`], or a
/// `&mut` to one that lives on.
#[derive(Debug)]
pub struct Generation<S> {
    session: S,
    prompt: Vec<u32>,
    /// Tokens of the prompt that were read.
    read: usize,
    chunk: usize,
    /// Whether the logits of every token of the prompt are wanted.
    prompt_logits: bool,
    vocabulary: usize,
    routers: Option<Arc<LayerRouters>>,
    alone: bool,
    sampler: Sampler,
    stop: Vec<u32>,
    max_tokens: usize,
    /// Tokens that were drawn and told of.
    tokens: Vec<u32>,
    /// What is yet to be told: so much of the prompt was read.
    progress: Option<usize>,
    /// The token that was drawn and is yet to be told of.
    drawn: Option<u32>,
    /// The last token that was told of, while it is yet to be read.
    next: [u32; 1],
    ended: Option<Ended>,
}

impl<S: BorrowMut<Session>> Generation<S> {
    /// Generates after `prompt`, which follows what the session holds.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyPrompt`]; [`Error::ContextOverflow`]; [`Error::Setting`] for empty chunks, sampling that means nothing, or a session
    /// of another model; [`Error::OutOfMemory`].
    pub fn new(model: &Model, session: S, prompt: &[u32], options: &GenerateOptions) -> Result<Self> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if options.chunk == 0 {
            let (expected, found) = ("1 or more".to_owned(), "0".to_owned());
            return Err(Error::Setting { setting: "chunk", expected, found });
        }
        let (position, context) = (session.borrow().position(), session.borrow().context());
        model.check_session(session.borrow())?;
        crate::rope::check_context(position, prompt.len(), context)?;
        options.sampling.rules.check_tokens(model.config().vocab_size)?;
        let begin = position + prompt.len();
        let span = Span { begin, end: begin.checked_add(options.max_tokens), stop: options.stop.clone() };
        let sampler = Sampler::new(options.sampling.clone())?.with_span(span);
        let mut own = Vec::new();
        memory::reserve(&mut own, prompt.len(), "tokens of a prompt")?;
        own.extend_from_slice(prompt);
        let alone = model.locality() != Locality::Token;
        Ok(Self {
            session,
            prompt: own,
            read: 0,
            chunk: options.chunk,
            prompt_logits: false,
            vocabulary: model.config().vocab_size,
            routers: None,
            alone,
            sampler,
            stop: options.stop.clone(),
            max_tokens: options.max_tokens,
            tokens: Vec::new(),
            progress: None,
            drawn: None,
            next: [0],
            ended: None,
        })
    }

    /// The same, routed by other routers than the model's. Where one of them is not of token locality, the prompt is read in one step.
    pub fn with_routers(mut self, model: &Model, routers: Arc<LayerRouters>) -> Self {
        self.alone = routers.locality(model) != Locality::Token;
        self.routers = Some(routers);
        self
    }

    /// The same, with the logits of every token of the prompt: each step that reads of it wants [all](Wanted::All), for whoever asks how
    /// probable the prompt is. What is drawn has the same bits.
    pub fn with_prompt_logits(self) -> Self {
        Self { prompt_logits: true, ..self }
    }

    /// Whether its steps must not share a pass with others, since routers look at other tokens than the one that they route: what is
    /// generated is then a matter of how the text is cut into steps, too.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// What goes through the model next; `None` once it has ended. Events that nobody asked for are passed over.
    pub fn step(&mut self) -> Option<Step<'_>> {
        while self.next_event().is_some() {}
        if self.ended.is_some() {
            return None;
        }
        let chunk = self.chunk();
        let session = self.session.borrow_mut();
        let rest = self.prompt.get(self.read..).unwrap_or_default();
        let step = match rest.len() {
            0 => Step::new(session, &self.next),
            all if self.prompt_logits => Step::new(session, &rest[..all.min(chunk)]).wanted(Wanted::All),
            all if all > chunk => Step::new(session, &rest[..chunk]).wanted(Wanted::None),
            _ if self.max_tokens == 0 => Step::new(session, rest).wanted(Wanted::None),
            _ => Step::new(session, rest),
        };
        Some(Step { routers: self.routers.as_deref(), ..step })
    }

    /// Takes what came of the step: the logits that it wanted, those of its last token, `[V]`, or of [all](Self::with_prompt_logits), `[T, V]`,
    /// or nothing if it wanted none. The session has taken the step's tokens up by now; a step that failed is given again.
    ///
    /// # Errors
    ///
    /// [`Error::AllSuppressed`]; it has then ended.
    pub fn take(&mut self, logits: &[f32]) -> Result<()> {
        let rest = self.prompt.len() - self.read;
        if rest > 0 {
            self.read += rest.min(self.chunk());
            self.progress = Some(self.read);
        }
        if self.read == self.prompt.len() && self.max_tokens > 0 {
            let session = self.session.borrow();
            let last = &logits[logits.len().saturating_sub(self.vocabulary)..];
            let drawn = self.sampler.sample(last, session.tokens(), session.position());
            self.drawn = Some(drawn.inspect_err(|_| self.ended = Some(Ended::Stopped))?);
        }
        Ok(())
    }

    /// Tokens of the prompt that a step has, at most.
    fn chunk(&self) -> usize {
        if self.alone { self.prompt.len() } else { self.chunk }
    }

    /// What has happened since the last step, in order.
    pub fn next_event(&mut self) -> Option<Event> {
        if self.ended.is_some() {
            return None;
        }
        if let Some(done) = self.progress.take() {
            if done == self.prompt.len() && self.max_tokens == 0 {
                self.ended = Some(Ended::MaxTokens);
            }
            return Some(Event::Prompt { done, total: self.prompt.len() });
        }
        let token = self.drawn.take()?;
        if self.stop.contains(&token) {
            self.ended = Some(Ended::Stop(token));
            return None;
        }
        self.tokens.push(token);
        self.next = [token];
        let session = self.session.borrow();
        if self.tokens.len() == self.max_tokens {
            self.ended = Some(Ended::MaxTokens);
        } else if session.position() == session.context() {
            self.ended = Some(Ended::Context);
        }
        Some(Event::Token(token))
    }

    /// Ends it, at the wish of whoever runs it.
    pub fn end(&mut self) {
        self.ended = Some(Ended::Stopped);
    }

    /// Why it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// The tokens that were drawn and told of, without a stop token.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt that were read.
    pub fn prompt_tokens(&self) -> usize {
        self.read
    }

    /// Its session.
    pub fn session(&self) -> &Session {
        self.session.borrow()
    }

    /// Its session and the tokens that were drawn.
    pub fn into_parts(self) -> (S, Vec<u32>) {
        (self.session, self.tokens)
    }
}
