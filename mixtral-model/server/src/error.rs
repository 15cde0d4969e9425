//! What keeps a server from being started, or from going on.

use std::io;
use std::net::SocketAddr;

/// What is wrong with a server as a whole. What is wrong with a request is told to whoever sent it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address cannot be listened on.
    #[error("{address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The threads of the server cannot be started.
    #[error("threads: {0}")]
    Threads(#[source] io::Error),
    /// A setting that means nothing.
    #[error("{setting}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// What the model says.
    #[error(transparent)]
    Model(#[from] mixtral_model::Error),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
