//! Routing policies for a sparse mixture-of-experts layer.
//!
//! A policy is a [`Router`](moe_core::Router): it reads logits `[T, E]` and pushes (token, expert, weight). It has settings
//! but no learned weights, so it can be tried on logits alone and swapped in a loaded model.
//!
//! | strategy | paper | locality | may drop | constructor |
//! |---|---|---|---|---|
//! | [`TopK`], softmax over the chosen | Mixtral, [2401.04088] | token | no | `TopK::new(2)?` |
//! | [`TopK`], softmax over all | Switch, [2101.03961] | token | no | `TopK::new(1)?.normalized(`[`Normalization::OverAll`]`)` |
//! | [`TopK`], softmax over all, renormalised | OLMoE, Qwen2-MoE | token | no | `TopK::new(8)?.normalized(Normalization::OverAllRenormalized)` |
//! | [`TopK`] on logits with a bias of the gate | gpt-oss | token | no | `TopK::new(4)?` after [`LinearGate::with_bias`](moe_core::LinearGate::with_bias) |
//! | [`ScoredTopK`], p-norm | DBRX | token | no | `ScoredTopK::dbrx(4, Some(1.0))?` |
//! | [`ScoredTopK`], softmax, device-limited | DeepSeek-V2, [2405.04434] | token | no | `ScoredTopK::deepseek_v2(6, 16.0)?.within(ExpertGroups::by_best(8, 3)?)` |
//! | [`ScoredTopK`], softmax, as many of each group | Pangu Pro MoE, [2505.21411] | token | no | `ScoredTopK::pangu_pro(8, 8)?` |
//! | [`ScoredTopK`], sigmoid, bias, node-limited | DeepSeek-V3, [2412.19437] | token | no | `ScoredTopK::deepseek_v3(8, bias, ExpertGroups::by_two_best(8, 4)?, 2.5)?` |
//! | [`ScoredTopK`], √softplus, bias | DeepSeek-V4, [2606.19348] | token | no | `ScoredTopK::deepseek_v4(6, bias, 1.5)?` |
//! | [`ScoredTopK`], sigmoid, bias | AFMoE, [2602.17004] | token | no | `ScoredTopK::afmoe(8, bias, 2.826)?` |
//! | | MiniMax-M2, Laguna | token | no | `ScoredTopK::minimax_m2(8, bias)?`, `ScoredTopK::laguna(8, bias)?` |
//! | | Inkling | token | no | `ScoredTopK::inkling(6, 2, bias, scale)?` |
//! | | LFM2-MoE | token | no | `ScoredTopK::lfm2(4, 1.0)?.with_bias(bias)?` |
//! | [`ScoredTopK`], softmax, bias | ERNIE 4.5 | token | no | `ScoredTopK::ernie_4_5(6, bias, 1e-12)?` |
//! | | LongCat-Flash, [2509.01322] | token | no | `ScoredTopK::longcat_flash(12, bias, 6.0)?` |
//! | [`ScoredTopK`], sigmoid of the chosen | Llama 4 | token | no | `ScoredTopK::llama4(1)?` with [`ApplyWeights::Input`](moe_core::ApplyWeights) |
//! | | Cohere 2 | token | no | `ScoredTopK::cohere2(8)?` |
//! | [`SparseMixer`] | GRIN, Phi-3.5-MoE, [2409.12136] | token | no | `SparseMixer::new(0.01)?`, in training `.sampling()` |
//! | [`GumbelSecond`], the second drawn | DeepSpeed, after GShard, [2006.16668] | token | no | `GumbelSecond::new()` |
//! | [`TopP`] | Huang et al., [2403.07652] | token | no | `TopP::new(0.4)?` |
//! | [`AdaptiveK`], k by entropy | Adaptive-K | token | no | `AdaptiveK::new([1, 2, 4], [0.6, 1.2])?` |
//! | [`Relu`] | ReMoE, [2412.14711] | token | no, but a token may get no expert | `Relu::new()` |
//! | [`ExpertThreshold`] | Expert Threshold, [2603.11535] | token | no, but a token may get no expert | `ThresholdEma::new(1.0, 0.99)?`, then `.router()` |
//! | [`Hash`](struct@Hash) of the token's id | Hash layers, [2106.04426] | token | no | `Hash::new(seed)` |
//! | [`ScoredHash`], weighed by the gate | DeepSeek-V4's first layers, [2606.19348] | token | no | `ScoredHash::deepseek_v4(6, 1.5)?.table(table)?` |
//! | [`RandomChoice`], [`Dense`] | baselines | token | no | `RandomChoice::new(2)?`, `Dense::new()` |
//! | [`Base`], balanced assignment | BASE, [2103.16716] | batch | no | `Base::new()` |
//! | [`Sinkhorn`] | S-BASE, [2202.01169] | batch | no | `Sinkhorn::new(1)?` |
//! | [`ExpertChoice`] | Zhou et al., [2202.09368] | batch | no, but a token may get no expert | `ExpertChoice::new(Capacity::factor_of_tokens(2.0))?` |
//! | [`CappedExpertChoice`], at most about b experts a token | the same | batch | no, but a token may get no expert | `CappedExpertChoice::new(capacity, 2)?` |
//!
//! Decorators wrap any router, one another included:
//!
//! | decorator | paper | locality | may drop | constructor |
//! |---|---|---|---|---|
//! | [`Capped`], places by position | GShard, [2006.16668]; Switch, [2101.03961] | batch; causal if [absolute and token by token](Capped#locality) | yes | `Capped::new(inner, Capacity::factor_of_choices(1.25))?` |
//! | [`Capped`], places by score | V-MoE, [2106.05974] | batch | yes | `Capped::new(inner, capacity)?.by_score()` |
//! | [`Capped`], places by own weight | Megatron's default | batch | yes | `Capped::new(inner, capacity)?.by_own_score()` |
//! | [`Capped`], places at random | DeepSpeed's top-1 | batch | yes | `Capped::new(inner, capacity)?.at_random()` |
//! | [`Capped`], rerouting | next best expert with a free place | as without | where all is full | `Capped::new(inner, capacity)?.rerouting()` |
//! | [`Renormalized`] | NLLB, [2207.04672] | as the inner router's | no | `Renormalized::new(inner)` |
//! | [`Perturbed`], noise of fixed or learned size | V-MoE, [2106.05974]; Shazeer et al., [1701.06538] | as the inner router's | no | `Perturbed::gaussian(inner, std)?`, `Perturbed::learned(inner)` |
//! | [`Perturbed`], jitter | Switch, [2101.03961] | as the inner router's | no | `Perturbed::jitter(inner, 0.01)?` |
//! | [`RandomSecond`] | GShard, [2006.16668] | as the inner router's | no | `RandomSecond::new(inner)` |
//! | [`SkipLight`] | NAEE, [2402.14800]; ST-MoE, [2202.08906] | as the inner router's | no | `SkipLight::by_ratio(inner, 0.5)?` |
//! | [`WithoutNulls`] | AdaMoE, [2406.13233] | as the inner router's | no | `WithoutNulls::new(inner, true_experts)` |
//! | [`MappedLogits`], scaled or soft-capped | a temperature; Muse Spark; Laguna | as the inner router's | no | `MappedLogits::scaled(inner, 0.1)?`, `MappedLogits::soft_capped(inner, 30.0)?` |
//! | [`MappedLogits`], experts forced and omitted | SteerMoE, [2509.09660] | as the inner router's | no | `MappedLogits::steered(inner, [3], [5])?` |
//! | [`ExpertScales`] | Gemma 4 | as the inner router's | no | `ExpertScales::new(inner, scales)?` |
//!
//! Soft MoE ([2308.00951]) mixes tokens instead of choosing them, and is no router: [`soft_dispatch_weights`] and
//! [`soft_combine_weights`].
//!
//! Gates and balance, for layers that are not Mixtral's:
//!
//! | | paper | constructor |
//! |---|---|---|
//! | [`CosineGate`], logits that are cosines | X-MoE, [2204.09179] | `CosineGate::new(projection, experts, 0.07)?` |
//! | [`SoftCapped`], logits bounded by tanh | Laguna | `SoftCapped::new(gate, 30.0)?` |
//! | [`BiasBalancer`], selection biases instead of a loss | loss-free balancing, [2408.15664] | `BiasBalancer::new(experts, 0.001)?` |
//! | [`BiasBalancer`], moved by more than a sign | LongCat-Flash, [2509.01322]; SMEBU, [2602.17004] | `.proportional()`, `.soft_clamped(kappa)?.centred().with_momentum(beta)?` |
//! | [`quantile_biases`], in one step | quantile balancing, Kimi K3 | `quantile_biases(&input, Score::Sigmoid, k)?` |
//!
//! [`RouterSpec`] has every router as a line of text, such as `capped(top-k:k=2):factor=1.25`, and lists them all.
//!
//! Order matters: `Renormalized::new(Capped::new(..)?)` lets the experts that are left share the weight of a dropped one,
//! `Capped::new(Renormalized::new(..), ..)?` does not.
//!
//! Published routers that are stacks of these, outermost last:
//!
//! - noisy top-k (Shazeer): `Perturbed::learned(TopK::new(k)?)`;
//! - Switch in training: `Perturbed::jitter(Capped::new(TopK::new(1)?.normalized(OverAll), capacity)?, 0.01)?`;
//! - GShard: `Capped::new(RandomSecond::new(TopK::new(2)?), capacity)?`;
//! - NLLB: [`Renormalized`] inside or around a [`Capped`] `TopK::new(2)?.normalized(OverAll)`;
//! - AdaMoE: `Renormalized::new(WithoutNulls::new(TopK::new(k)?, true_experts))`, over a bank in [`moe_core::NullExperts`].
//!
//! **Locality** ([`Locality`](moe_core::Locality)) says what a token's experts depend on, and so which promises hold. Under a *token* router a token's
//! result is the same, bit for bit, in any batch and any chunking of its sequence. Under a *causal* one it depends on earlier
//! tokens of the same call: extending a call does not change what came before, splitting it does. Under a *batch* one later
//! tokens matter: in a decoder, training sees the future and generation does not.
//!
//! **Training** needs gradients: [`losses`] has the auxiliary losses, [`backward`] the way from combination weights to logits.
//! **Research** needs numbers: [`metrics`] has what papers report. All three are pure functions of logits and plan.
//!
//! | loss | paper | uniform gives | collapse gives |
//! |---|---|---|---|
//! | [`LoadBalance::over_all`](losses::LoadBalance::over_all), [`per_sequence`](losses::LoadBalance::per_sequence) | Switch, [2101.03961]; Mixtral, NLLB | k | E |
//! | [`LoadBalance::of_first_choices`](losses::LoadBalance::of_first_choices) | GShard, [2006.16668]; V-MoE, [2106.05974] | 1 | E |
//! | [`SequenceBalance`](losses::SequenceBalance) | DeepSeek-V2, [2405.04434]; V3, [2412.19437] | 1 | E/k |
//! | [`DeviceBalance`](losses::DeviceBalance) on D devices | DeepSeek-V2, [2405.04434] | 1 | D |
//! | [`CommunicationBalance`](losses::CommunicationBalance), M of D devices a token | DeepSeek-V2, [2405.04434] | 1 | D/M |
//! | [`Importance`](losses::Importance) | Shazeer et al., [1701.06538]; V-MoE | 0 | E - 1 |
//! | [`Load`](losses::Load) | Shazeer et al., [1701.06538]; V-MoE | 0 | E/k - 1, or a little more |
//! | [`ZLoss`](losses::ZLoss) | ST-MoE, [2202.08906] | (ln E)² for zeros | by the size of logits alone |
//! | [`Entropy`](losses::Entropy) | dynamic top-p, [2403.07652] | ln E | 0 |
//!
//! Everywhere, equal scores go to the lower index, a NaN is chosen last, `-0.0` equals `0.0`, and only
//! [`moe_core::numerics`] computes exponentials (but for losses, gradients and metrics, which are f64).
//!
//! [1701.06538]: https://arxiv.org/abs/1701.06538
//! [2006.16668]: https://arxiv.org/abs/2006.16668
//! [2101.03961]: https://arxiv.org/abs/2101.03961
//! [2103.16716]: https://arxiv.org/abs/2103.16716
//! [2106.04426]: https://arxiv.org/abs/2106.04426
//! [2106.05974]: https://arxiv.org/abs/2106.05974
//! [2202.01169]: https://arxiv.org/abs/2202.01169
//! [2202.08906]: https://arxiv.org/abs/2202.08906
//! [2202.09368]: https://arxiv.org/abs/2202.09368
//! [2204.09179]: https://arxiv.org/abs/2204.09179
//! [2207.04672]: https://arxiv.org/abs/2207.04672
//! [2308.00951]: https://arxiv.org/abs/2308.00951
//! [2401.04088]: https://arxiv.org/abs/2401.04088
//! [2402.14800]: https://arxiv.org/abs/2402.14800
//! [2403.07652]: https://arxiv.org/abs/2403.07652
//! [2405.04434]: https://arxiv.org/abs/2405.04434
//! [2406.13233]: https://arxiv.org/abs/2406.13233
//! [2408.15664]: https://arxiv.org/abs/2408.15664
//! [2409.12136]: https://arxiv.org/abs/2409.12136
//! [2412.14711]: https://arxiv.org/abs/2412.14711
//! [2412.19437]: https://arxiv.org/abs/2412.19437
//! [2505.21411]: https://arxiv.org/abs/2505.21411
//! [2509.01322]: https://arxiv.org/abs/2509.01322
//! [2509.09660]: https://arxiv.org/abs/2509.09660
//! [2602.17004]: https://arxiv.org/abs/2602.17004
//! [2603.11535]: https://arxiv.org/abs/2603.11535
//! [2606.19348]: https://arxiv.org/abs/2606.19348
#![forbid(unsafe_code)]

