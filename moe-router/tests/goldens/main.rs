//! Routers against the answers of published code; `tests/fixtures/README.md` says whose and by which rule.

mod capped;
mod expert_choice;
mod fixture;
mod routed;
mod top_k;
