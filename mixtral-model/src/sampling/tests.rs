//! Rules and limits, each by itself.

use super::*;

fn draws(sampling: Sampling, logits: &[f32], before: &[u32]) -> Vec<usize> {
    let mut sampler = Sampler::new(sampling).unwrap();
    let mut counts = vec![0; logits.len()];
    for position in 0..4000 {
        counts[sampler.sample(logits, before, position).unwrap() as usize] += 1;
    }
    counts
}

fn at(temperature: f32) -> Sampling {
    Sampling { temperature, ..Sampling::default() }
}

/// Logits of the probabilities 0.4, 0.3, 0.2, 0.1, not in order.
fn logits() -> [f32; 4] {
    [0.2f32.ln(), 0.4f32.ln(), 0.1f32.ln(), 0.3f32.ln()]
}

#[test]
fn frequencies_are_probabilities() {
    // Five standard deviations of a binomial of 4000 are at most 158.
    let close = |counts: &[usize], p: [f32; 4]| {
        counts.iter().zip(p).all(|(&n, p)| (n as f32 - 4000.0 * p).abs() < 158.0)
    };
    let all = draws(at(1.0), &logits(), &[]);
    assert!(close(&all, [0.2, 0.4, 0.1, 0.3]), "{all:?}");
    let cool = draws(at(0.5), &logits(), &[]);
    let s = 0.04 + 0.16 + 0.01 + 0.09;
    assert!(close(&cool, [0.04 / s, 0.16 / s, 0.01 / s, 0.09 / s]), "{cool:?}");
}

#[test]
fn limits_leave_the_right_tokens() {
    let left = |sampling: Sampling| -> Vec<usize> {
        let counts = draws(sampling, &logits(), &[]);
        (0..4).filter(|&i| counts[i] > 0).collect()
    };
    assert_eq!(left(Sampling { top_k: Some(2), ..at(1.0) }), [1, 3]);
    assert_eq!(left(Sampling { top_k: Some(9), ..at(1.0) }), [0, 1, 2, 3]);
    assert_eq!(left(Sampling { top_p: 0.69, ..at(1.0) }), [1, 3]);
    assert_eq!(left(Sampling { top_p: 0.71, ..at(1.0) }), [0, 1, 3]);
    assert_eq!(left(Sampling { top_p: 1e-9, ..at(1.0) }), [1]);
    assert_eq!(left(Sampling { min_p: 0.6, ..at(1.0) }), [1, 3]);
    assert_eq!(left(Sampling { min_p: 1.0, ..at(1.0) }), [1]);
    assert_eq!(left(at(0.0)), [1]);
    assert_eq!(left(at(1e-40)), [1]);
}

/// Shares that are reached exactly, and tokens exactly as probable as the least that is left.
#[test]
fn limits_at_equality() {
    let left = |logits: &[f32], sampling: Sampling| -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        sampler.probabilities(logits, &[], 0).unwrap().map(|(token, _)| token).collect()
    };
    let equal = [0.5; 4];
    assert_eq!(left(&equal, Sampling { top_p: 0.25, ..at(1.0) }), [0]);
    assert_eq!(left(&equal, Sampling { top_p: 0.5, ..at(1.0) }), [0, 1]);
    assert_eq!(left(&equal, Sampling { top_p: 0.75, ..at(1.0) }), [0, 1, 2]);
    assert_eq!(left(&equal, Sampling { top_k: Some(1), ..at(1.0) }), [0, 1, 2, 3]);
    assert_eq!(left(&[1.0, 3.0, 2.0, 3.0, 2.0], Sampling { top_k: Some(3), ..at(1.0) }), [1, 3, 2, 4]);
    assert_eq!(left(&[1.0, 3.0, 2.0, 3.0], Sampling { min_p: 1.0, ..at(1.0) }), [1, 3]);
    // A share that is one token's to the bit, then the next one.
    let share = numerics::exp(-1.0);
    assert_eq!(left(&[2.0, 1.0, 0.0], Sampling { min_p: share, ..at(1.0) }), [0, 1]);
    assert_eq!(left(&[2.0, 1.0, 0.0], Sampling { min_p: share.next_up(), ..at(1.0) }), [0]);
}

