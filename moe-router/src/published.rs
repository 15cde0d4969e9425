//! The published routers that choose by scores, each in the words of [`ScoredTopK`].
//!
//! The rules are those of Hugging Face `transformers` (5.23), whose answers the golden tests compare.

use moe_core::Result;

use crate::{ExpertGroups, Normalizer, Score, ScoredTopK};

/// What several models add to a sum of scores. f32 absorbs it unless all scores are tiny.
const EPSILON: f32 = 1e-20;

impl ScoredTopK {
    /// DBRX: `w = p / ‖p over the chosen‖`, p = softmax(l), by the norm of order `norm_p`; `None` leaves p as it is.
    ///
    /// # Errors
    ///
    /// If `k` or `norm_p` is 0, or `norm_p` negative or NaN.
    pub fn dbrx(k: usize, norm_p: Option<f32>) -> Result<Self> {
        let normalizer = norm_p.map_or(Normalizer::None, |p| Normalizer::Norm { p });
        Self::new(k, Score::Logit)?.weighed_by(Score::Softmax).normalized(normalizer)
    }

    /// DeepSeek-V2, [2405.04434]: `w = scale · p`, p = softmax(l), never renormalised.
    ///
    /// This is `topk_method` *greedy*; `.within(ExpertGroups::by_best(groups, kept)?)` makes it *group_limited_greedy*.
    ///
    /// The reference gives experts of other groups the score 0, so that where those within have it too, by underflow, it may
    /// choose one outside, with weight 0. This one never leaves the groups.
    ///
    /// # Errors
    ///
    /// If `k` is 0 or `scale` not finite.
    ///
    /// [2405.04434]: https://arxiv.org/abs/2405.04434
    pub fn deepseek_v2(k: usize, scale: f32) -> Result<Self> {
        Self::new(k, Score::Logit)?.weighed_by(Score::Softmax).scaled(scale)
    }

    /// DeepSeek-V3, [2412.19437]: s = sigmoid(l), chosen by s + bias within `groups`, `w = scale · s / (Σ s + 1e-20)`.
    ///
    /// The groups are [`ExpertGroups::by_two_best`]. Without `norm_topk_prob`, `.normalized(Normalizer::None)?`.
    ///
    /// # Errors
    ///
    /// If `k` is 0, or a bias or `scale` not finite.
    ///
    /// [2412.19437]: https://arxiv.org/abs/2412.19437
    pub fn deepseek_v3(
        k: usize,
        bias: impl Into<Vec<f32>>,
        groups: ExpertGroups,
        scale: f32,
    ) -> Result<Self> {
        Ok(Self::afmoe(k, bias, scale)?.within(groups))
    }

    /// DeepSeek-V4: s = √softplus(l), chosen by s + bias, `w = scale · s / (Σ s + 1e-20)`.
    ///
    /// Its `scoring_func` may also be *sigmoid*: that is [`afmoe`](Self::afmoe).
    ///
    /// # Errors
    ///
    /// If `k` is 0, or a bias or `scale` not finite.
    pub fn deepseek_v4(k: usize, bias: impl Into<Vec<f32>>, scale: f32) -> Result<Self> {
        Self::new(k, Score::SqrtSoftplus)?
            .with_bias(bias)?
            .normalized(Normalizer::Sum { epsilon: EPSILON })?
            .scaled(scale)
    }

    /// AFMoE (Arcee): s = sigmoid(l), chosen by s + bias, `w = scale · s / (Σ s + 1e-20)`.
    ///
    /// # Errors
    ///
    /// If `k` is 0, or a bias or `scale` not finite.
    pub fn afmoe(k: usize, bias: impl Into<Vec<f32>>, scale: f32) -> Result<Self> {
        Self::new(k, Score::Sigmoid)?
            .with_bias(bias)?
            .normalized(Normalizer::Sum { epsilon: EPSILON })?
            .scaled(scale)
    }

    /// MiniMax-M2: s = sigmoid(l), chosen by s + bias, `w = s / Σ s`.
    ///
    /// Nothing guards the division: if all chosen scores are 0 (logits below -88), weights are NaN, which sealing reports.
    ///
    /// # Errors
    ///
    /// If `k` is 0 or a bias not finite.
    pub fn minimax_m2(k: usize, bias: impl Into<Vec<f32>>) -> Result<Self> {
        Self::new(k, Score::Sigmoid)?.with_bias(bias)?.normalized(Normalizer::Sum { epsilon: 0.0 })
    }

