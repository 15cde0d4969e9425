//! The gradient of combination weights with respect to the logits, for training libraries.
//!
//! A router picks experts and weighs them. The pick has no gradient; the weights have: given `∂L/∂weight` of each chosen pair,
//! [`Weighting::gradient`] is `∂L/∂logits` with the choice held fixed, as the automatic differentiation of the published
//! implementations has it. It is exact, not an estimate; [`SparseMixer`] is the estimator of that name.
//!
//! A [`Weighting`] has the words of routers, [`Score`](crate::Score) and [`Normalizer`](crate::Normalizer), and is that of a
//! router directly where the router is built of them:
//!
//! | router | weighting |
//! |---|---|
//! | [`TopK`](crate::TopK), in each normalisation: Mixtral, Switch, OLMoE, Qwen2-MoE, Jamba, V-MoE, gpt-oss | `router.weighting()` |
//! | [`ScoredTopK`](crate::ScoredTopK): DeepSeek, DBRX, ERNIE, LongCat, AFMoE, LFM2, MiniMax, Laguna, Llama 4, Cohere | `router.weighting()` |
//! | [`ExpertChoice`](crate::ExpertChoice), [`CappedExpertChoice`](crate::CappedExpertChoice), [`Sinkhorn`](crate::Sinkhorn), [`TopP`](crate::TopP), [`Dense`](crate::Dense) | `Weighting::new(Score::Softmax)` |
//! | [`ExpertThreshold`](crate::ExpertThreshold), [`Base`](crate::Base) | `Weighting::new(Score::Sigmoid)` |
//! | [`Relu`](crate::Relu) | `Weighting::new(Score::Logit)` |
//!
//! A weight that is no more than a score stays what it is under [`Capped`](crate::Capped) without rerouting,
//! [`RandomSecond`](crate::RandomSecond), [`SkipLight`](crate::SkipLight) and [`WithoutNulls`](crate::WithoutNulls). Where a
//! normaliser ran over choices that were then taken away, a capacity has left them in the plan, for
//! [`over_refused_too`](Weighting::over_refused_too); the other three have not, and the plan does not tell the gradient.
//! [`Renormalized`](crate::Renormalized) (NLLB) is `.normalized(Normalizer::SumAtLeast { floor: f32::EPSILON })`,
//! and `over_refused_too` if it stands inside a capacity. Under [`Perturbed`](crate::Perturbed) the gradient is by the noisy logits.
//!
//! The weights of [`Hash`](struct@crate::Hash) and [`RandomChoice`](crate::RandomChoice) are constants, and a bias that takes part
//! in the choice alone has no gradient. Everything is computed in f64 from the f32 logits.

mod sparse_mixer;
mod weighting;

pub use sparse_mixer::SparseMixer;
pub use weighting::Weighting;
