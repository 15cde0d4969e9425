//! How probable tokens are.

use mixtral_model::log_sum_exp;

/// A token and the most probable ones at its place, each with the logarithm of its probability under the softmax of the raw logits.
///
/// All of them are `f64(logit) - log_sum_exp(logits)`: equal tokens have equal numbers, so that whoever asks whether the token was the
/// most probable one may compare them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Score {
    pub(crate) token: u32,
    pub(crate) logprob: f64,
    /// Best first; of equals, the lower id.
    pub(crate) top: Vec<(u32, f64)>,
}

impl Score {
    /// Scores a token by the logits of its place, `[V]`, with the `count` most probable ones.
    pub(crate) fn new(logits: &[f32], token: u32, count: usize) -> Self {
        let total = log_sum_exp(logits);
        let logprob = |id: u32| f64::from(logits[id as usize]) - total;
        let top = best(logits, count).into_iter().map(|id| (id, logprob(id))).collect();
        Self { token, logprob: logprob(token), top }
    }
}

/// The ids of the greatest logits, best first.
fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in (0..).zip(logits) {
        if best.len() == count && best.last().is_none_or(|&(_, least)| logit <= least) {
            continue;
        }
        let place = best.partition_point(|&(_, other)| other >= logit);
        best.insert(place, (id, logit));
        best.truncate(count);
    }
    best.into_iter().map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_equals_by_id() {
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
        assert_eq!(best(&logits, 0), Vec::<u32>::new());
        assert_eq!(best(&logits, 3), [1, 3, 2]);
        assert_eq!(best(&logits, 9), [1, 3, 2, 0, 4]);
        let score = Score::new(&logits, 3, 1);
        assert_eq!(score.logprob, score.top[0].1);
        let all = Score::new(&logits, 0, 5);
        let sum: f64 = all.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
    }
}