#[test]
fn a_seed_is_one_sequence_of_draws() {
    let drawn = |seed| -> Vec<u32> {
        let mut sampler = Sampler::new(Sampling { seed, ..at(1.0) }).unwrap();
        (0..64).map(|position| sampler.sample(&[0.0; 50], &[], position).unwrap()).collect()
    };
    let all: std::collections::BTreeSet<_> = [0, 1, 2, 3, 1 << 32, u64::MAX].map(drawn).into();
    assert_eq!(all.len(), 6, "each its own");
    assert_eq!(drawn(7), drawn(7));
}

#[test]
fn repetition_counts_once() {
    let mut greedy = Sampler::new(Sampling { repetition_penalty: 2.0, ..at(0.0) }).unwrap();
    assert_eq!(greedy.sample(&[3.0, 2.0, -1.0], &[], 0).unwrap(), 0);
    assert_eq!(greedy.sample(&[3.0, 2.0, -1.0], &[0], 0).unwrap(), 1);
    assert_eq!(greedy.sample(&[3.0, 1.4, -1.0], &[0, 0, 0], 0).unwrap(), 0);
    // The newest and the oldest alike.
    assert_eq!(greedy.sample(&[3.0, 2.9, 2.8], &[2, 0], 0).unwrap(), 1);
    assert_eq!(greedy.sample(&[3.0, 2.9, 2.8], &[0, 2], 0).unwrap(), 1);
    assert_eq!(greedy.sample(&[-1.0, -1.5], &[0, 77], 0).unwrap(), 1);
    // Beyond any float there is still an order.
    let mut extreme = Sampler::new(Sampling { repetition_penalty: 1e-38, ..at(1.0) }).unwrap();
    assert_eq!(extreme.sample(&[3e38, 1.0, 2.0], &[0], 0).unwrap(), 0);
    let mut harsh = Sampler::new(Sampling { repetition_penalty: 10.0, ..at(1.0) }).unwrap();
    assert_eq!(harsh.sample(&[-3e38, 1.0], &[0], 0).unwrap(), 1);
}

#[test]
fn ties_extremes_and_nonsense() {
    let mut greedy = Sampler::new(Sampling::greedy()).unwrap();
    assert_eq!(greedy.sample(&[1.0, 5.0, 5.0], &[], 0).unwrap(), 1);
    assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -3.0], &[], 0).unwrap(), 1);
    for bad in [vec![], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0], vec![f32::NEG_INFINITY; 3]] {
        assert!(greedy.sample(&bad, &[], 0).is_err(), "{bad:?}");
    }
    for bad in [
        at(f32::NAN),
        at(-1.0),
        at(f32::INFINITY),
        Sampling { top_p: 0.0, ..at(1.0) },
        Sampling { top_p: f32::NAN, ..at(1.0) },
        Sampling { min_p: -0.1, ..at(1.0) },
        Sampling { top_k: Some(0), ..at(1.0) },
        Sampling { typical_p: 0.0, ..at(1.0) },
        Sampling { epsilon_cutoff: 1.0, ..at(1.0) },
        Sampling { eta_cutoff: f32::NAN, ..at(1.0) },
        Sampling { repetition_penalty: 0.0, ..at(1.0) },
    ] {
        assert!(Sampler::new(bad.clone()).is_err(), "{bad:?}");
    }
}

/// Greedy under rules that a closure sets, in a generation that begins at position 2 and may last to position 4.
fn ruled(set: impl Fn(&mut Rules)) -> Sampler {
    let mut sampling = Sampling::greedy();
    set(&mut sampling.rules);
    let span = Span { begin: 2, end: Some(5), stop: vec![3] };
    Sampler::new(sampling).unwrap().with_span(span)
}

