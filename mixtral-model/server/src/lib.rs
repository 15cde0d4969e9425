//! A server of a [`Model`] that speaks OpenAI's protocol over HTTP.
//!
//! Requests share the passes of the model, joining and leaving at every step, and a text depends on its request alone, to the bit:
//! not on what else runs, nor on the order, nor on what the cache of prefixes holds.
//!
//! ```no_run
//! use mixtral_model::{Access, ChatFormat, Compute, Model, Source};
//! use mixtral_server::{Server, ServerOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Source::find("Mixtral-8x7B-Instruct-v0.1".as_ref())?;
//! let model = Model::load(source.config()?, &source.checkpoint(Access::Map)?, Compute::default())?;
//! let tokenizer = source.tokenizer()?.for_model(model.config().vocab_size)?;
//! let chat = ChatFormat::choose(&source.chat_evidence()?, &tokenizer)?;
//! let server = Server::new(model, tokenizer, chat, ServerOptions::default())?;
//! println!("listening on http://{}", server.address());
//! server.run()?;
//! # Ok(())
//! # }
//! ```
//!
//! It reads and writes no files, and sends nothing to anybody but its clients.

mod api;
mod engine;
mod error;
mod http;
mod metrics;
mod options;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use mixtral_model::{ChatFormat, Model, Tokenizer};
use tokio::sync::watch;

use api::Api;
use engine::Engine;

pub use error::{Error, Result};
pub use options::{ApiKey, ServerOptions};

/// Threads that read requests and write answers; the model has its own.
const THREADS: usize = 2;

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    engine: Arc<Engine>,
    thread: JoinHandle<()>,
    chat: ChatFormat,
    ending: watch::Sender<bool>,
}

/// Ends a server from elsewhere, once or several times.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// The server accepts nothing more, lets running requests come to their end for some time, and ends.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Begins to listen. Connections are accepted once it [runs](Self::run).
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] where an option means nothing; [`Error::Listen`]; [`Error::Threads`]; [`Error::Model`] for a context that the
    /// model does not have, or sampling that means nothing.
    pub fn new(model: Model, tokenizer: Tokenizer, chat: ChatFormat, options: ServerOptions) -> Result<Self> {
        let numbers = [
            ("sessions", options.sessions),
            ("queue", options.queue),
            ("prompt tokens", options.prompt_tokens),
            ("connections", options.connections),
        ];
        if let Some((setting, _)) = numbers.into_iter().find(|&(_, number)| number == 0) {
            return Err(Error::Setting { setting, expected: "1 or more".to_owned(), found: "0".to_owned() });
        }
        options.sampling.check()?;
        model.session(options.session)?;
        let listen = |source| Error::Listen { address: options.address, source };
        let listener = TcpListener::bind(options.address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (engine, thread) = Engine::start(model, tokenizer, options)?;
        Ok(Self {
            listener,
            address,
            engine: Arc::new(engine),
            thread,
            chat,
            ending: watch::channel(false).0,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.ending.clone())
    }

    /// Answers requests until it is [stopped](Self::stopper).
    ///
    /// # Errors
    ///
    /// [`Error::Threads`]; [`Error::Listen`].
    pub fn run(self) -> Result<()> {
        let Self { listener, address, engine, thread, chat, ending } = self;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .build()
            .map_err(Error::Threads)?;
        let app = api::routes(Arc::new(Api::new(engine.clone(), chat)));
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(|source| Error::Listen { address, source })?;
            let options = engine.core().options.clone();
            http::serve(listener, app, &options, ending.subscribe(), || engine.give_up()).await;
            Ok::<(), Error>(())
        })?;
        // From here on nobody can ask for anything, whoever still holds a connection.
        engine.give_up();
        runtime.shutdown_background();
        // A panic of the engine's thread has been told of by then.
        let _ = thread.join();
        Ok(())
    }
}
