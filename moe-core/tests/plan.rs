//! The plan is what the router pushed, seen from both sides; its statistics.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use moe_core::{Assignments, Error, Result, RoutingPlan, TokenContext, Verdict};
use proptest::prelude::*;

type Pairs = Vec<(usize, usize, f32, bool)>;

fn sealed(tokens: usize, experts: usize, pairs: &Pairs) -> RoutingPlan {
    let mut out = Assignments::new();
    out.reset(tokens, experts).unwrap();
    for &(token, expert, weight, granted) in pairs {
        if granted { out.assign(token, expert, weight) } else { out.refuse(token, expert) }
    }
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    plan
}

/// Distinct pairs in any order, some refused.
fn pushes() -> impl Strategy<Value = (usize, usize, Pairs)> {
    (0usize..20, 1usize..9).prop_flat_map(|(tokens, experts)| {
        let all: Vec<usize> = (0..tokens * experts).collect();
        let some = proptest::sample::subsequence(all, 0..=tokens * experts).prop_shuffle();
        let pairs = some.prop_flat_map(move |list| {
            let each = list.into_iter().map(move |i| {
                (Just(i / experts), Just(i % experts), -2.0f32..2.0, proptest::bool::weighted(0.8))
            });
            each.collect::<Vec<_>>()
        });
        (Just(tokens), Just(experts), pairs)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_two_views_are_inverse((tokens, experts, pairs) in pushes()) {
        let plan = sealed(tokens, experts, &pairs);
        let granted = pairs.iter().filter(|p| p.3).count();
        prop_assert_eq!((plan.tokens(), plan.experts(), plan.rows()), (tokens, experts, granted));

        // By expert: rows partition, tokens ascend, and each row is a pushed pair.
        let mut row = 0;
        for e in 0..experts {
            let range = plan.expert_rows(e);
            prop_assert_eq!(range.start, row);
            row = range.end;
            let of_expert = &plan.row_tokens()[range.clone()];
            prop_assert!(of_expert.is_sorted_by(|a, b| a < b));
            prop_assert!(plan.row_experts()[range].iter().all(|&x| x as usize == e));
        }
        prop_assert_eq!(row, plan.rows());

        // By token: every row once, experts ascend in the terms and ranks in the choices.
        let mut seen = vec![0; plan.rows()];
        for t in 0..tokens {
            let terms: Vec<_> = plan.token_terms(t).collect();
            let choices: Vec<_> = plan.choices(t).collect();
            prop_assert_eq!(terms.len(), choices.len());
            prop_assert!(terms.is_sorted_by_key(|p| plan.row_experts()[p.row]));
            prop_assert!(choices.is_sorted_by(|a, b| a.rank < b.rank));
            for term in terms {
                seen[term.row] += 1;
                prop_assert_eq!(plan.row_tokens()[term.row] as usize, t);
                prop_assert_eq!(plan.row_weights()[term.row].to_bits(), term.weight.to_bits());
            }
            // What was pushed for the token, in that order.
            let pushed = pairs.iter().filter(|p| p.0 == t).enumerate();
            let expected: Vec<_> = pushed.filter(|(_, p)| p.3).map(|(rank, p)| (rank, p.1, p.2)).collect();
            let found: Vec<_> = choices.iter().map(|c| (c.rank, c.expert, c.weight)).collect();
            prop_assert_eq!(found, expected);
            let asked: Vec<_> = pairs.iter().filter(|p| p.0 == t).map(|p| p.1).collect();
            prop_assert_eq!(plan.requested(t).collect::<Vec<_>>(), asked);
        }
        prop_assert!(seen.iter().all(|&n| n == 1));
        prop_assert_eq!(plan.refused().len(), pairs.len() - granted);
    }

    /// Wherever the second of two equal pairs is pushed, and whatever was pushed before.
    #[test]
    fn a_pair_is_granted_once(
        (tokens, experts, pairs) in pushes(),
        first in any::<proptest::sample::Index>(),
        second in any::<proptest::sample::Index>(),
    ) {
        let mut granted: Pairs = pairs.into_iter().filter(|pair| pair.3).collect();
        prop_assume!(!granted.is_empty());
        let twice = granted[first.index(granted.len())];
        granted.insert(second.index(granted.len() + 1), twice);
        let mut out = Assignments::new();
        out.reset(tokens, experts).unwrap();
        granted.iter().for_each(|&(token, expert, weight, _)| out.assign(token, expert, weight));
        let mut plan = RoutingPlan::new();
        let error = plan.seal(&out).unwrap_err();
        let (token, expert) = (twice.0 as u32, twice.1 as u32);
        let named = matches!(error, Error::DuplicateAssignment { token: t, expert: e } if (t, e) == (token, expert));
        prop_assert!(named, "{error}");
        prop_assert_eq!((plan.tokens(), plan.rows()), (0, 0));
    }
}

#[test]
fn statistics_by_hand() {
    // Expert 0 has three rows, 1 has one, 2 was refused its only one, 3 was not asked.
    let pairs = vec![
        (0, 0, 0.5, true),
        (1, 0, 0.25, true),
        (2, 0, 0.25, true),
        (2, 1, 2.0, true),
        (2, 2, 0.0, false),
    ];
    let stats = sealed(3, 4, &pairs).stats();
    assert_eq!(stats.load, [3, 1, 0, 0]);
    assert_eq!(stats.requested_load, [3, 1, 1, 0]);
    assert_eq!(stats.importance, [1.0, 2.0, 0.0, 0.0]);
    assert_eq!(stats.drop_rate, 0.2);
    assert_eq!(stats.idle, 2);
    assert_eq!(stats.max_over_mean, 3.0);
    // Mean 1, deviations 2, 0, 1, 1: variance 6/4.
    assert_eq!(stats.cv, 1.5f32.sqrt());
    // -(3/4 ln 3/4 + 1/4 ln 1/4) / ln 4
    approx::assert_relative_eq!(stats.entropy, 0.405_639_06, max_relative = 1e-6);
}

#[test]
fn statistics_of_nothing_and_of_one_expert() {
    let none = sealed(2, 3, &vec![]).stats();
    assert_eq!((none.drop_rate, none.entropy, none.cv, none.max_over_mean), (0.0, 0.0, 0.0, 0.0));
    assert_eq!(none.idle, 3);
    let one = sealed(2, 1, &vec![(0, 0, 1.0, true)]).stats();
    assert_eq!((one.entropy, one.cv, one.max_over_mean, one.idle), (1.0, 0.0, 1.0, 0));
    let even = sealed(4, 4, &(0..4).map(|i| (i, i, 1.0, true)).collect()).stats();
    assert_eq!((even.entropy, even.cv, even.max_over_mean), (1.0, 0.0, 1.0));
}

/// A decorator inside [`PerSequence`](moe_core::PerSequence) sees its own tokens from 0, and only its own pairs.
#[test]
fn a_review_counts_tokens_as_the_input_does() {
    let mut out = Assignments::new();
    out.reset(5, 2).unwrap();
    out.assign(0, 1, 1.0);
    out.with_first_token(2, |out| {
        let mark = out.mark();
        (0..3).for_each(|t| out.assign(t, 0, 0.5));
        out.review(mark, |review| {
            let tokens: Vec<_> = review.pairs.iter().map(|p| p.token).collect();
            assert_eq!(tokens, [0, 1, 2]);
            assert_eq!((review.order, review.load), (&mut [0, 1, 2][..], &mut [0, 0][..]));
            review.verdicts.copy_from_slice(&[Verdict::Refuse, Verdict::Forget, Verdict::Keep]);
            review.pairs[2].weight = 0.75;
        })
        .unwrap();
    });
    let granted: Vec<_> = out.granted().iter().map(|p| (p.token, p.expert, p.weight)).collect();
    assert_eq!(granted, [(0, 1, 1.0), (4, 0, 0.75)]);
    assert_eq!(out.refused().iter().map(|r| r.token).collect::<Vec<_>>(), [2]);
}

/// What another expert took is asked for still, between what was refused.
#[test]
fn what_was_asked_for_keeps_its_rank() {
    let mut out = Assignments::new();
    out.reset(3, 4).unwrap();
    out.refuse(2, 1);
    out.assign(2, 3, 0.5);
    out.assign(0, 2, 0.5);
    out.refuse(0, 0);
    let mark = out.mark();
    out.assign(1, 0, 0.5);
    out.review(mark, |review| review.pairs[0].expert = 3).unwrap();
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    let asked = |t| plan.requested(t).collect::<Vec<_>>();
    assert_eq!([asked(0), asked(1), asked(2)], [vec![2, 0], vec![0], vec![1, 3]]);
}

#[test]
fn a_token_sent_elsewhere_is_known_by_what_was_asked_for() {
    let mut out = Assignments::new();
    out.reset(2, 3).unwrap();
    out.refuse(0, 1);
    out.assign(0, 2, 0.5);
    let mark = out.mark();
    out.assign(1, 0, 1.0);
    out.assign(1, 1, 0.25);
    out.review(mark, |review| review.pairs[0].expert = 2).unwrap();
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    // Rows by expert: 1 of token 1, then 2 of tokens 0 and 1.
    assert_eq!((plan.row_experts(), plan.row_tokens()), (&[1, 2, 2][..], &[1, 0, 1][..]));
    assert_eq!((plan.row_ranks(), plan.row_requested()), (&[1, 1, 0][..], &[1, 2, 0][..]));
    let choices: Vec<_> = plan.choices(1).map(|c| (c.expert, c.rank, c.row, c.instead_of)).collect();
    assert_eq!(choices, [(2, 0, 2, Some(0)), (1, 1, 0, None)]);
    assert_eq!(plan.stats().requested_load, [1, 2, 1]);
}

#[test]
fn contexts_that_fit_and_that_do_not() {
    let none: [usize; 0] = [];
    for offsets in [&none[..], &[0, 4], &[0, 0, 4], &[0, 1, 1, 4]] {
        TokenContext::new().with_sequences(offsets).check(4).unwrap();
    }
    for offsets in [&[0][..], &[1, 4], &[0, 3], &[0, 5], &[0, 3, 2, 4]] {
        let error = TokenContext::new().with_sequences(offsets).check(4).unwrap_err().to_string();
        assert!(error.starts_with("sequence offsets: expected an ascending list from 0 to 4"), "{error}");
    }
    let error = |context: TokenContext<'_>| context.check(4).unwrap_err().to_string();
    assert_eq!(error(TokenContext::new().with_positions(&[1])), "positions: expected 4 entries, found 1");
    assert_eq!(error(TokenContext::new().with_token_ids(&[])), "token ids: expected 4 entries, found 0");
    let padding = [false; 5];
    assert_eq!(
        error(TokenContext::new().with_padding(&padding)),
        "padding mask: expected 4 entries, found 5"
    );
}

/// A plan of pairs that are all granted, or why there is none.
fn sealed_pairs(tokens: usize, experts: usize, pairs: &[(usize, usize, f32)]) -> Result<RoutingPlan> {
    let mut out = Assignments::new();
    out.reset(tokens, experts)?;
    pairs.iter().for_each(|&(token, expert, weight)| out.assign(token, expert, weight));
    let mut plan = RoutingPlan::new();
    plan.seal(&out)?;
    Ok(plan)
}

#[test]
fn both_views() {
    let plan = sealed_pairs(3, 4, &[(2, 3, 0.7), (0, 1, 0.6), (2, 1, 0.3), (0, 0, 0.4)]).unwrap();
    assert_eq!(plan.expert_offsets(), [0, 1, 3, 3, 4]);
    assert_eq!(plan.row_tokens(), [0, 0, 2, 2]);
    let terms: Vec<_> = plan.token_terms(2).map(|p| (p.row, p.weight)).collect();
    assert_eq!(terms, [(2, 0.3), (3, 0.7)]);
    let best_first: Vec<_> = plan.choices(2).map(|c| (c.expert, c.rank)).collect();
    assert_eq!(best_first, [(3, 0), (1, 1)]);
    assert_eq!(plan.token_terms(1).len(), 0);
}

#[test]
fn refuses_what_cannot_be_trusted() {
    type Case<'a> = (&'a [(usize, usize, f32)], &'a str);
    let cases: [Case<'_>; 5] = [
        (&[(3, 0, 1.0)], "expected a token below 3, found 3"),
        (&[(usize::MAX, 0, 1.0)], "expected a token below 3"),
        (&[(0, 4, 1.0)], "expected an expert below 4, found 4"),
        (&[(1, 2, 0.5), (0, 2, 0.5), (1, 2, 0.5)], "found expert 2 twice"),
        (&[(1, 2, f32::NAN)], "expected a finite weight"),
    ];
    for (pairs, message) in cases {
        let error = sealed_pairs(3, 4, pairs).unwrap_err().to_string();
        assert!(error.contains(message), "{pairs:?}: {error}");
    }
}
