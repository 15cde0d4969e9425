//! The vocabulary of a sparse mixture-of-experts layer.
//!
//! One batch goes one way. T tokens, D model width, E experts, R kept assignments:
//!
//! ```text
//!  hidden [T,D] - Gate -> logits [T,E] - Router -> Assignments        (push-only, ragged)
//!                                                    | seal: validate, counting sort, O(R+E+T)
//!                                                    v
//!                                               RoutingPlan           (read-only, both views)
//!                hidden - Dispatch(plan) - Experts -> out [R,D] - combine(plan) -> y [T,D]
//! ```
//!
//! Each stage reads only what the one before it wrote: the router never sees buffers, the experts never see combination
//! weights, combine never sees logits. [`MoeLayer`] is that figure as code, and the place to start reading.
//!
//! Three slots are open. A [`Gate`] is the learned projection, a [`Router`] the policy without weights, [`Experts`] the
//! whole bank on a [`Dispatch`], which says for each expert which tokens it is to read; [`Expert`], one feed-forward network, is the simple face of a bank through [`PerExpert`].
//! Routers live in `moe-router`, fast banks in `moe-kernels`; this crate has no `unsafe` and no threads.
//!
//! A layer of two experts, one of which doubles and one of which negates, with a router that takes the greatest logit:
//!
//! ```
//! use moe_core::{
//!     Assignments, Expert, LinearGate, Locality, MoeLayer, PerExpert, Result, RouteInput, Router, TokenContext, Workspace,
//! };
//! use ndarray::{Array2, ArrayView2, ArrayViewMut2, array};
//!
//! struct Times(f32);
//!
//! impl Expert for Times {
//!     fn dim(&self) -> usize {
//!         2
//!     }
//!
//!     fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
//!         out.assign(&(&rows * self.0));
//!         Ok(())
//!     }
//! }
//!
//! struct Greatest;
//!
//! impl Router for Greatest {
//!     fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
//!         for (token, logits) in input.logits.rows().into_iter().enumerate() {
//!             out.assign(token, usize::from(logits[1] > logits[0]), 1.0);
//!         }
//!         Ok(())
//!     }
//!
//!     fn locality(&self) -> Locality {
//!         Locality::Token
//!     }
//! }
//!
//! # fn main() -> Result<()> {
//! let gate = LinearGate::new(array![[1.0, 0.0], [0.0, 1.0]]);
//! let experts = PerExpert::new(vec![Times(2.0), Times(-1.0)])?;
//! let layer = MoeLayer::new(Box::new(gate), Box::new(Greatest), Box::new(experts))?;
//!
//! let x = array![[3.0, 1.0], [0.5, 4.0]];
//! let (mut y, mut workspace) = (Array2::zeros((2, 2)), Workspace::new());
//! layer.forward(x.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut())?;
//! assert_eq!(y, array![[6.0, 2.0], [-0.5, -4.0]]);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod assignments;
mod combine;
mod context;
mod dispatch;
mod error;
pub mod expert_cache;
mod experts;
mod gate;
mod layer;
pub mod memory;
mod null_experts;
pub mod numerics;
mod observer;
pub mod placement;
mod plan;
mod router;
mod stats;
mod workspace;

pub use assignments::{Assignment, Assignments, Mark, Refusal, Review, RouteScratch, Verdict};
pub use combine::{combine, combine_from};
pub use context::{RouteInput, TokenContext, TokenRows};
pub use dispatch::Dispatch;
pub use error::{BoxError, Error, Result, Stage};
pub use experts::{Expected, Expert, Experts, PerExpert, Reserve, RowWork};
pub use gate::{Gate, LinearGate};
pub use layer::{ApplyWeights, MoeLayer};
pub use memory::OutOfMemory;
pub use null_experts::{NullExpert, NullExperts};
pub use observer::{Observer, Routed};
pub use plan::{Choice, RoutingPlan, Term};
pub use router::{Locality, PerSequence, Router};
pub use stats::PlanStats;
pub use workspace::{Scratch, ScratchValue, Workspace};
