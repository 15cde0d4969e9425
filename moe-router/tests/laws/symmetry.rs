//! What reordering, padding and company change: nothing but the order.

use moe_core::{Locality, PerSequence, Router, TokenContext};
use ndarray::{Array2, Axis};
use proptest::prelude::*;

use crate::listed::{Batch, batches, config, decisions, route};

/// `0..n` in an order drawn from `seed`.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
    order
}

/// Whether no two scores of a token, of an expert, or greatest ones of tokens, are so near that the order of a sum decides
/// between them.
fn separated(router: &dyn Router, logits: &Array2<f32>) -> bool {
    let mut scores = logits.clone();
    router.scores(&TokenContext::new(), scores.view_mut());
    let apart = |mut list: Vec<f32>| {
        list.sort_by(f32::total_cmp);
        list.windows(2).all(|w| w[1] - w[0] > 1e-5 * w[1])
    };
    let best = scores.rows().into_iter().map(|row| row.fold(0.0f32, |a, &b| a.max(b))).collect();
    scores.rows().into_iter().chain(scores.columns()).all(|lane| apart(lane.to_vec())) && apart(best)
}

/// Routers that a constant added to a token's logits may change: those by sigmoid, softplus, the logit itself or a share of it, the
/// one that hashes words made of logits, and those whose sums then round otherwise (noise, Sinkhorn). All others are softmax routers.
const SEES_SHIFTS: [&str; 21] = [
    "gumbel second",
    "inkling",
    "scored hash",
    "soft-capped",
    "steered",
    "deepseek-v3",
    "deepseek-v4",
    "afmoe",
    "minimax",
    "lfm2",
    "llama 4",
    "cohere 2",
    "relu",
    "threshold",
    "base",
    "sparse mixer",
    "jitter",
    "hash",
    "noisy",
    "noisy second",
    "sinkhorn",
];

proptest! {
    #![proptest_config(config())]

    /// Logits in eighths and whole constants, so that no difference of logits rounds: the same bits.
    #[test]
    fn softmax_routers_see_no_constant(batch in batches(), constants in proptest::array::uniform24(-100i8..100)) {
        let eighths = batch.logits.mapv(|l| (8.0 * l).round() / 8.0);
        let mut shifted = eighths.clone();
        for (mut row, c) in shifted.rows_mut().into_iter().zip(constants) {
            row += f32::from(c);
        }
        let mut looked_at = 0;
        for listed in batch.routers() {
            if SEES_SHIFTS.iter().any(|name| listed.name == *name || listed.name.starts_with(&format!("{name} "))) {
                continue;
            }
            let plan = route(&*listed.router, eighths.view(), batch.padded());
            let moved = route(&*listed.router, shifted.view(), batch.padded());
            for t in 0..batch.tokens() {
                prop_assert_eq!(decisions(&moved, t), decisions(&plan, t), "{}: token {}", &listed.name, t);
            }
            looked_at += 1;
        }
        prop_assert!(looked_at >= 40, "{}", looked_at);
    }

    #[test]
    fn permuting_tokens_permutes_decisions(batch in batches(), seed: u64) {
        let order = shuffled(batch.tokens(), seed);
        for listed in batch.routers() {
            if listed.router.locality() == Locality::Token {
                // Where a token stands decides what is drawn for it.
                let positions: Vec<usize> = (0..batch.tokens()).collect();
                let plan = route(&*listed.router, batch.logits.view(), batch.unpadded().with_positions(&positions));
                let context = TokenContext::new().with_positions(&order);
                let permuted = route(&*listed.router, batch.select(&order).view(), context);
                for (to, &from) in order.iter().enumerate() {
                    prop_assert_eq!(decisions(&permuted, to), decisions(&plan, from), "{}", &listed.name);
                }
            }
        }
    }

    #[test]
    fn permuting_experts_permutes_decisions(batch in batches(), seed: u64) {
        let order = shuffled(batch.experts(), seed);
        let permuted = batch.logits.select(Axis(1), &order);
        let ties = batch.logits.rows().into_iter().any(|row| {
            (0..row.len()).any(|i| (0..i).any(|j| row[i] == row[j]))
        });
        for listed in batch.routers() {
            if ties || !listed.symmetric || listed.by_score && !separated(&*listed.router, &batch.logits) {
                continue;
            }
            let plan = route(&*listed.router, batch.logits.view(), batch.unpadded());
            let permuted = route(&*listed.router, permuted.view(), batch.unpadded());
            for t in 0..batch.tokens() {
                let found = decisions(&permuted, t).into_iter().map(|(rank, e, w)| (rank, order[e], w));
                let pairs = found.zip(decisions(&plan, t));
                for (found, expected) in pairs {
                    prop_assert_eq!((found.0, found.1), (expected.0, expected.1), "{}: token {}", &listed.name, t);
                    // Sums over all experts run in another order.
                    let weight = |w: Option<u32>| w.map_or(-1.0, f32::from_bits);
                    let (found, expected) = (weight(found.2), weight(expected.2));
                    let near = (found - expected).abs() <= 1e-6 * expected.abs() + f32::MIN_POSITIVE;
                    prop_assert!(near, "{}: token {t}: {found} {expected}", &listed.name);
                }
            }
        }
    }

    #[test]
    fn padding_changes_nothing_for_the_others(batch in batches()) {
        let present: Vec<usize> = (0..batch.tokens()).filter(|&t| !batch.padding[t]).collect();
        let before = |end: usize| present.iter().filter(|&&t| t < end).count();
        let without = Batch {
            logits: batch.select(&present),
            offsets: batch.offsets.iter().map(|&o| before(o)).collect(),
            padding: vec![false; present.len()],
        };
        // Where a token stands decides what is drawn for it.
        let places: Vec<usize> = (0..batch.tokens()).collect();
        for listed in batch.routers() {
            let plan = route(&*listed.router, batch.logits.view(), batch.padded().with_positions(&places));
            let context = without.unpadded().with_positions(&present);
            let alone = route(&*listed.router, without.logits.view(), context);
            prop_assert_eq!(plan.stats(), alone.stats(), "{}", &listed.name);
            for t in 0..batch.tokens() {
                let expected = match present.iter().position(|&p| p == t) {
                    Some(at) => decisions(&alone, at),
                    None => vec![],
                };
                prop_assert_eq!(decisions(&plan, t), expected, "{}: token {}", &listed.name, t);
            }
        }
    }

    #[test]
    fn sequences_do_not_influence_each_other(batch in batches()) {
        for listed in batch.routers() {
            let together = route(&*listed.router, batch.logits.view(), batch.padded());
            let router: &dyn Router = &*listed.router;
            let one_each = route(&PerSequence::of(&[router; 3]), batch.logits.view(), batch.padded());
            for (s, tokens) in batch.sequences().enumerate() {
                let padding = &batch.padding[tokens.clone()];
                let context = TokenContext::new().with_padding(padding);
                let own: Vec<usize> = tokens.clone().collect();
                let alone = route(router, batch.select(&own).view(), context);
                for (i, t) in tokens.enumerate() {
                    let expected = decisions(&alone, i);
                    prop_assert_eq!(&decisions(&together, t), &expected, "{}: sequence {}", &listed.name, s);
                    prop_assert_eq!(&decisions(&one_each, t), &expected, "{}: sequence {}", &listed.name, s);
                }
            }
        }
    }
}
