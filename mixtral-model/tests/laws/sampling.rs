//! Whatever the logits and the settings, a token that may come is chosen, or an error says why not.

use mixtral_model::{Error, Length, LengthDecay, Sampler, Sampling, Span};
use proptest::prelude::*;
use proptest::sample::select;

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -9.0f32..9.0,
        2 => select(vec![f32::NEG_INFINITY, f32::MIN, f32::MAX, 0.0, -0.0, 1e-40]),
    ]
}

fn ids() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0u32..6, 0..9)
}

fn sequence() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0u32..6, 1..4)
}

fn length() -> impl Strategy<Value = Length> {
    (any::<bool>(), select(vec![0, 1, 3, 9, usize::MAX]))
        .prop_map(|(new, n)| if new { Length::New(n) } else { Length::Total(n) })
}

prop_compose! {
    fn limits()(
        temperature in select(vec![0.0, 1e-40, 0.5, 1.0, 3.0, f32::MAX]),
        top_k in select(vec![None, Some(1), Some(2), Some(4), Some(usize::MAX)]),
        shares in prop::array::uniform2(select(vec![1e-30f32, 0.3, 0.9, 1.0])),
        cutoffs in prop::array::uniform3(select(vec![0.0f32, 1e-30, 0.2, 0.99])),
        penalty in select(vec![1e-38, 0.5, 1.0, 1.0, 1.3, f32::MAX]),
        seed in any::<u64>(),
    ) -> Sampling {
        let mut sampling = Sampling::default();
        (sampling.temperature, sampling.top_k, sampling.seed) = (temperature, top_k, seed);
        [sampling.top_p, sampling.typical_p] = shares;
        [sampling.min_p, sampling.epsilon_cutoff, sampling.eta_cutoff] = cutoffs;
        sampling.repetition_penalty = penalty;
        sampling
    }
}

prop_compose! {
    fn settings()(
        mut sampling in limits(),
        biases in prop::collection::btree_map(sequence(), logit(), 0..5),
        no_repeat_ngram in select(vec![0, 0, 1, 2, 3, usize::MAX]),
        bad_words in prop::collection::vec(sequence(), 0..3),
        min_length in length(),
        forced in (prop::option::weighted(0.2, 0u32..6), prop_oneof![2 => Just(vec![]), 1 => sequence()]),
        decay in prop::option::weighted(0.3, (0usize..4, select(vec![-2.0, 0.0, 0.9, 1.5, 1e300]))),
        suppressed in prop_oneof![Just(vec![]), ids()],
        suppressed_first in prop_oneof![Just(vec![]), ids()],
    ) -> Sampling {
        let rules = &mut sampling.rules;
        (rules.biases, rules.no_repeat_ngram, rules.bad_words) = (biases, no_repeat_ngram, bad_words);
        (rules.min_length, (rules.forced_second, rules.forced_last)) = (min_length, forced);
        rules.length_decay = decay.map(|(after, factor)| LengthDecay { after, factor });
        (rules.suppressed, rules.suppressed_first) = (suppressed, suppressed_first);
        sampling
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn a_token_that_may_come_or_an_error(
        sampling in settings(),
        logits in prop::collection::vec(logit(), 6),
        before in ids(),
        begin in 0usize..5,
        most in prop::option::of(0usize..5),
        stop in ids(),
    ) {
        let position = before.len();
        let span = Span { begin, end: most.map(|most| begin + most), stop };
        let mut sampler = Sampler::new(sampling.clone()).unwrap().with_span(span);
        match sampler.sample(&logits, &before, position) {
            Ok(token) => {
                prop_assert_eq!(sampler.sample(&logits, &before, position).unwrap(), token);
                let left: Vec<_> = sampler.probabilities(&logits, &before, position).unwrap().collect();
                prop_assert!(left.iter().any(|(of, share)| *of == token && *share > 0.0), "{token} {left:?}");
                let sum: f32 = left.iter().map(|(_, share)| share).sum();
                prop_assert!((sum - 1.0).abs() < 1e-5, "{left:?}");
                prop_assert!(left.iter().all(|(of, _)| !sampling.rules.suppressed.contains(of)), "{left:?}");
            }
            Err(Error::AllSuppressed { position: at }) => prop_assert_eq!(at, position),
            Err(Error::NotFinite { .. }) => prop_assert!(!logits.iter().any(|v| v.is_finite())),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
