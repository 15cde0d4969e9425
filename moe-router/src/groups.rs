//! A choice confined to the best groups of experts.

use moe_core::{Error, Result, numerics};

use crate::select::{self, MASKED};

/// The score of a group of experts, made of what its experts are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GroupScore {
    Best,
    SumOfTwoBest,
}

/// Groups of neighbouring experts, of which a token may use the best few (device- and node-limited routing).
///
/// The E experts are G groups of `E/G`, group g being experts `g·E/G..(g + 1)·E/G`. The `kept` groups with the greatest group
/// scores stay, ties to the lower group; the experts of the others are left out of the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    groups: usize,
    kept: usize,
    by: GroupScore,
}

impl ExpertGroups {
    /// A group's score is that of its best expert: DeepSeek-V2, [2405.04434](https://arxiv.org/abs/2405.04434).
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `1 <= kept <= groups`.
    pub fn by_best(groups: usize, kept: usize) -> Result<Self> {
        Self::new(groups, kept, GroupScore::Best)
    }

    /// A group's score is the sum of those of its two best experts: DeepSeek-V3, [2412.19437](https://arxiv.org/abs/2412.19437).
    ///
    /// A group of one expert has that one's score.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `1 <= kept <= groups`.
    pub fn by_two_best(groups: usize, kept: usize) -> Result<Self> {
        Self::new(groups, kept, GroupScore::SumOfTwoBest)
    }

    fn new(groups: usize, kept: usize, by: GroupScore) -> Result<Self> {
        let wrong = |expected, found: usize| {
            Err(Error::Router { setting: "expert groups", expected, found: found.to_string() })
        };
        if groups == 0 {
            return wrong("at least 1 group".into(), groups);
        }
        if kept == 0 || kept > groups {
            return wrong(format!("from 1 to {groups} groups kept"), kept);
        }
        Ok(Self { groups, kept, by })
    }

    /// Checks that `experts` divide into the groups, and that those kept have `k` experts.
    pub(crate) fn check(&self, experts: usize, k: usize) -> Result<()> {
        if !experts.is_multiple_of(self.groups) {
            return Err(Error::Router {
                setting: "expert groups",
                expected: format!("a multiple of {} experts", self.groups),
                found: experts.to_string(),
            });
        }
        let candidates = experts / self.groups * self.kept;
        if k > candidates {
            return Err(Error::Router {
                setting: "expert groups",
                expected: format!("at least {k} experts in {} groups", self.kept),
                found: candidates.to_string(),
            });
        }
        Ok(())
    }

    /// Sets the scores of experts outside the best groups to negative infinity, which masked ones have. `keys` is scratch.
    pub(crate) fn exclude(&self, scores: &mut [f32], keys: &mut Vec<u64>) {
        let size = scores.len() / self.groups;
        let open = |group: &[f32]| group.iter().any(|&s| s != MASKED);
        let groups = scores.chunks(size).enumerate().filter(|(_, group)| open(group));
        select::best_of(groups.map(|(g, group)| (g, self.by.of(group))), self.kept, keys);
        for (g, group) in scores.chunks_mut(size).enumerate() {
            if !keys.iter().any(|&key| select::index(key) == g) {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
}

impl GroupScore {
    /// The score of a group; NaN is passed over, and so is what is masked: of a single expert it is that one's.
    fn of(self, scores: &[f32]) -> f32 {
        match self {
            Self::SumOfTwoBest if scores.len() > 1 => {
                let two = scores.iter().fold([f32::NEG_INFINITY; 2], |[best, second], &s| {
                    if s > best {
                        [s, best]
                    } else if s > second {
                        [best, s]
                    } else {
                        [best, second]
                    }
                });
                let alone = two[1] == MASKED && !scores.iter().any(|s| s.is_nan());
                if alone { two[0] } else { two[0] + two[1] }
            }
            _ => numerics::max(scores),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_scores() {
        for (scores, best, two) in [
            (&[0.5f32, 0.25, 0.5][..], 0.5, 1.0),
            (&[0.25, 0.5, 0.125], 0.5, 0.75),
            (&[-0.25, f32::NAN, -0.5], -0.25, -0.75),
            (&[0.75], 0.75, 0.75),
            (&[f32::NAN, 0.5], 0.5, f32::NEG_INFINITY),
            (&[MASKED, 0.5], 0.5, 0.5),
            (&[MASKED, -0.25, 0.5], 0.5, 0.25),
        ] {
            assert_eq!(
                (GroupScore::Best.of(scores), GroupScore::SumOfTwoBest.of(scores)),
                (best, two),
                "{scores:?}"
            );
        }
    }

    #[test]
    fn the_two_rules_keep_different_groups() {
        const OUT: f32 = f32::NEG_INFINITY;
        let excluded = |groups: ExpertGroups| {
            let mut scores = [0.9, 0.1, 0.6, 0.5, 0.6, 0.5];
            groups.exclude(&mut scores, &mut Vec::new());
            scores
        };
        assert_eq!(excluded(ExpertGroups::by_best(3, 1).unwrap()), [0.9, 0.1, OUT, OUT, OUT, OUT]);
        assert_eq!(excluded(ExpertGroups::by_two_best(3, 1).unwrap()), [OUT, OUT, 0.6, 0.5, OUT, OUT]);
        assert_eq!(excluded(ExpertGroups::by_best(3, 2).unwrap()), [0.9, 0.1, 0.6, 0.5, OUT, OUT]);
        assert_eq!(excluded(ExpertGroups::by_best(3, 3).unwrap()), [0.9, 0.1, 0.6, 0.5, 0.6, 0.5]);
    }
}
