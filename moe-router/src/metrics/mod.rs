//! What papers report of a routing, as pure functions of plans and logits.
//!
//! | what | where |
//! |---|---|
//! | load before and after capacity, importance, drop rate, entropy and CV of the load, max over mean, idle experts | [`PlanStats`](moe_core::PlanStats), by [`RoutingPlan::stats`](moe_core::RoutingPlan::stats) |
//! | MaxVio, Gini, exp(H)/N of the load; load of devices under a placement, and the tokens that they receive | [`ExpertLoad`] |
//! | share of the places that are taken | [`capacity_utilisation`] |
//! | choices that other capacities would drop | [`capacity_sweep`] |
//! | router confidence, top-1 margin, z, entropy within a token | [`Confidence`] |
//! | same expert for consecutive tokens (Mixtral, [2401.04088], section 5) | [`TemporalLocality`] |
//! | experts chosen together | [`CoActivation`] |
//! | expert of one layer given that of the one before, mutual information | [`Transitions`] |
//! | agreement, flip rate and KL of two routings of the same tokens | [`Agreement`] |
//!
//! Most of them are sums that grow batch by batch with `add`, so that a whole corpus needs no trace. Padding counts nowhere, and no
//! pair of tokens spans two sequences. Choices are those asked for, refused ones included, unless said otherwise: a
//! metric is about the router's policy, [`PlanStats`](moe_core::PlanStats) about what capacity left of it.
//!
//! A share that a sample estimates is a [`Proportion`], with its interval. Everything is f64.
//!
//! ```
//! use moe_core::{Assignments, RouteInput, Routed, Router, RoutingPlan, TokenContext};
//! use moe_router::{TopK, metrics::TemporalLocality};
//! use ndarray::array;
//!
//! // Three tokens over three experts.
//! let logits = array![[2.0f32, 1.0, 0.0], [2.0, 0.0, 1.0], [0.0, 2.0, 1.0]];
//! let (context, mut out, mut plan) = (TokenContext::new(), Assignments::new(), RoutingPlan::new());
//! out.reset(3, 3)?;
//! TopK::new(1)?.route(&RouteInput::new(logits.view(), context)?, &mut out)?;
//! plan.seal(&out)?;
//!
//! let mut locality = TemporalLocality::default();
//! locality.add(&Routed::new(logits.view(), &plan, context)?);
//! assert_eq!(locality.first.rate(), 0.5);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! [2401.04088]: https://arxiv.org/abs/2401.04088

mod agreement;
mod capacity_sweep;
mod co_activation;
mod confidence;
mod expert_load;
mod proportion;
mod temporal;
mod transitions;

pub use agreement::{Agreement, ChoiceAgreement};
pub use capacity_sweep::{Dropped, capacity_sweep};
pub use co_activation::CoActivation;
pub use confidence::{Confidence, capacity_utilisation};
pub use expert_load::ExpertLoad;
pub use proportion::Proportion;
pub use temporal::TemporalLocality;
pub use transitions::Transitions;
