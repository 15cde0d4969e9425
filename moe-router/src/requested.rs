//! Which tokens count, and what they asked for, granted or not.

use std::ops::Range;

use moe_core::{RouteInput, RoutingPlan};

use crate::select;

/// The tokens of a range that are neither padding nor without an expert that is not masked.
pub(crate) fn present(input: &RouteInput<'_>, range: Range<usize>) -> impl Iterator<Item = usize> {
    let input = *input;
    let open = move |t| input.logits.row(t).into_iter().any(|&l| l != select::MASKED);
    range.filter(move |&t| !input.context.is_padding(t) && open(t))
}

/// The experts that each token asked for, by rank: refused ones included, and those that another took the place of.
pub(crate) struct Requested {
    /// Token t asked for `experts[offsets[t]..offsets[t + 1]]`; `[T + 1]`.
    offsets: Vec<usize>,
    experts: Vec<usize>,
}

impl Requested {
    /// Reads a plan, in O(R log R + T).
    pub(crate) fn of(plan: &RoutingPlan) -> Self {
        let rows = plan.row_tokens().iter().zip(plan.row_ranks()).zip(plan.row_requested());
        let mut pairs: Vec<_> = rows.map(|((&t, &rank), &e)| (t, rank, e)).collect();
        pairs.extend(plan.refused().iter().map(|r| (r.token, r.rank, r.expert)));
        pairs.sort_unstable();
        let mut offsets = vec![0; plan.tokens() + 1];
        pairs.iter().for_each(|&(t, ..)| offsets[t as usize + 1] += 1);
        for t in 1..offsets.len() {
            offsets[t] += offsets[t - 1];
        }
        Self { offsets, experts: pairs.into_iter().map(|(.., e)| e as usize).collect() }
    }

    /// The experts of token `t`, best first.
    pub(crate) fn experts(&self, t: usize) -> &[usize] {
        &self.experts[self.offsets[t]..self.offsets[t + 1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::Assignments;

    #[test]
    fn refused_choices_keep_their_rank() {
        let mut a = Assignments::new();
        a.reset(3, 4).unwrap();
        a.refuse(2, 1);
        a.assign(2, 3, 0.5);
        a.assign(0, 2, 0.5);
        a.refuse(0, 0);
        let start = a.mark();
        a.assign(1, 0, 0.5);
        // Sent elsewhere.
        a.review(start, |review| review.pairs[0].expert = 3).unwrap();
        let mut plan = RoutingPlan::new();
        plan.seal(&a).unwrap();
        let requested = Requested::of(&plan);
        assert_eq!(
            [requested.experts(0), requested.experts(1), requested.experts(2)],
            [&[2, 0][..], &[0], &[1, 3]]
        );
    }
}
