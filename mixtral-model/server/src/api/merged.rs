//! The events of several requests, as they come.

use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::sync::mpsc::Receiver;

use crate::engine::Event;

/// The events of several requests, each with the number of its request. Dropping it cancels them.
#[derive(Debug)]
pub(super) struct Merged {
    receivers: Vec<Receiver<Event>>,
    /// Whom to ask first, so that none of them waits for the others.
    first: usize,
}

impl Merged {
    pub(super) fn new(receivers: Vec<Receiver<Event>>) -> Self {
        Self { receivers, first: 0 }
    }

    /// The next event; `None` once all requests are over.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        poll_fn(|context| self.poll(context)).await
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let (count, mut open) = (self.receivers.len(), false);
        for n in (0..count).map(|n| (self.first + n) % count) {
            match self.receivers[n].poll_recv(context) {
                Poll::Ready(Some(event)) => {
                    self.first = n + 1;
                    return Poll::Ready(Some((n, event)));
                }
                Poll::Ready(None) => {}
                Poll::Pending => open = true,
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }
}
