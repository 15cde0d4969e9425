//! An answer as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde_json::Value;

use super::answer::Answer;
use super::fault::Fault;
use super::lost;
use super::merged::Merged;
use crate::engine::Event;

/// An answer as it comes. Dropping it, as happens when the client goes away, cancels what it waits for.
pub(super) struct Chunks {
    answer: Answer,
    events: Merged,
    /// What is to be written next.
    written: VecDeque<String>,
    over: bool,
}

impl Chunks {
    /// After the first event, which may be a failure.
    pub(super) fn new(answer: Answer, events: Merged, choice: usize, event: Event) -> Result<Self, Fault> {
        let mut this = Self { answer, events, written: VecDeque::new(), over: false };
        this.take(choice, event)?;
        Ok(this)
    }

    fn take(&mut self, choice: usize, event: Event) -> Result<(), Fault> {
        self.answer.take(choice, event)?;
        if let Some(chunk) = self.answer.chunk(choice) {
            self.write(&chunk);
        }
        Ok(())
    }

    fn write(&mut self, data: &Value) {
        self.written.push_back(format!("data: {data}\n\n"));
    }

    /// Writes the end.
    fn end(&mut self) {
        self.over = true;
        if !self.answer.is_complete() {
            return self.write(&lost().body());
        }
        if let Some(chunk) = self.answer.usage_chunk() {
            self.write(&chunk);
        }
        self.written.push_back("data: [DONE]\n\n".to_owned());
    }
}

impl Stream for Chunks {
    type Item = Result<String, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(written) = this.written.pop_front() {
                return Poll::Ready(Some(Ok(written)));
            }
            if this.over {
                return Poll::Ready(None);
            }
            match this.events.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => this.end(),
                Poll::Ready(Some((choice, event))) => {
                    if let Err(fault) = this.take(choice, event) {
                        this.over = true;
                        this.write(&fault.body());
                    }
                }
            }
        }
    }
}
