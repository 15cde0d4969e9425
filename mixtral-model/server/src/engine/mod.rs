//! Continuous batching: requests join and leave the passes of one model, which a thread of its own runs. Nothing here knows of HTTP.

mod job;
mod prefixes;
mod score;
mod watch;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use mixtral_model::{LayerRouters, Model, Sampling, Tokenizer};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;
use crate::{Error, Result, ServerOptions};

pub(crate) use score::Score;
pub(crate) use watch::TokenRouting;

/// Events that a request may be behind with before it is no longer stepped.
const EVENTS: usize = 64;

/// What is to be generated.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    /// Tokens that end the text.
    pub(crate) stop_tokens: Vec<u32>,
    /// Texts that end it.
    pub(crate) stop_texts: Vec<String>,
    /// How many of the most probable tokens to name beside each token, where probabilities are wanted at all.
    pub(crate) logprobs: Option<usize>,
    /// Whether those of the prompt are wanted too.
    pub(crate) prompt_logprobs: bool,
    pub(crate) routers: Option<Arc<LayerRouters>>,
    /// Whether the experts of every token are wanted.
    pub(crate) routing: bool,
    /// Seed of what routers draw.
    pub(crate) router_seed: u64,
}

/// What happens to a request, in order. After an end or a failure nothing comes.
#[derive(Debug)]
pub(crate) enum Event {
    /// The next tokens of the prompt, scored; the first token of all has nothing before it, and no score.
    Prompt(Vec<Score>),
    /// Tokens were read, with the experts that worked on them.
    Routed(Vec<TokenRouting>),
    /// A token was drawn. `text` is what is certain by now, and is empty for a token that ends the text.
    Token { id: u32, text: String, score: Option<Score> },
    /// It is complete.
    Ended { finish: Finish, text: String },
    /// It failed.
    Failed(Failure),
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// By a token or a text that ends it.
    Stop,
    /// There are as many tokens as there may be.
    Length,
}

/// Why there is no text.
#[derive(Debug)]
pub(crate) enum Failure {
    /// There is no room, now.
    Full(&'static str),
    /// It took too long.
    Late,
    /// The server ends.
    Ending,
    /// The request cannot be done.
    Refused(mixtral_model::Error),
    /// The model failed.
    Model(String),
}

/// A request on its way, with a place in the queue.
struct Waiting {
    request: Request,
    events: Sender<Event>,
    since: Instant,
    _place: OwnedSemaphorePermit,
}

/// What the engine works with.
pub(crate) struct Core {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Metrics,
    /// Whether running requests are to be given up.
    ending: AtomicBool,
}

/// The engine: requests go in, events come out.
pub(crate) struct Engine {
    core: Arc<Core>,
    /// Nothing, once all was given up.
    queue: Mutex<Option<mpsc::Sender<Waiting>>>,
    places: Arc<Semaphore>,
}

impl Engine {
    /// Starts the engine's thread, which ends when all was given up, or the engine is dropped and all that was asked of it is done.
    pub(crate) fn start(
        model: Model,
        tokenizer: Tokenizer,
        options: ServerOptions,
    ) -> Result<(Self, JoinHandle<()>)> {
        let places = Arc::new(Semaphore::new(options.queue));
        let core =
            Core { model, tokenizer, options, metrics: Metrics::default(), ending: AtomicBool::new(false) };
        let core = Arc::new(core);
        let (queue, waiting) = mpsc::channel();
        let of_thread = core.clone();
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker::run(&of_thread, &waiting))
            .map_err(Error::Threads)?;
        Ok((Self { core, queue: Mutex::new(Some(queue)), places }, thread))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Queues requests, all of them or none, and gives the events of each.
    pub(crate) fn submit(&self, requests: Vec<Request>) -> Result<Vec<Receiver<Event>>, Failure> {
        let places: Vec<_> =
            requests.iter().map_while(|_| self.places.clone().try_acquire_owned().ok()).collect();
        if places.len() < requests.len() {
            return Err(Failure::Full("the queue is full"));
        }
        let since = Instant::now();
        let queue = self.queue();
        let queue = queue.as_ref().ok_or(Failure::Ending)?;
        let queued = requests.into_iter().zip(places).map(|(request, place)| {
            let (events, receiver) = channel(EVENTS);
            let waiting = Waiting { request, events, since, _place: place };
            self.core.metrics.waiting.add(1);
            queue.send(waiting).map_err(|_| {
                self.core.metrics.waiting.sub(1);
                Failure::Ending
            })?;
            Ok(receiver)
        });
        queued.collect()
    }

    /// Gives up what is running and waiting, and takes nothing more.
    pub(crate) fn give_up(&self) {
        self.core.ending.store(true, Ordering::SeqCst);
        self.queue().take();
    }

    fn queue(&self) -> MutexGuard<'_, Option<mpsc::Sender<Waiting>>> {
        // Whoever holds it only sends.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
