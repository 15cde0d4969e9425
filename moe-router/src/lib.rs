//! Routing policies for a sparse mixture-of-experts layer.
//!
//! A policy is a [`Router`](moe_core::Router): it reads logits `[T, E]` and pushes (token, expert, weight). It has settings
//! but no learned weights, so it can be tried on logits alone and swapped in a loaded model.
//!
//! | strategy | paper | locality | may drop | constructor |
//! |---|---|---|---|---|
//! | [`TopK`], softmax over the chosen | Mixtral, [2401.04088] | token | no | `TopK::new(2)?` |
//! | [`TopK`], softmax over all | Switch, [2101.03961] | token | no | `TopK::new(1)?.normalized(`[`Normalization::OverAll`]`)` |
//! | [`ExpertChoice`] | Zhou et al., [2202.09368] | batch | no, but a token may get no expert | `ExpertChoice::new(Capacity::factor_of_tokens(2.0))?` |
//!
//! Decorators wrap any router, one another included:
//!
//! | decorator | paper | locality | may drop | constructor |
//! |---|---|---|---|---|
//! | [`Capped`], places by position | GShard, [2006.16668]; Switch, [2101.03961] | batch; causal if [absolute and token by token](Capped#locality) | yes | `Capped::new(inner, Capacity::factor_of_choices(1.25))?` |
//! | [`Capped`], places by score | V-MoE, [2106.05974] | batch | yes | `Capped::new(inner, capacity)?.by_score()` |
//! | [`Renormalized`] | NLLB, [2207.04672] | as the inner router's | no | `Renormalized::new(inner)` |
//!
//! Order matters: `Renormalized::new(Capped::new(..)?)` lets the experts that are left share the weight of a dropped one,
//! `Capped::new(Renormalized::new(..), ..)?` does not.
//!
//! **Locality** ([`Locality`](moe_core::Locality)) says what a token's experts depend on, and so which promises hold. Under a *token* router a token's
//! result is the same, bit for bit, in any batch and any chunking of its sequence. Under a *causal* one it depends on earlier
//! tokens of the same call: extending a call does not change what came before, splitting it does. Under a *batch* one later
//! tokens matter: in a decoder, training sees the future and generation does not.
//!
//! Everywhere, equal scores go to the lower index, a NaN is chosen last, `-0.0` equals `0.0`, and only
//! [`moe_core::numerics`] computes exponentials.
//!
//! [2006.16668]: https://arxiv.org/abs/2006.16668
//! [2101.03961]: https://arxiv.org/abs/2101.03961
//! [2106.05974]: https://arxiv.org/abs/2106.05974
//! [2202.09368]: https://arxiv.org/abs/2202.09368
//! [2207.04672]: https://arxiv.org/abs/2207.04672
//! [2401.04088]: https://arxiv.org/abs/2401.04088
#![forbid(unsafe_code)]

// Strategies.
mod base;
mod blind;
mod dynamic;
mod expert_choice;
mod sinkhorn;
mod soft;
mod sparse_mixer;
mod top_k;

// Decorators.
mod capped;
mod perturbed;
mod renormalized;
mod second_choice;

// What they share.
mod capacity;
mod draw;
mod select;

pub use base::Base;
pub use blind::{Hash, RandomChoice};
pub use capacity::{Capacity, Rounding};
pub use capped::Capped;
pub use dynamic::{Dense, ExpertThreshold, Relu, ThresholdEma, TopP};
pub use expert_choice::ExpertChoice;
pub use perturbed::Perturbed;
pub use renormalized::Renormalized;
pub use second_choice::{RandomSecond, SkipLight, WithoutNulls};
pub use sinkhorn::{CappedExpertChoice, Sinkhorn};
pub use soft::{soft_combine_weights, soft_dispatch_weights};
pub use sparse_mixer::SparseMixer;
pub use top_k::{Normalization, TopK};
