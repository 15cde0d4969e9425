//! Laws that every router keeps. A router joins by being listed in [`listed::routers`].
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod balancing;
mod capacities;
mod edges;
mod fitting;
mod gates;
mod hostile;
mod listed;
mod locality;
mod mapped;
mod masks;
mod padding;
mod particular;
mod places;
mod quantities;
mod scored;
mod symmetry;