    /// Laguna: the rule of [`minimax_m2`](Self::minimax_m2), on logits that [`SoftCapped`](crate::SoftCapped) may have bounded.
    ///
    /// # Errors
    ///
    /// If `k` is 0 or a bias not finite.
    pub fn laguna(k: usize, bias: impl Into<Vec<f32>>) -> Result<Self> {
        Self::minimax_m2(k, bias)
    }

    /// LFM2-MoE: s = sigmoid(l), chosen by s, `w = scale · s / (Σ s + 1e-6)`.
    ///
    /// With `use_expert_bias`, `.with_bias(bias)?`; without `norm_topk_prob`, `.normalized(Normalizer::None)?`.
    ///
    /// # Errors
    ///
    /// If `k` is 0 or `scale` not finite.
    pub fn lfm2(k: usize, scale: f32) -> Result<Self> {
        Self::new(k, Score::Sigmoid)?.normalized(Normalizer::Sum { epsilon: 1e-6 })?.scaled(scale)
    }

    /// ERNIE 4.5: p = softmax(l), chosen by p + bias, `w = p / max(Σ p, norm_min)`.
    ///
    /// # Errors
    ///
    /// If `k` is 0, a bias not finite, or `norm_min` negative or not finite.
    pub fn ernie_4_5(k: usize, bias: impl Into<Vec<f32>>, norm_min: f32) -> Result<Self> {
        Self::new(k, Score::Softmax)?.with_bias(bias)?.normalized(Normalizer::SumAtLeast { floor: norm_min })
    }

    /// LongCat-Flash, [2509.01322]: p = softmax(l), chosen by p + bias, `w = scale · p`.
    ///
    /// E counts real and zero-computation experts alike, the latter after the former; what they compute is the bank's affair.
    ///
    /// # Errors
    ///
    /// If `k` is 0, or a bias or `scale` not finite.
    ///
    /// [2509.01322]: https://arxiv.org/abs/2509.01322
    pub fn longcat_flash(k: usize, bias: impl Into<Vec<f32>>, scale: f32) -> Result<Self> {
        Self::new(k, Score::Softmax)?.with_bias(bias)?.scaled(scale)
    }

    /// Llama 4: chosen by logit, `w = sigmoid(l)`, never renormalised.
    ///
    /// The weight multiplies the expert's *input*, which the layer must be told:
    /// [`ApplyWeights::Input`](moe_core::ApplyWeights::Input).
    ///
    /// # Errors
    ///
    /// If `k` is 0.
    pub fn llama4(k: usize) -> Result<Self> {
        Ok(Self::new(k, Score::Logit)?.weighed_by(Score::Sigmoid))
    }

    /// Cohere 2 MoE with `expert_selection_fn` *sigmoid* and `norm_topk_prob`: chosen by logit, `w = s / Σ s`, s = sigmoid(l).
    ///
    /// Without `norm_topk_prob` it is [`llama4`](Self::llama4), with *softmax* it is [`TopK`](crate::TopK). Weights are NaN if all
    /// chosen scores are 0, as in [`minimax_m2`](Self::minimax_m2).
    ///
    /// # Errors
    ///
    /// If `k` is 0.
    pub fn cohere2(k: usize) -> Result<Self> {
        Self::llama4(k)?.normalized(Normalizer::Sum { epsilon: 0.0 })
    }

    /// Inkling: s = sigmoid(l), k chosen by s + bias among all but the last `shared` experts, which every token takes;
    /// `w = scale · s / Σ s` over chosen and shared.
    ///
    /// `scale` is `route_scale` times the learned `global_scale`. The bias is of the experts that are chosen among. The reference
    /// divides logarithms of sigmoids, which reaches logits below -88, where weights are NaN here as in
    /// [`minimax_m2`](Self::minimax_m2) if they all are. (`transformers` 5.24.)
    ///
    /// # Errors
    ///
    /// If `k` is 0, or a bias or `scale` not finite.
    pub fn inkling(k: usize, shared: usize, bias: impl Into<Vec<f32>>, scale: f32) -> Result<Self> {
        Ok(Self::minimax_m2(k, bias)?.scaled(scale)?.with_shared(shared))
    }

    /// Pangu Pro MoE, [2505.21411]: p = softmax(l), the `k/groups` best of [each](ExpertGroups::each) group, `w = p`.
    ///
    /// [`ExpertScales`](crate::ExpertScales) around it has the factors of each expert that a model may learn besides.
    ///
    /// # Errors
    ///
    /// If `k` or `groups` is 0.
    ///
    /// [2505.21411]: https://arxiv.org/abs/2505.21411
    pub fn pangu_pro(k: usize, groups: usize) -> Result<Self> {
        Ok(Self::dbrx(k, None)?.within(ExpertGroups::each(groups)?))
    }
}
