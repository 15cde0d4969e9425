//! Text in, text out: reading a prompt in chunks, then one token after the other.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::{DEFAULT_CHUNK, Error, Generation, Model, Observer, Result, Sampling, Session, Workspace};

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
        Self {
            max_tokens,
            sampling: Sampling::greedy(),
            stop: model.config().eos.clone(),
            chunk: DEFAULT_CHUNK,
        }
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

/// Reads `prompt` into the session and generates tokens after it: runs a [`Generation`] by passes of its own.
///
/// `event` hears of progress and tokens, and ends the generation by `Break`; so does the observer, within a layer's time. The
/// session then holds what was read, and can go on. Routers that are not of token locality read the prompt in one pass.
///
/// # Errors
///
/// [`Error::EmptyPrompt`]; [`Error::Setting`]; [`Error::AllSuppressed`]; those of [`Model::forward`], but that being stopped, and
/// reaching the limit of positions after the prompt, are ends and not errors; what `event` fails with.
pub fn generate<E: From<Error>>(
    model: &Model,
    session: &mut Session,
    prompt: &[u32],
    options: &GenerateOptions,
    workspace: &mut Workspace,
    observer: &mut dyn Observer,
    mut event: impl FnMut(Event) -> Result<ControlFlow<()>, E>,
) -> Result<Generated, E> {
    let mut generation = Generation::new(model, session, prompt, options)?;
    let begun = Instant::now();
    let mut prompt_time = None;
    while let Some(step) = generation.step() {
        match model.forward(&mut [step], workspace, observer) {
            Ok(logits) => generation.take(logits.as_slice().unwrap_or_default())?,
            Err(Error::Stopped) => generation.end(),
            Err(error) => return Err(error.into()),
        }
        if generation.prompt_tokens() == prompt.len() {
            prompt_time.get_or_insert_with(|| begun.elapsed());
        }
        while let Some(happened) = generation.next_event() {
            if event(happened)?.is_break() {
                generation.end();
            }
        }
    }
    let prompt_time = prompt_time.unwrap_or_else(|| begun.elapsed());
    Ok(Generated {
        ended: generation.ended().unwrap_or(Ended::Stopped),
        prompt_tokens: generation.prompt_tokens(),
        tokens: generation.into_parts().1,
        prompt_time,
        generation_time: begun.elapsed().saturating_sub(prompt_time),
    })
}