#[test]
fn biases_are_added_up_where_their_sequence_is_begun() {
    let mut sampler = ruled(|rules| {
        rules.biases = [
            (vec![1], -2.0),
            (vec![2, 1], 3.0),
            (vec![0, 2, 1], 9.0),
            (vec![0], f32::NEG_INFINITY),
            (vec![2, 0], f32::MAX),
        ]
        .into();
    });
    assert_eq!(sampler.sample(&[9.0, 2.5, 1.0], &[5, 6], 2).unwrap(), 2);
    assert_eq!(sampler.sample(&[9.0, 2.5, 1.0], &[5, 2], 2).unwrap(), 1);
    assert_eq!(sampler.sample(&[9.0, -8.5, 1.0], &[0, 2], 2).unwrap(), 1);
    // Never is never.
    assert_eq!(sampler.sample(&[9.0, -9.0, 1.0], &[1, 2], 2).unwrap(), 2);
    // The penalty looks at the biased logit, once.
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() }.with_logit_bias([(0, 4.0)]);
    let mut sampler = Sampler::new(sampling).unwrap();
    assert_eq!(sampler.sample(&[1.0, 2.4], &[0, 0], 2).unwrap(), 0);
    assert_eq!(sampler.sample(&[1.0, 2.6], &[0, 0], 2).unwrap(), 1);
    let banned = Sampling { repetition_penalty: 2.0, ..at(1.0) }.with_logit_bias([(0, f32::NEG_INFINITY)]);
    assert_eq!(Sampler::new(banned).unwrap().sample(&[1.0, -3e38], &[0], 2).unwrap(), 1);
}

#[test]
fn rules_by_position() {
    let mut first = ruled(|rules| rules.suppressed_first = vec![0]);
    let mut last = ruled(|rules| rules.forced_last = vec![2, 1]);
    let mut long = ruled(|rules| rules.min_length = Length::New(2));
    let mut longer = ruled(|rules| rules.min_length = Length::Total(5));
    let mut decay = ruled(|rules| rules.length_decay = Some(LengthDecay { after: 1, factor: 3.0 }));
    let mut all = |position, logits: &[f32]| {
        let samplers = [&mut first, &mut last, &mut long, &mut longer, &mut decay];
        samplers.map(|sampler| sampler.sample(logits, &[0; 9], position).unwrap())
    };
    assert_eq!(all(2, &[9.0, 2.0, 3.0, 9.5]), [3, 3, 0, 0, 3]);
    assert_eq!(all(3, &[9.0, 2.0, 3.0, 8.5]), [0, 0, 0, 0, 0]);
    assert_eq!(all(4, &[9.0, 2.0, 3.0, 4.0]), [0, 1, 0, 0, 3]);
    assert_eq!(all(5, &[9.0, 2.0, 3.0, 9.5]), [3, 3, 3, 3, 3]);
    // A token that is listed twice ends no sooner.
    let mut twice = decay.with_span(Span { begin: 2, end: None, stop: vec![3, 3] });
    assert_eq!(twice.sample(&[9.0, 2.0, 3.0, 2.5], &[0; 9], 4).unwrap(), 0);
    assert_eq!(twice.sample(&[9.0, 2.0, 3.0, 3.5], &[0; 9], 4).unwrap(), 3);
    let mut second = ruled(|rules| (rules.forced_second, rules.suppressed) = (Some(2), vec![0]));
    assert_eq!(second.sample(&[9.0, 2.0, 1.0], &[0], 1).unwrap(), 2);
    assert_eq!(second.sample(&[9.0, 2.0, 1.0], &[0, 0], 2).unwrap(), 1);
}

