//! One order of scores for all routers: higher is better, ties go to the lower index, NaN comes last.

/// The logit of an expert that a token may not have.
pub(crate) const MASKED: f32 = f32::NEG_INFINITY;

/// A score and its index as one integer that is greater for the better.
pub(crate) fn key(score: f32, index: usize) -> u64 {
    u64::from(ordered(score)) << 32 | u64::from(!(index as u32))
}

/// The index that a [`key`] was made of.
pub(crate) fn index(key: u64) -> usize {
    !(key as u32) as usize
}

/// An integer that is greater for the greater score: NaN below negative infinity, `-0.0` equal to `0.0`.
pub(crate) fn ordered(score: f32) -> u32 {
    if score.is_nan() {
        return 0;
    }
    // Adding zero makes -0.0 positive. Negative numbers sort in reverse of their bits, below the positive ones.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// Writes the keys of the `k` best scores, best first, or of all if there are fewer. `k` is at least 1.
///
/// Each score is compared with the worst of the best so far, and is inserted only if it beats it: about E comparisons and
/// k·ln(E/k) insertions for scores in random order, O(E·k) moves at worst.
pub(crate) fn best(scores: impl IntoIterator<Item = f32>, k: usize, keys: &mut Vec<u64>) {
    best_of(scores.into_iter().enumerate(), k, keys);
}

/// The same of some scores and their indices.
pub(crate) fn best_of(scores: impl IntoIterator<Item = (usize, f32)>, k: usize, keys: &mut Vec<u64>) {
    keys.clear();
    for (i, score) in scores {
        let key = key(score, i);
        if keys.len() == k {
            if key < keys[k - 1] {
                continue;
            }
            keys.pop();
        }
        keys.insert(keys.partition_point(|&other| other > key), key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_scores() {
        let ascending = [
            f32::NAN,
            f32::NEG_INFINITY,
            f32::MIN,
            -1.0,
            -f32::MIN_POSITIVE,
            -1e-45,
            0.0,
            1e-45,
            1.0,
            f32::INFINITY,
        ];
        assert!(ascending.windows(2).all(|w| ordered(w[0]) < ordered(w[1])));
        assert_eq!(ordered(-0.0), ordered(0.0));
        assert_eq!(ordered(-f32::NAN), ordered(f32::NAN));
        assert!(key(1.0, 3) > key(1.0, 4));
        assert_eq!(index(key(-2.5, 77)), 77);
    }

    #[test]
    fn best_is_a_stable_sort() {
        let scores = [0.0, 3.0, f32::NAN, 3.0, -0.0, -1.0, 7.0, 0.0];
        let mut keys = Vec::new();
        best(scores, 8, &mut keys);
        let all: Vec<_> = keys.iter().map(|&key| index(key)).collect();
        assert_eq!(all, [6, 1, 3, 0, 4, 7, 5, 2]);
        for k in 1..8 {
            best(scores, k, &mut keys);
            assert_eq!(keys.iter().map(|&key| index(key)).collect::<Vec<_>>(), all[..k]);
        }
    }
}
