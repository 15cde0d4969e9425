//! Whether consecutive tokens go to the same experts.

use moe_core::Routed;

use super::Proportion;
/// How often a token has the experts of the one before it (Mixtral, [2401.04088], section 5).
///
/// What an expert cache lives on, and what makes expert parallelism uneven. [`chance`](Self::chance) has what random
/// choices would give.
///
/// [2401.04088]: https://arxiv.org/abs/2401.04088
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TemporalLocality {
    /// The first choice is the same.
    pub first: Proportion,
    /// Some expert is a choice of both.
    pub any: Proportion,
}

impl TemporalLocality {
    /// Adds the pairs of neighbours t, t + 1 of each sequence. A pair counts if neither is padding and both chose.
    pub fn add(&mut self, routed: &Routed<'_>) {
        let requested = |t| routed.plan.requested(t);
        let input = routed.input();
        for range in input.sequences() {
            let pairs = range.clone().zip(range.skip(1));
            for (t, next) in pairs.filter(|&(t, n)| ![t, n].iter().any(|&t| input.context.is_padding(t))) {
                if let (Some(first), Some(second)) = (requested(t).next(), requested(next).next()) {
                    self.first.count(first == second);
                    self.any.count(requested(t).any(|e| requested(next).any(|f| f == e)));
                }
            }
        }
    }

    /// What uniform and independent choices of `k` of `experts` give: 1/E for the first, and `1 - C(E-k, k) / C(E, k)` for any.
    pub fn chance(experts: usize, k: usize) -> (f64, f64) {
        let miss = |i: usize| (experts as f64 - k as f64 - i as f64).max(0.0) / (experts - i) as f64;
        (1.0 / experts as f64, 1.0 - (0..k.min(experts)).map(miss).product::<f64>())
    }
}
