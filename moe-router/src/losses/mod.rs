//! Auxiliary losses of routers, each with its gradient with respect to the logits.
//!
//! A loss is a value made `of` a batch; `value()` is the scalar, `gradient()` its derivative by every logit. Nothing is kept
//! anywhere and no coefficient is built in: whoever trains adds `α · value` to the objective and `α · gradient` to
//! [`backward`](crate::backward)'s.
//!
//! T tokens, E experts, k choices a token, l logits, `p = softmax(l)`; n tokens that are not padding; fₑ the choices of
//! expert e over n; Pₑ the mean of p\[e\] over those tokens.
//!
//! | loss | formula | uniform | collapse | paper |
//! |---|---|---|---|---|
//! | [`LoadBalance::over_all`] | `E Σ fₑ Pₑ` over all rows of all layers | k | E | Mixtral and NLLB as `transformers` trains them |
//! | [`LoadBalance::per_sequence`] | the same a sequence, averaged | k | E | Switch, [2101.03961] |
//! | [`LoadBalance::of_first_choices`] | the same with f of first choices | 1 | E | GShard, [2006.16668]; V-MoE |
//! | [`SequenceBalance`] | `E/k Σ fₑ Pₑ` a sequence, averaged | 1 | E/k | DeepSeek-V2, [2405.04434]; V3, [2412.19437] |
//! | [`DeviceBalance`] | `Σ f'ᵢ P'ᵢ` over devices | 1 | D | DeepSeek-V2, [2405.04434] |
//! | [`CommunicationBalance`] | `Σ f''ᵢ P''ᵢ` over devices, a token counting once for each | 1 | D/M | DeepSeek-V2, [2405.04434] |
//! | [`Importance`] | `CV²` of `Σ p` over experts | 0 | E - 1 | Shazeer et al., [1701.06538] |
//! | [`Load`] | `CV²` of the chance of being chosen | 0 | E/k - 1, or a little more | Shazeer et al., [1701.06538]; V-MoE, [2106.05974] |
//! | [`ZLoss`] | mean of `(ln Σ exp(l))²` | (ln E)² at l = 0 | by the size of l alone | ST-MoE, [2202.08906] |
//! | [`Entropy`] | mean of `-Σ p ln p` | ln E | 0 | dynamic top-p, [2403.07652] |
//!
//! *Uniform* is even choices and even probabilities; *collapse* is every token choosing the same k experts, with all of the
//! probability on one of them.
//!
//! **Gradients** flow through probabilities alone. Counts, masks and the selection are constants, as in every reference.
//!
//! **Padding** ([`TokenContext::padding`](moe_core::TokenContext)) is left out of sums, counts and the n they are divided by;
//! its gradient is zero; a token whose experts are all masked is left out likewise, having no probabilities. The probability of
//! a masked expert is 0. **Sequences** are those of the context: without offsets the batch is one. A sequence that has
//! no tokens but padding is left out of averages, and a loss of nothing is 0.
//!
//! **Choices** are those asked for, the refused ones included: capacity does not hide imbalance from the loss (as in
//! Switch, NLLB and flaxformer).
//!
//! # Noise
//!
//! A router that draws noise has two sets of logits, and a loss is of those it is given: `Routed` or `RouteInput` with the logits
//! as they are, or with [`noisy`] ones. f is of the plan, that is of the noisy ones, in any case. The papers have
//!
//! | router | of noisy logits | of those without noise | source |
//! |---|---|---|---|
//! | [`gaussian`](crate::Perturbed::gaussian), V-MoE | GShard's loss, f and P | importance; the load loss has both | `vmoe/nn/routing.py`, `NoisyTopExpertsPerItemRouter` |
//! | [`learned`](crate::Perturbed::learned), Shazeer et al. | importance; the load loss has both | | [1701.06538], section 4 and appendix A |
//! | [`jitter`](crate::Perturbed::jitter), Switch | all, for the gate's input is jittered | | [2101.03961], appendix F; flaxformer |
//!
//! DeepSpeed's `RSample` chooses by noisy logits and takes P of those without noise. Of losses that a router's paper does not have,
//! the command line takes all but importance under `gaussian` of noisy logits, so that f and P are of the same.
//!
//! **Precision.** A loss is a statistic and no part of inference: it is computed in f64, with `exp` and `ln` of the `libm` crate, which are the same on every platform.
//! A NaN among the logits of a counted token makes it NaN.
//!
//! [1701.06538]: https://arxiv.org/abs/1701.06538
//! [2006.16668]: https://arxiv.org/abs/2006.16668
//! [2101.03961]: https://arxiv.org/abs/2101.03961
//! [2106.05974]: https://arxiv.org/abs/2106.05974
//! [2202.08906]: https://arxiv.org/abs/2202.08906
//! [2403.07652]: https://arxiv.org/abs/2403.07652
//! [2405.04434]: https://arxiv.org/abs/2405.04434
//! [2412.19437]: https://arxiv.org/abs/2412.19437

mod deepseek;
mod groups;
mod load;
mod load_balance;
mod noise;
mod per_token;

pub use deepseek::{Affinity, CommunicationBalance, DeviceBalance, SequenceBalance};
pub use load::{Importance, Load, LoadGradient};
pub use load_balance::{Balance, LoadBalance};
pub use noise::noisy;
pub use per_token::{Entropy, ZLoss};
