//! Laws that every router keeps. A router joins by being listed in [`listed::routers`].

mod edges;
mod listed;
mod locality;
mod quantities;
mod symmetry;
