//! Text in, text out: reading a prompt in chunks, then one token after the other.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::{Error, Model, Observer, Result, Sampler, Sampling, Session, Span, Step, Wanted, Workspace};

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens that end generation; they are reported, and not taken up by the session.
    pub stop: Vec<u32>,
    /// Tokens of the prompt that go through the model in one pass. It changes speed and memory, nothing else.
    pub chunk: usize,
}

impl GenerateOptions {
    /// Up to `max_tokens` tokens, greedily, ended by the model's own end tokens.
    pub fn new(model: &Model, max_tokens: usize) -> Self {
        Self { max_tokens, sampling: Sampling::greedy(), stop: model.config().eos.clone(), chunk: 512 }
    }

    /// The same, drawn in another way.
    pub fn with_sampling(self, sampling: Sampling) -> Self {
        Self { sampling, ..self }
    }

    /// The same, ended by other tokens.
    pub fn with_stop(self, stop: Vec<u32>) -> Self {
        Self { stop, ..self }
    }

    /// The same, reading prompts in other chunks.
    pub fn with_chunk(self, chunk: usize) -> Self {
        Self { chunk, ..self }
    }
}

/// What happens in a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// So many tokens of the prompt are read, of so many.
    Prompt {
        /// Read.
        done: usize,
        /// In all.
        total: usize,
    },
    /// A token was drawn; stop tokens are not announced.
    Token(u32),
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// All tokens asked for are there.
    MaxTokens,
    /// This stop token was drawn.
    Stop(u32),
    /// The session has reached its limit of positions.
    Context,
    /// The caller, or an observer, wished so.
    Stopped,
}

/// What a generation came to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Generated {
    /// The tokens drawn, without a stop token. The session holds all of them after [`Ended::Stop`], else all but the last.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub ended: Ended,
    /// Tokens of the prompt that were read.
    pub prompt_tokens: usize,
    /// Time that reading them took.
    pub prompt_time: Duration,
    /// Time from then on.
    pub generation_time: Duration,
}

/// Reads `prompt` into the session and generates tokens after it.
///
/// `event` hears of progress and tokens, and ends the generation by `Break`; so does the observer, within a layer's time. The
/// session then holds what was read, and can go on.
///
/// # Errors
///
/// [`Error::EmptyPrompt`]; [`Error::Setting`]; [`Error::AllSuppressed`]; those of [`Model::forward`], but that being stopped, and
/// reaching the limit of positions after the prompt, are ends and not errors.
pub fn generate(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
    mut event: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Generated> {
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if options.chunk == 0 {
        return Err(Error::Setting { setting: "chunk", expected: "1 or more".into(), found: "0".into() });
    }
    crate::rope::check_context(session.position(), prompt.len(), session.context())?;
    options.sampling.rules.check_tokens(model.config().vocab_size)?;
    let begin = session.position() + prompt.len();
    let span = Span { begin, end: begin.checked_add(options.max_tokens), stop: options.stop.clone() };
    let mut sampler = Sampler::new(options.sampling.clone())?.with_span(span);

    let begun = Instant::now();
    let mut generated = Generated {
        tokens: Vec::new(),
        ended: Ended::MaxTokens,
        prompt_tokens: 0,
        prompt_time: Duration::ZERO,
        generation_time: Duration::ZERO,
    };
    let mut next = None;
    for chunk in prompt.chunks(options.chunk) {
        let last = generated.prompt_tokens + chunk.len() == prompt.len();
        let wanted = if last && options.max_tokens > 0 { Wanted::Last } else { Wanted::None };
        let logits =
            match model.forward(&mut [Step::new(&mut *session, chunk).wanted(wanted)], workspace, observer) {
                Err(Error::Stopped) => return Ok(stopped(generated, begun)),
                other => other?,
            };
        if wanted == Wanted::Last {
            next = Some(draw(&mut sampler, &logits, session)?);
        }
        generated.prompt_tokens += chunk.len();
        let progress = Event::Prompt { done: generated.prompt_tokens, total: prompt.len() };
        if event(progress).is_break() {
            return Ok(stopped(generated, begun));
        }
    }
    generated.prompt_time = begun.elapsed();

    let begun = Instant::now();
    while let Some(token) = next.take() {
        if options.stop.contains(&token) {
            generated.ended = Ended::Stop(token);
            break;
        }
        generated.tokens.push(token);
        if event(Event::Token(token)).is_break() {
            generated.ended = Ended::Stopped;
            break;
        }
        if generated.tokens.len() == options.max_tokens {
            break;
        }
        if session.position() == session.context() {
            generated.ended = Ended::Context;
            break;
        }
        let tokens = [token];
        let step = Step::new(&mut *session, &tokens);
        next = match model.forward(&mut [step], workspace, observer) {
            Err(Error::Stopped) => {
                generated.ended = Ended::Stopped;
                None
            }
            other => {
                let logits = other?;
                Some(draw(&mut sampler, &logits, session)?)
            }
        };
    }
    generated.generation_time = begun.elapsed();
    Ok(generated)
}

/// The token that follows what the session holds.
fn draw(sampler: &mut Sampler, logits: &ndarray::ArrayView2<'_, f32>, session: &Session) -> Result<u32> {
    sampler.sample(logits.as_slice().unwrap_or_default(), session.tokens(), session.position())
}

/// A generation that ended before the prompt was read.
fn stopped(generated: Generated, begun: Instant) -> Generated {
    Generated { ended: Ended::Stopped, prompt_time: begun.elapsed(), ..generated }
}
