//! Sessions that have ended, kept for requests that begin as they do.

use std::collections::VecDeque;

use mixtral_model::Session;

/// A shorter prefix is read again: to copy it saves nothing.
const LEAST: usize = 16;

/// Ended sessions, the last used first, of at most so many bytes of keys and values.
#[derive(Debug)]
pub(crate) struct Prefixes {
    sessions: VecDeque<Session>,
    most: usize,
}

impl Prefixes {
    pub(crate) fn new(most: usize) -> Self {
        Self { sessions: VecDeque::new(), most }
    }

    /// A session that has read the beginning of `prompt`, never all of it, and whose routers drew from the same seed.
    ///
    /// It is a copy, so that several requests may go on from one prefix.
    pub(crate) fn find(&mut self, prompt: &[u32], seed: u64) -> Option<Session> {
        let most = prompt.len().saturating_sub(1);
        let shared = |session: &Session| {
            let same = session.tokens().iter().zip(&prompt[..most]).take_while(|(a, b)| a == b).count();
            // Where the cache is a ring, earlier positions have been written over.
            if same == session.position() || same >= session.earliest() { same } else { 0 }
        };
        let all = self.sessions.iter().enumerate().filter(|(_, session)| session.seed() == seed);
        let (place, position) = all
            .map(|(place, session)| (place, shared(session)))
            .filter(|&(_, position)| position >= LEAST)
            .max_by_key(|&(place, position)| (position, std::cmp::Reverse(place)))?;
        let session = self.sessions.remove(place)?;
        // Without memory for a copy, or a position that the session cannot be taken back to, the prefix is read again.
        let fork = session.fork(position).ok();
        self.sessions.push_front(session);
        fork
    }

    /// Keeps an ended session, in place of those that were not used for the longest time.
    pub(crate) fn keep(&mut self, session: Session) {
        if session.position() < LEAST || session.cache_bytes() > self.most {
            return;
        }
        let begins =
            |other: &Session| session.tokens().starts_with(other.tokens()) && other.seed() == session.seed();
        self.sessions.retain(|other| !begins(other));
        self.sessions.push_front(session);
        while self.bytes() > self.most {
            self.sessions.pop_back();
        }
    }

    /// Frees all, where memory is wanted for something else.
    pub(crate) fn clear(&mut self) {
        self.sessions.clear();
    }

    pub(crate) fn bytes(&self) -> usize {
        self.sessions.iter().map(Session::cache_bytes).sum()
    }
}