#[test]
fn sequences_that_may_not_come() {
    let mut bad = ruled(|rules| rules.bad_words = vec![vec![0], vec![3], vec![2, 3, 1]]);
    // What ends the generation may.
    assert_eq!(bad.sample(&[9.0, 2.0, 1.0, 8.0], &[2, 3], 2).unwrap(), 3);
    assert_eq!(bad.sample(&[9.0, 2.0, 1.0, 0.0], &[3], 2).unwrap(), 1);
    assert_eq!(bad.sample(&[9.0, 2.0, 1.0, 0.0], &[2, 3], 2).unwrap(), 2);
    let mut ngrams = ruled(|rules| rules.no_repeat_ngram = 3);
    assert_eq!(ngrams.sample(&[9.0, 2.0], &[4, 5, 0, 5, 5], 5).unwrap(), 0);
    assert_eq!(ngrams.sample(&[9.0, 2.0], &[4, 5, 0, 4, 5], 5).unwrap(), 1);
    assert_eq!(ngrams.sample(&[9.0, 2.0], &[5, 0], 2).unwrap(), 0);
    let mut unigrams = ruled(|rules| rules.no_repeat_ngram = 1);
    assert_eq!(unigrams.sample(&[9.0, 2.0], &[0], 5).unwrap(), 1);
    let mut huge = ruled(|rules| rules.no_repeat_ngram = usize::MAX);
    assert_eq!(huge.sample(&[9.0, 2.0], &[0], 5).unwrap(), 0);
}

#[test]
fn rules_that_leave_nothing_or_mean_nothing() {
    let mut none = ruled(|rules| (rules.suppressed, rules.bad_words) = (vec![0, 0, u32::MAX], vec![vec![1]]));
    let error = none.sample(&[1.0, 2.0], &[], 4).unwrap_err();
    assert!(matches!(error, Error::AllSuppressed { position: 4 }), "{error}");
    assert_eq!(none.sample(&[1.0, 2.0, -9.0], &[], 4).unwrap(), 2);
    for set in [
        |rules: &mut Rules| rules.bad_words = vec![vec![1, 2]],
        |rules: &mut Rules| rules.biases = [(vec![2], 0.0)].into(),
        |rules: &mut Rules| rules.forced_second = Some(2),
        |rules: &mut Rules| rules.forced_last = vec![2],
    ] {
        let error = ruled(set).sample(&[1.0, 2.0], &[], 4).unwrap_err().to_string();
        assert!(error.ends_with("expected token ids less than 2, found 2"), "{error}");
    }
    for set in [
        |rules: &mut Rules| rules.bad_words = vec![vec![]],
        |rules: &mut Rules| rules.biases = [(vec![], 0.0)].into(),
        |rules: &mut Rules| rules.biases = [(vec![1], f32::NAN)].into(),
        |rules: &mut Rules| rules.biases = [(vec![1], f32::INFINITY)].into(),
        |rules: &mut Rules| rules.length_decay = Some(LengthDecay { after: 0, factor: f64::NAN }),
    ] {
        let mut sampling = Sampling::greedy();
        set(&mut sampling.rules);
        assert!(matches!(sampling.check(), Err(Error::Setting { .. })), "{sampling:?}");
    }
    // Extremes stay numbers.
    let mut extreme = ruled(|rules| {
        rules.biases = [(vec![0], f32::MAX), (vec![1, 0], f32::MAX), (vec![1], f32::MIN)].into();
        rules.length_decay = Some(LengthDecay { after: 0, factor: 1e300 });
        rules.min_length = Length::New(usize::MAX);
    });
    let stop = |stop: &[u32]| Span { begin: 2, end: None, stop: stop.to_vec() };
    extreme = extreme.with_span(stop(&[]));
    assert_eq!(extreme.sample(&[3e38, -3e38], &[1], usize::MAX).unwrap(), 0);
    extreme = extreme.with_span(stop(&[0, 9, 0]));
    assert_eq!(extreme.sample(&[0.0, -3e38], &[1], usize::MAX).unwrap(), 0);
}