// Training and measuring.
pub mod backward;
pub mod losses;
pub mod metrics;
pub mod trace;

// Strategies.
mod adaptive_k;
mod base;
mod blind;
mod capped_choice;
mod dynamic;
mod expert_choice;
mod gumbel_second;
mod published;
mod scored;
mod scored_hash;
mod sinkhorn;
mod soft;
mod sparse_mixer;
mod top_k;

// Decorators.
mod capped;
mod expert_scales;
mod mapped;
mod perturbed;
mod renormalized;
mod second_choice;

// Gates and balance.
mod balancer;
mod gates;

// Routers as text.
mod spec;

// What they share.
mod capacity;
mod changed;
mod decimal;
mod draw;
mod form;
mod groups;
mod precise;
mod present;
mod score;
mod select;

pub use adaptive_k::AdaptiveK;
pub use balancer::{BiasBalancer, quantile_biases};
pub use base::Base;
pub use blind::{Hash, RandomChoice};
pub use capacity::{Capacity, Rounding};
pub use capped::Capped;
pub use capped_choice::CappedExpertChoice;
pub use dynamic::{Dense, ExpertThreshold, Relu, ThresholdEma, TopP};
pub use expert_choice::ExpertChoice;
pub use expert_scales::ExpertScales;
pub use form::LogitForm;
pub use gates::{CosineGate, SoftCapped};
pub use groups::ExpertGroups;
pub use gumbel_second::GumbelSecond;
pub use mapped::MappedLogits;
pub use perturbed::Perturbed;
pub use renormalized::Renormalized;
pub use score::{Normalizer, Score};
pub use scored::ScoredTopK;
pub use scored_hash::ScoredHash;
pub use second_choice::{RandomSecond, SkipLight, WithoutNulls};
pub use sinkhorn::Sinkhorn;
pub use soft::{soft_combine_weights, soft_dispatch_weights};
pub use sparse_mixer::SparseMixer;
pub use spec::{RouterEntry, RouterSpec, Setting, SpecError};
pub use top_k::{Normalization, TopK};

/// The example of the README is tested with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;
