//! The routing lab: what happens to a model, on real text, if tokens are routed otherwise.
//!
//! - [`compare`](fn@compare) reads a text under several ways of routing, and says what each predicts, and what it costs.
//! - [`ablate`](fn@ablate) takes every expert away in turn; [`regret`](fn@regret) tries all that a token could have had.
//! - [`Divergence`] sums up how far predictions are from a baseline's; [`LogitsWriter`] and [`LogitsFile`] keep one in the file format
//!   of llama-perplexity.
//! - [`TraceRecorder`] writes what routers do to a [trace](moe_router::trace), by which a model can be routed again.
//! - [`exchange`] turns traces into the formats of other projects, and back.
//! - [`RoutingMap`] adds up where tokens went, and [`picture`] draws that and what a comparison found.
//! - [`BlockMean`] says how sure a mean over a text is.

mod ablate;
mod compare;
mod cost;
mod divergence;
mod engines;
pub mod exchange;
mod interval;
mod logits_file;
mod map;
pub mod picture;
mod record;
mod regret;
mod window;

pub use ablate::{Ablated, Ablation, ablate};
pub use compare::{CompareOptions, Comparison, Routing, compare};
pub use cost::{ExpertBytes, RoutingCost};
pub use divergence::{Difference, Divergence, Estimate, Percentiles};
pub use engines::{against, save_logits};
pub use interval::BlockMean;
pub use logits_file::{LogitsFile, LogitsWriter};
pub use map::{LayerMap, MappedToken, RoutingMap};
pub use record::{NewTrace, TraceRecorder, record_trace, trace_header};
pub use regret::{Counterfactual, MOST_SETS, RegretOptions, TokenRegret, regret};
pub(crate) use window::{Predicted, Reading};
