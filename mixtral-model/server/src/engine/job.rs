//! A request that is running.

use std::time::Instant;

use mixtral_model::{Ended, Error, Event as Happened, Generation, Session, Stops, StreamDecoder};
use tokio::sync::mpsc::Sender;

use super::{Event, Failure, Finish, Score, TokenRouting};
use crate::metrics::Metrics;

/// Events that a step has at most: scores, routing, a token, an end.
const OF_A_STEP: usize = 4;

/// A request that is running.
pub(super) struct Job<'t> {
    pub(super) generation: Generation<Session>,
    /// All of the prompt, where its tokens are scored.
    pub(super) prompt: Vec<u32>,
    pub(super) logprobs: Option<usize>,
    pub(super) prompt_logprobs: bool,
    pub(super) routing: bool,
    /// Whether others may go on from its session.
    pub(super) shared: bool,
    pub(super) decoder: Option<StreamDecoder<'t>>,
    pub(super) stops: Stops,
    pub(super) events: Sender<Event>,
    /// When it was asked for.
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    /// Whether its first token has been drawn.
    pub(super) begun: bool,
    /// Whether nothing more is to come.
    pub(super) over: bool,
}

impl Job<'_> {
    /// Whether nobody listens any more.
    pub(super) fn is_left(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether there is room for what a step may have to tell: a client that does not read is not waited for.
    pub(super) fn is_ready(&self) -> bool {
        !self.over && self.events.capacity() >= OF_A_STEP
    }

    /// Takes the logits of its step, `[W, V]`.
    pub(super) fn take(&mut self, logits: &[f32], vocabulary: usize, metrics: &Metrics) {
        let before = self.generation.prompt_tokens();
        if let Err(error) = self.generation.take(logits) {
            return self.fail(failure(error));
        }
        let after = self.generation.prompt_tokens();
        metrics.prompt_tokens.add((after - before) as u64);
        if self.prompt_logprobs && after > before {
            self.score_prompt(before, logits, vocabulary);
        }
        let last = &logits[logits.len().saturating_sub(vocabulary)..];
        while let Some(happened) = self.generation.next_event() {
            if let Happened::Token(id) = happened {
                self.drawn(id, last, metrics);
            }
        }
        match self.generation.ended() {
            None => {}
            Some(_) if self.stops.found().is_some() => self.end(Finish::Stop),
            Some(Ended::Stop(id)) => {
                self.begin(metrics);
                let score = self.score(last, id);
                self.tell(Event::Token { id, text: String::new(), score });
                self.end(Finish::Stop);
            }
            Some(_) => self.end(Finish::Length),
        }
    }

    /// Tells where tokens of its step went.
    pub(super) fn routed(&mut self, routing: Vec<TokenRouting>) {
        self.tell(Event::Routed(routing));
    }

    /// Ends it without a text.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.over = true;
        self.tell(Event::Failed(failure));
    }

    /// Scores the tokens that follow those that were read from place `read` of the prompt on.
    fn score_prompt(&mut self, read: usize, logits: &[f32], vocabulary: usize) {
        let following = self.prompt.get(read + 1..).unwrap_or_default();
        let count = self.logprobs.unwrap_or(0);
        let rows = logits.chunks_exact(vocabulary).zip(following);
        let scores = rows.map(|(row, &token)| Score::new(row, token, count)).collect();
        self.tell(Event::Prompt(scores));
    }

    fn score(&self, logits: &[f32], id: u32) -> Option<Score> {
        self.logprobs.map(|count| Score::new(logits, id, count))
    }

    fn begin(&mut self, metrics: &Metrics) {
        metrics.generated_tokens.add(1);
        if !std::mem::replace(&mut self.begun, true) {
            metrics.first_token.observe(self.since.elapsed().as_secs_f64());
        }
    }

    /// Takes a token that is part of the text.
    fn drawn(&mut self, id: u32, logits: &[f32], metrics: &Metrics) {
        self.begin(metrics);
        let piece = self.decoder.as_mut().map(|decoder| decoder.push(id)).unwrap_or_default();
        let text = self.stops.push(&piece);
        let score = self.score(logits, id);
        self.tell(Event::Token { id, text, score });
        if self.stops.found().is_some() {
            self.generation.end();
        }
    }

    fn end(&mut self, finish: Finish) {
        let rest = self.decoder.take().map(StreamDecoder::finish).unwrap_or_default();
        let text = self.stops.push(&rest) + &self.stops.finish();
        let finish = if self.stops.found().is_some() { Finish::Stop } else { finish };
        self.over = true;
        self.tell(Event::Ended { finish, text });
    }

    /// There is room for it, or else the client is gone or late, and will not miss it.
    fn tell(&self, event: Event) {
        let _ = self.events.try_send(event);
    }
}

/// What an error of the model means for a request.
pub(super) fn failure(error: Error) -> Failure {
    match error {
        Error::OutOfMemory(_) => Failure::Full("there is no memory for it"),
        Error::AllSuppressed { .. }
        | Error::ContextOverflow { .. }
        | Error::TokenOutOfRange { .. }
        | Error::EmptyPrompt
        | Error::Setting { .. } => Failure::Refused(error),
        other => Failure::Model(other.to_string()),
    }
}
