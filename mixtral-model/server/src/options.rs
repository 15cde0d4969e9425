//! How a server is to be.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mixtral_model::{Sampling, SessionOptions};
use subtle::ConstantTimeEq;

/// How a server is to be: where it listens, how much it does at a time, and what it takes from clients.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Where to listen: the loopback address unless said otherwise, port 8080; port 0 is any that is free.
    pub address: SocketAddr,
    /// What the model is called.
    pub model_name: String,
    /// What clients must show, if anything.
    pub api_key: Option<ApiKey>,
    /// Requests that are generated for at a time.
    pub sessions: usize,
    /// Requests that may wait for that; those beyond are refused with status 429.
    pub queue: usize,
    /// Most tokens of prompts in a pass, which bounds how long a text waits that is being written.
    pub prompt_tokens: usize,
    /// Most tokens of a prompt whose routers look at other tokens than the one they route: it is read in one pass.
    pub whole_prompt: usize,
    /// Most tokens that a request may ask for.
    pub max_tokens: usize,
    /// Bytes of keys and values of ended requests that are kept for others that begin alike; 0 keeps none.
    pub prefix_bytes: usize,
    /// Longest time from a request to its end.
    pub request_time: Duration,
    /// Longest time that a client may take to send a head or a body, or to take up what is written to it.
    pub client_time: Duration,
    /// How long running requests may go on when the server is to end.
    pub grace: Duration,
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Most connections at a time; others wait to be accepted.
    pub connections: usize,
    /// How sessions keep their keys and values, and the most positions of one.
    pub session: SessionOptions,
    /// How tokens are drawn where a request does not say.
    pub sampling: Sampling,
    /// Whether the model's routers draw random numbers: they then do so from the seed of a request.
    pub routers_draw: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        let mut sampling = Sampling::greedy();
        sampling.temperature = 1.0;
        Self {
            address: (Ipv4Addr::LOCALHOST, 8080).into(),
            model_name: "mixtral".to_owned(),
            api_key: None,
            sessions: 8,
            queue: 256,
            prompt_tokens: 256,
            whole_prompt: 2048,
            max_tokens: 4096,
            prefix_bytes: 256 << 20,
            request_time: Duration::from_secs(600),
            client_time: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            body_bytes: 4 << 20,
            connections: 256,
            session: SessionOptions::default(),
            sampling,
            routers_draw: false,
        }
    }
}

/// A secret that clients share with the server.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key; spaces around it are no part of it. `None` if nothing is left, or if it has characters that no HTTP header has.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// Whether this is the key. How long it takes depends on the lengths alone.
    pub(crate) fn is(&self, other: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(other).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}
