//! A choice confined to the best groups of experts.

use moe_core::{Error, Result, numerics};

use crate::select::{self, MASKED};

/// The score of a group of experts, made of what its experts are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GroupScore {
    Best,
    SumOfTwoBest,
    SumOfBest(usize),
}

/// How groups confine the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// The best so many of the groups.
    Kept(usize, GroupScore),
    /// All groups, each of which has an equal part of the choices.
    Each,
}

/// Groups of neighbouring experts, of which a token may use the best few (device- and node-limited routing).
///
/// The E experts are G groups of `E/G`, group g being experts `g·E/G..(g + 1)·E/G`. The `kept` groups with the greatest group
/// scores stay, ties to the lower group; the experts of the others are left out of the choice. Or a token takes equally many of
/// [each](Self::each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    groups: usize,
    within: Within,
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

    /// A group's score is the sum of those of its `best` best experts, or of all that it has if they are fewer: Megatron's
    /// `moe_router_group_topk`, which sums k over the groups kept.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] unless `1 <= kept <= groups` and `best` is at least 1.
    pub fn by_sum_of_best(groups: usize, kept: usize, best: usize) -> Result<Self> {
        let by = match best {
            0 => {
                let expected = "at least 1 expert in a group's score".into();
                return Err(Error::Router { setting: "expert groups", expected, found: "0".into() });
            }
            1 => GroupScore::Best,
            2 => GroupScore::SumOfTwoBest,
            n => GroupScore::SumOfBest(n),
        };
        Self::new(groups, kept, by)
    }

    /// Of the k choices, `k/G` in each of the `groups`: mixture of grouped experts, Pangu Pro MoE,
    /// [2505.21411](https://arxiv.org/abs/2505.21411). Groups that are devices then have equal loads.
    ///
    /// # Errors
    ///
    /// [`Error::Router`] if there is no group.
    pub fn each(groups: usize) -> Result<Self> {
        let Self { groups, .. } = Self::by_best(groups, groups.max(1))?;
        Ok(Self { groups, within: Within::Each })
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
        Ok(Self { groups, within: Within::Kept(kept, by) })
    }

    /// Checks that `experts`, and k where each group has its part, divide into the groups, and that those kept have `k` experts.
    pub(crate) fn check(&self, experts: usize, k: usize) -> Result<()> {
        if !experts.is_multiple_of(self.groups) {
            return Err(Error::Router {
                setting: "expert groups",
                expected: format!("a multiple of {} experts", self.groups),
                found: experts.to_string(),
            });
        }
        let kept = match self.within {
            Within::Kept(kept, _) => kept,
            Within::Each if k.is_multiple_of(self.groups) => self.groups,
            Within::Each => {
                return Err(Error::Router {
                    setting: "expert groups",
                    expected: format!("a multiple of {} choices", self.groups),
                    found: k.to_string(),
                });
            }
        };
        let candidates = experts / self.groups * kept;
        if k > candidates {
            return Err(Error::Router {
                setting: "expert groups",
                expected: format!("at least {k} experts in {kept} groups"),
                found: candidates.to_string(),
            });
        }
        Ok(())
    }

    /// Sets the scores of experts outside the best groups, or outside the best of their group, to negative infinity, which masked
    /// ones have. `keys` is scratch.
    pub(crate) fn exclude(&self, scores: &mut [f32], k: usize, keys: &mut Vec<u64>) {
        let size = scores.len() / self.groups;
        let Within::Kept(kept, by) = self.within else {
            for group in scores.chunks_mut(size) {
                let open = group.iter().copied().enumerate().filter(|(_, s)| *s != MASKED);
                select::best_of(open, k / self.groups, keys);
                for (e, score) in group.iter_mut().enumerate() {
                    if !keys.iter().any(|&key| select::index(key) == e) {
                        *score = MASKED;
                    }
                }
            }
            return;
        };
        let open = |group: &[f32]| group.iter().any(|&s| s != MASKED);
        let groups = scores.chunks(size).enumerate().filter(|(_, group)| open(group));
        select::best_of(groups.map(|(g, group)| (g, by.of(group))), kept, keys);
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
            Self::SumOfBest(n) => {
                let (mut last, mut sum, mut found) = (u64::MAX, 0.0, false);
                for _ in 0..n.min(scores.len()) {
                    let open = scores.iter().enumerate().filter(|(_, s)| !s.is_nan() && **s != MASKED);
                    let next = open.map(|(e, &s)| select::key(s, e)).filter(|&key| key < last).max();
                    let Some(key) = next else { break };
                    (last, sum, found) = (key, sum + scores[select::index(key)], true);
                }
                if found { sum } else { MASKED }
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
            groups.exclude(&mut scores, 1, &mut Vec::new());
            scores
        };
        assert_eq!(excluded(ExpertGroups::by_best(3, 1).unwrap()), [0.9, 0.1, OUT, OUT, OUT, OUT]);
        assert_eq!(excluded(ExpertGroups::by_two_best(3, 1).unwrap()), [OUT, OUT, 0.6, 0.5, OUT, OUT]);
        assert_eq!(excluded(ExpertGroups::by_best(3, 2).unwrap()), [0.9, 0.1, 0.6, 0.5, OUT, OUT]);
        assert_eq!(excluded(ExpertGroups::by_best(3, 3).unwrap()), [0.9, 0.1, 0.6, 0.5, 0.6, 0.5]);
    }

    #[test]
    fn sums_of_more_than_two() {
        for (scores, n, sum) in [
            (&[0.5f32, 0.25, 0.5, 0.125][..], 3, 1.25),
            (&[0.5, f32::NAN, -0.25, MASKED], 3, 0.25),
            (&[0.5, 0.25], usize::MAX, 0.75),
            (&[MASKED, f32::NAN], 3, MASKED),
        ] {
            assert_eq!(GroupScore::SumOfBest(n).of(scores), sum, "{scores:?}");
        }
        let two = ExpertGroups::by_sum_of_best(4, 2, 2).unwrap();
        assert_eq!(two, ExpertGroups::by_two_best(4, 2).unwrap());
        assert!(ExpertGroups::by_sum_of_best(4, 2, 0).is_err());
    }

    #[test]
    fn each_group_keeps_its_best() {
        const OUT: f32 = MASKED;
        let mut scores = [0.9, 0.1, 0.6, 0.5, 0.7, 0.7, OUT, f32::NAN];
        ExpertGroups::each(4).unwrap().exclude(&mut scores, 4, &mut Vec::new());
        assert_eq!(scores[..7], [0.9, OUT, 0.6, OUT, 0.7, OUT, OUT]);
        assert!(scores[7].is_nan(), "for want of another");
        assert!(ExpertGroups::each(4).unwrap().check(8, 6).is_err());
        assert!(ExpertGroups::each(4).unwrap().check(8, 12).is_err());
        assert!(ExpertGroups::each(0).is_err());
    }
}