#[test]
fn probabilities_are_of_what_is_left() {
    let mut sampler = Sampler::new(Sampling { top_k: Some(2), ..at(1.0) }).unwrap();
    let left: Vec<_> = sampler.probabilities(&logits(), &[], 0).unwrap().collect();
    assert_eq!(left.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3]);
    assert!((left[0].1 - 4.0 / 7.0).abs() < 1e-6 && (left[1].1 - 3.0 / 7.0).abs() < 1e-6, "{left:?}");
    // Tokens as probable as the last of the best are left too.
    let ties: Vec<_> =
        sampler.probabilities(&[2.0, 1.0, 0.0, 1.0], &[], 0).unwrap().map(|(t, _)| t).collect();
    assert_eq!(ties, [0, 1, 3]);
    let mut greedy = Sampler::new(Sampling::greedy()).unwrap();
    assert_eq!(greedy.probabilities(&logits(), &[], 0).unwrap().collect::<Vec<_>>(), [(1, 1.0)]);
}

#[test]
fn setters_set_and_refuse() {
    let rules = Rules::default()
        .with_bias([1, 2], -0.5)
        .with_no_repeat_ngram(3)
        .with_bad_words([vec![4]])
        .with_min_length(Length::Total(9))
        .with_forced_second(5)
        .with_forced_last([6])
        .with_length_decay(LengthDecay { after: 7, factor: 1.5 })
        .with_suppressed([8])
        .with_suppressed_first([9]);
    let sampling = (Sampling::greedy().with_temperature(0.7))
        .and_then(|s| s.with_top_k(40)?.with_top_p(0.9)?.with_min_p(0.1)?.with_typical_p(0.8))
        .and_then(|s| s.with_epsilon_cutoff(0.2)?.with_eta_cutoff(0.3)?.with_repetition_penalty(1.1))
        .and_then(|s| s.with_rules(rules.clone()))
        .unwrap()
        .with_seed(3);
    let expected = Sampling {
        temperature: 0.7,
        top_k: Some(40),
        top_p: 0.9,
        min_p: 0.1,
        typical_p: 0.8,
        epsilon_cutoff: 0.2,
        eta_cutoff: 0.3,
        repetition_penalty: 1.1,
        rules: Rules {
            biases: [(vec![1, 2], -0.5)].into(),
            no_repeat_ngram: 3,
            bad_words: vec![vec![4]],
            min_length: Length::Total(9),
            forced_second: Some(5),
            forced_last: vec![6],
            length_decay: Some(LengthDecay { after: 7, factor: 1.5 }),
            suppressed: vec![8],
            suppressed_first: vec![9],
        },
        seed: 3,
    };
    assert_eq!(sampling, expected);
    assert_eq!(sampling.with_top_k(None).unwrap().top_k, None);

    type Set = fn(Sampling) -> Result<Sampling>;
    let refused: [(&str, Set); 14] = [
        ("temperature", |s| s.with_temperature(-1.0)),
        ("temperature", |s| s.with_temperature(f32::NAN)),
        ("temperature", |s| s.with_temperature(f32::INFINITY)),
        ("top-k", |s| s.with_top_k(0)),
        ("top-p", |s| s.with_top_p(0.0)),
        ("min-p", |s| s.with_min_p(1.5)),
        ("typical-p", |s| s.with_typical_p(f32::NAN)),
        ("epsilon cutoff", |s| s.with_epsilon_cutoff(1.0)),
        ("eta cutoff", |s| s.with_eta_cutoff(-0.1)),
        ("repetition penalty", |s| s.with_repetition_penalty(0.0)),
        ("bias", |s| s.with_rules(Rules::default().with_bias([], 1.0))),
        ("bias", |s| s.with_rules(Rules::default().with_bias([1], f32::NAN))),
        ("bad words", |s| s.with_rules(Rules::default().with_bad_words([vec![]]))),
        ("length decay", |s| {
            let decay = LengthDecay { after: 0, factor: f64::INFINITY };
            s.with_rules(Rules::default().with_length_decay(decay))
        }),
    ];
    for (name, set) in refused {
        match set(Sampling::greedy()).unwrap_err() {
            Error::Setting { setting, .. } => assert_eq!(setting, name),
            other => panic!("{name}: {other}"),
        }
    }
}
