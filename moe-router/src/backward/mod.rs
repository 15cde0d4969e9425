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
//!
//! # A gate that is trained through a layer
//!
//! A pass of a [`MoeLayer`](moe_core::MoeLayer) leaves in its workspace what the way back needs: plan, logits, and outputs of the experts.
//! [`weight_gradient`] goes from the output to the combination weights, a weighting on to the logits, and a linear gate's
//! weight has the gradient `(∂L/∂logits)ᵀ · hidden`:
//!
//! ```
//! use moe_core::{Expert, LinearGate, MoeLayer, PerExpert, Result, TokenContext, Workspace};
//! use moe_router::TopK;
//! use moe_router::backward::weight_gradient;
//! use ndarray::{Array2, ArrayView2, ArrayViewMut2};
//!
//! /// It looks at another coordinate than the other experts.
//! struct One(usize);
//!
//! impl Expert for One {
//!     fn dim(&self) -> usize {
//!         4
//!     }
//!
//!     fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
//!         out.fill(0.0);
//!         out.column_mut(self.0).assign(&rows.column(self.0));
//!         Ok(())
//!     }
//! }
//!
//! let layer = |weight: Array2<f32>| {
//!     let bank = PerExpert::new((0..4).map(One).collect())?;
//!     MoeLayer::new(Box::new(LinearGate::new(weight)), Box::new(TopK::new(2)?), Box::new(bank))
//! };
//! let wave = |rows, step: f32| Array2::from_shape_fn((rows, 4), |(r, c)| ((4 * r + c + 1) as f32 * step).powi(2).sin());
//!
//! // What is to be learned is what a layer with another gate does.
//! let x = wave(64, 0.37);
//! let (mut workspace, mut target, mut y) = (Workspace::new(), Array2::zeros(x.dim()), Array2::zeros(x.dim()));
//! let teacher = layer(3.0 * Array2::<f32>::eye(4))?;
//! teacher.forward(x.view(), TokenContext::new(), &mut workspace, &mut (), target.view_mut())?;
//!
//! let mut student = layer(wave(4, 1.7))?;
//! let mut losses = vec![];
//! for _ in 0..100 {
//!     student.forward(x.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut())?;
//!     // L = Σ (y - target)² / T
//!     let off = &y - &target;
//!     losses.push(off.mapv(|v| v * v).sum() / 64.0);
//!
//!     let of_weights = weight_gradient(workspace.plan(), workspace.outputs(), (&off * (2.0 / 64.0)).view())?;
//!     let weighting = TopK::new(2)?.weighting();
//!     let of_logits = weighting.gradient(workspace.logits(), workspace.plan(), &of_weights)?;
//!     let gate: &mut LinearGate = student.gate_mut().expect("its gate is linear");
//!     gate.weight_mut().scaled_add(-2.0, &of_logits.mapv(|v| v as f32).t().dot(&x));
//! }
//! assert!(losses[99] < losses[0] / 4.0, "{} and {}", losses[0], losses[99]);
//! # Ok::<(), moe_core::Error>(())
//! ```
//!
//! In a model the hidden states and logits of each layer are shown to an observer ([`Routed`](moe_core::Routed)).

mod combination;
mod sparse_mixer;
mod weighting;

pub use combination::weight_gradient;
pub use sparse_mixer::SparseMixer;
pub use weighting::Weighting;
