//! Pictures of a routing, as SVG.
//!
//! They need nothing but what they are given, follow the viewer's light or dark settings, say what they show to whoever points at a part or listens to the
//! title, and are the same bytes for the same numbers on every machine.

mod chart;
mod heat;
mod lab;
mod svg;
mod text;

pub use chart::{Axis, Chart, Point, Series};
pub use heat::{co_activation, load, transitions};
pub use lab::{agreement_by_depth, perplexity_by_experts};
pub use text::routed_text;
