//! The server as clients see it, over the loopback, with the demo model.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod chats;
mod client;
mod completions;
mod hostile;
mod load;
mod scores;
