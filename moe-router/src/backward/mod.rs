//! The gradient of combination weights with respect to the logits, for training libraries.
//!
//! A router picks experts and weighs them. The pick has no gradient; the weights have: given `∂L/∂weight` of each chosen pair,
//! [`Weighting::gradient`] is `∂L/∂logits` with the choice held fixed, as the automatic differentiation of the published
//! implementations has it. It is exact, not an estimate; [`SparseMixer`] is the estimator of that name.
//!
//! | router | weighting |
//! |---|---|
//! | Mixtral, Granite, JetMoE, gpt-oss | `Weighting::new(`[`Scores::OverChosen`]`)` |
//! | Switch, OLMoE, Qwen2-MoE, Jamba, V-MoE, expert choice | `Weighting::new(`[`Scores::OverAll`]`)` |
//! | OLMoE and Qwen2-MoE with `norm_topk_prob` | `Weighting::new(Scores::OverAll).divided(`[`Divisor::Sum`]`)` |
//! | DBRX | `Weighting::new(Scores::OverAll).divided(`[`Divisor::Norm`]`(p))` |
//! | Ernie 4.5 | `Weighting::new(Scores::OverAll).divided(`[`Divisor::SumAtLeast`]`(1e-12))` |
//! | NLLB | the same with 2⁻²³, and [`over_refused_too`](Weighting::over_refused_too) if it normalises before dropping |
//! | DeepSeek-V2, LongCat | `Weighting::new(Scores::OverAll).scaled(s)` |
//! | DeepSeek-V3, AFMoE | `Weighting::new(`[`Scores::Sigmoid`]`).divided(`[`Divisor::SumPlus`]`(1e-20)).scaled(s)` |
//! | DeepSeek-V4 | `Weighting::new(`[`Scores::SqrtSoftplus`]`).divided(Divisor::SumPlus(1e-20)).scaled(s)` |
//! | LFM2 | `Weighting::new(Scores::Sigmoid).divided(Divisor::SumPlus(1e-6)).scaled(s)` |
//! | MiniMax-M2, Laguna | `Weighting::new(Scores::Sigmoid).divided(Divisor::Sum)` |
//! | Llama 4, Cohere 2 | `Weighting::new(Scores::Sigmoid)` |
//!
//! A bias that takes part in the choice alone has no gradient. Everything is computed in f64 from the f32 logits.

mod sparse_mixer;
mod weighting;

pub use sparse_mixer::SparseMixer;
pub use weighting::{Divisor, Scores, Weighting};
