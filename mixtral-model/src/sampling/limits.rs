//! Which tokens are left to draw from, and the draw.

use std::cmp::Ordering;

use moe_core::numerics;

use super::Sampling;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) token: u32,
    /// Its logit over the temperature, less that of the best of all tokens.
    pub(super) score: f32,
}

impl Candidate {
    /// Its probability, but for a factor that all share.
    pub(super) fn weight(&self) -> f32 {
        numerics::exp(self.score)
    }
}

/// Takes away what the limits do not leave; at least one stays. The rest is sorted, best first, ties by id.
pub(super) fn apply(candidates: &mut Vec<Candidate>, sampling: &Sampling) {
    if let Some(k) = sampling.top_k
        && k < candidates.len()
    {
        let (_, last, _) = candidates.select_nth_unstable_by(k - 1, better);
        let least = last.score;
        candidates.retain(|c| c.score >= least);
    }
    candidates.sort_unstable_by(better);
    if sampling.top_p < 1.0 {
        truncate_at(candidates, sampling.top_p);
    }
    let likely = candidates.iter().take_while(|c| c.weight() >= sampling.min_p).count();
    candidates.truncate(likely.max(1));
    if sampling.typical_p < 1.0 {
        keep_typical(candidates, sampling.typical_p);
    }
    if sampling.epsilon_cutoff > 0.0 {
        keep_probable(candidates, sampling.epsilon_cutoff);
    }
    if sampling.eta_cutoff > 0.0 {
        let epsilon = sampling.eta_cutoff;
        let least = epsilon.sqrt() * numerics::exp(-Information::of(candidates).expected);
        keep_probable(candidates, epsilon.min(least));
    }
}

/// The sum of their weights.
pub(super) fn total(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(Candidate::weight).sum()
}

/// The token where the sum of probabilities, best first, passes `uniform`.
pub(super) fn draw(candidates: &[Candidate], uniform: f32) -> u32 {
    let target = uniform * total(candidates);
    let mut reached = 0.0;
    let drawn = candidates.iter().find(|c| {
        reached += c.weight();
        reached > target
    });
    drawn.unwrap_or(&candidates[0]).token
}

fn better(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.token.cmp(&b.token))
}

/// Keeps the first candidates whose share of all probability reaches `share`.
fn truncate_at(candidates: &mut Vec<Candidate>, share: f32) {
    let enough = reaching(candidates, share);
    candidates.truncate(enough + 1);
}

/// Index of the candidate, in their order, where the sum of probabilities reaches `share`.
fn reaching(candidates: &[Candidate], share: f32) -> usize {
    let target = share * total(candidates);
    let mut reached = 0.0;
    let enough = candidates.iter().position(|c| {
        reached += c.weight();
        reached >= target
    });
    enough.unwrap_or(candidates.len() - 1)
}

/// How much a candidate tells, in nats, and how much is to be expected.
struct Information {
    /// Of a candidate whose score is 0.
    of_best: f32,
    /// The entropy.
    expected: f32,
}

impl Information {
    fn of(candidates: &[Candidate]) -> Self {
        let total = total(candidates);
        let of_best = numerics::ln(total);
        let expected = candidates.iter().map(|c| c.weight() / total * (of_best - c.score)).sum();
        Self { of_best, expected }
    }

    /// How far a candidate is from the expected.
    fn distance(&self, candidate: &Candidate) -> f32 {
        (self.of_best - candidate.score - self.expected).abs()
    }
}

/// Keeps the candidates nearest to the expected information whose share of all probability reaches `share`.
fn keep_typical(candidates: &mut Vec<Candidate>, share: f32) {
    let information = Information::of(candidates);
    let nearer = |a: &Candidate, b: &Candidate| information.distance(a).total_cmp(&information.distance(b));
    candidates.sort_unstable_by(|a, b| nearer(a, b).then(better(a, b)));
    let farthest = information.distance(&candidates[reaching(candidates, share)]);
    candidates.retain(|c| information.distance(c) <= farthest);
    candidates.sort_unstable_by(better);
}

/// Keeps the candidates at least this probable, and the best.
fn keep_probable(candidates: &mut Vec<Candidate>, least: f32) {
    let (least, best) = (least * total(candidates), candidates[0].score);
    candidates.retain(|c| c.weight() >= least || c.score == best);
}
