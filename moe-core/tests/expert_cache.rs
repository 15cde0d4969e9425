//! The cache's policies on sequences worked out by hand, what does not fit it, and a layer scan that is larger than it.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use moe_core::expert_cache::{
    Answer, CachePolicy, CacheReport, ExpertCache, ExpertKey, ExpertSizes, LayerAccess, belady, simulate,
};

fn cache(policy: &str, layers: usize, experts: usize, budget: u64) -> ExpertCache {
    ExpertCache::new(ExpertSizes::equal(layers, experts, 1).unwrap(), budget, policy.parse().unwrap())
        .unwrap()
}

/// The residents as two digits each, layer and expert.
fn residents(cache: &ExpertCache) -> String {
    let names: Vec<String> = cache.residents().map(|key| format!("{}{}", key.layer, key.expert)).collect();
    names.join(" ")
}

/// One layer's turn: the answers, and the residents after it.
fn turn(cache: &mut ExpertCache, layer: usize, plan: &[usize]) -> (String, String) {
    cache.begin_layer(layer, plan.iter().copied()).unwrap();
    let mut evicted = Vec::new();
    let answers = plan.iter().map(|&expert| match cache.request(expert, &mut evicted).unwrap() {
        Answer::Hit => 'h',
        Answer::Load => 'l',
        Answer::Stream => 's',
    });
    (answers.collect(), residents(cache))
}

/// A step of a single layer for each expert, and what is to be expected: answer and residents.
fn one_by_one(policy: &str, budget: u64, rows: &[(usize, &str, &str)]) {
    let mut cache = cache(policy, 1, 4, budget);
    for (step, &(expert, answer, after)) in rows.iter().enumerate() {
        cache.begin_step();
        let found = turn(&mut cache, 0, &[expert]);
        assert_eq!(found, (answer.into(), after.into()), "{policy}, step {step}");
    }
}

#[test]
fn least_recently_used() {
    let rows = [(0, "l", "00"), (1, "l", "00 01"), (0, "h", "00 01"), (2, "l", "00 02"), (1, "l", "01 02")];
    one_by_one("lru", 2, &rows);
    one_by_one("lru-per-layer", 2, &rows);
}

#[test]
fn least_often_used() {
    let rows = [
        (0, "l", "00"),
        (0, "h", "00"),
        (1, "l", "00 01"),
        // Two uses of 0, one of 1.
        (2, "l", "00 02"),
        // The use of 1 before its eviction counts, but it is the others that are compared: 0 twice, 2 once.
        (1, "l", "00 01"),
        // Two uses of either: 0 was used earlier.
        (2, "l", "01 02"),
    ];
    one_by_one("lfu", 2, &rows);
}

#[test]
fn counts_age() {
    let rows = [
        (0, "l", "00"),
        (0, "h", "00"),
        // Halved before this step: 0 has 1, then 2.
        (0, "h", "00"),
        (1, "l", "00 01"),
        // And before this one: 0 has 1, and 1 a half, then one and a half.
        (1, "h", "00 01"),
        (2, "l", "01 02"),
    ];
    one_by_one("lfu-per-layer:age=2", 2, &rows);
    // Three uses against two.
    one_by_one("lfu", 2, &[&rows[..5], &[(2, "l", "00 02")]].concat());
}

/// The turns of several layers: layer, plan, answers, residents. Layer 0 begins a step.
fn by_turns(cache: &mut ExpertCache, rows: &[(usize, &[usize], &str, &str)]) {
    for (i, &(layer, plan, answers, after)) in rows.iter().enumerate() {
        if layer == 0 {
            cache.begin_step();
        }
        assert_eq!(turn(cache, layer, plan), (answers.into(), after.into()), "row {i}");
    }
}

#[test]
fn a_share_of_each_layer() {
    // Two places for layer 0 and one for layer 1.
    let mut cache = cache("lru-per-layer", 2, 3, 3);
    assert_eq!([0, 1, 2].map(|layer| cache.budget(layer)), [Some(2), Some(1), None]);
    by_turns(
        &mut cache,
        &[
            (0, &[0], "l", "00"),
            (1, &[0], "l", "00 10"),
            (0, &[1], "l", "00 01 10"),
            (1, &[1], "l", "00 01 11"),
            (0, &[2], "l", "01 02 11"),
            (1, &[1], "h", "01 02 11"),
        ],
    );
}

#[test]
fn least_stale() {
    by_turns(
        &mut cache("least-stale", 3, 2, 4),
        &[
            (0, &[0], "l", "00"),
            (1, &[0], "l", "00 10"),
            (2, &[0], "l", "00 10 20"),
            (0, &[1], "l", "00 01 10 20"),
            // Stale are 00, 10 and 20, and the layer at hand has the farthest turn.
            (1, &[1], "l", "00 01 11 20"),
            (2, &[1], "l", "00 01 11 21"),
            (0, &[0], "h", "00 01 11 21"),
            (1, &[0], "l", "00 01 10 21"),
            (2, &[0], "l", "00 01 10 20"),
            (0, &[0], "h", "00 01 10 20"),
            // Layer 1 has nothing but its plan. Of what is stale, 01 has had its turn and 20 has not.
            (1, &[0, 1], "hl", "00 10 11 20"),
            // Nothing is stale: layer 1 was latest, and used 10 before 11.
            (2, &[0, 1], "hl", "00 11 20 21"),
            (0, &[1], "l", "01 11 20 21"),
            (1, &[1], "h", "01 11 20 21"),
            (2, &[1], "h", "01 11 20 21"),
            // All that is stale is yet to come: the last layer first, and of it what was used earlier.
            (0, &[0, 1], "lh", "00 01 11 21"),
        ],
    );
}

#[test]
fn a_plan_that_does_not_fit_streams() {
    for policy in CachePolicy::FORMS.map(|form| form.replace("STEPS", "3")) {
        let mut cache = cache(&policy, 1, 4, 2);
        cache.begin_step();
        assert_eq!(turn(&mut cache, 0, &[0, 1, 2]), ("lls".into(), "00 01".into()), "{policy}");
        cache.begin_step();
        // 1 is of the plan, so 0 makes room for 3; then there is no more.
        assert_eq!(turn(&mut cache, 0, &[3, 2, 1]), ("lsh".into(), "01 03".into()), "{policy}");
    }
}

#[test]
fn bytes_are_what_is_counted() {
    let sizes = ExpertSizes::new(1, 4, &[3, 2, 2, 8]).unwrap();
    let mut cache = ExpertCache::new(sizes, 7, CachePolicy::Lru).unwrap();
    let mut evicted = Vec::new();
    let mut ask = |cache: &mut ExpertCache, expert: usize| {
        cache.begin_step();
        cache.begin_layer(0, [expert]).unwrap();
        let answer = cache.request(expert, &mut evicted).unwrap();
        (answer, evicted.iter().map(|key| key.expert).collect::<Vec<_>>(), cache.resident_bytes())
    };
    assert_eq!(ask(&mut cache, 1), (Answer::Load, vec![], 2));
    assert_eq!(ask(&mut cache, 2), (Answer::Load, vec![], 4));
    assert_eq!(ask(&mut cache, 0), (Answer::Load, vec![], 7));
    // Larger than the budget: nothing is evicted for it.
    assert_eq!(ask(&mut cache, 3), (Answer::Stream, vec![], 7));
    assert_eq!(ask(&mut cache, 1), (Answer::Hit, vec![], 7));
    assert!(cache.forget(ExpertKey::new(0, 2)) && !cache.forget(ExpertKey::new(0, 2)));
    assert!(!cache.forget(ExpertKey::new(7, 0)));
    // What is forgotten is read again.
    assert_eq!(ask(&mut cache, 2), (Answer::Load, vec![], 7));
    assert!(cache.forget(ExpertKey::new(0, 2)), "also while it is pinned");
    assert_eq!(ask(&mut cache, 2), (Answer::Load, vec![], 7));
    let sizes = ExpertSizes::new(1, 3, &[3, 2, 5]).unwrap();
    let mut cache = ExpertCache::new(sizes, 5, CachePolicy::Lru).unwrap();
    assert_eq!([0, 1].map(|e| ask(&mut cache, e).0), [Answer::Load; 2]);
    assert_eq!(ask(&mut cache, 2), (Answer::Load, vec![0, 1], 5));
}

#[test]
fn a_prior_fills_the_cache() {
    let start = |policy: &str, worth: [f64; 6]| cache(policy, 2, 3, 3).with_prior(&worth);
    let lru = start("lru", [1.0, 0.0, 4.0, 4.0, 0.0, 2.0]).unwrap();
    assert_eq!(residents(&lru), "02 10 12");
    // One place for layer 1, two for layer 0.
    let mut lfu = start("lfu-per-layer", [1.0, 0.0, 4.0, 4.0, 0.0, 2.0]).unwrap();
    assert_eq!(residents(&lfu), "00 02 10");
    // 00 is worth one use.
    assert_eq!(turn(&mut lfu, 0, &[1]), ("l".into(), "01 02 10".into()));
    assert!(lfu.with_prior(&[0.0; 6]).unwrap_err().to_string().contains("one, before the first step"));
    let mut lru = lru;
    // The least worthy is the least recently used.
    assert_eq!(turn(&mut lru, 0, &[0]), ("l".into(), "00 02 10".into()));
    assert_eq!(
        turn(&mut lru, 0, &[1]),
        ("l".into(), "00 01 02".into()),
        "of equal worth, the lower key is the more recent"
    );
    let wrong = |worth| start("lfu", worth).unwrap_err().to_string();
    for worth in [f64::NAN, -1.0, 2e15, f64::INFINITY] {
        assert!(wrong([0.0, worth, 0.0, 0.0, 0.0, 0.0]).contains("numbers from 0 to 1e15"), "{worth}");
    }
    let error = cache("lru", 2, 3, 3).with_prior(&[1.0]).unwrap_err().to_string();
    assert_eq!(error, "expert cache, prior: expected 6 numbers, found 1");
}

/// Steps of four layers that ask for the same two of eight experts each time.
fn scan(policy: &str, budget: u64) -> CacheReport {
    let mut cache = cache(policy, 4, 8, budget);
    let trace = (0..40).map(|i| LayerAccess { step: i / 4, layer: i as usize % 4, experts: &[2, 5] });
    simulate(&mut cache, trace).unwrap()
}

#[test]
fn a_global_lru_falls_off_a_cliff_and_others_do_not() {
    let hits = |policy, budget| scan(policy, budget).total().hits;
    // Ten steps of eight requests, of which the first step can have no hit.
    assert_eq!(hits("lru", 8), 72);
    // One of the two experts is still there when its plan is announced, and is spared.
    assert_eq!(hits("lru", 7), 36);
    assert_eq!([6, 5, 4, 3].map(|budget| hits("lru", budget)), [0; 4]);
    // Shares of 2, 2, 1 and 1.
    let per_layer = scan("lru-per-layer", 6);
    assert_eq!(hits_by_layer(&per_layer), [18, 18, 9, 9]);
    // One of two streams in each step of layers 2 and 3.
    assert_eq!((per_layer.total().bytes_read, per_layer.streamed, per_layer.steps), (8 + 18, 20, 10));
    assert_eq!(hits("lfu-per-layer:age=4", 6), 9 * 6);
    assert_eq!([6, 5, 4, 3].map(|budget| hits("least-stale", budget) > 0), [true; 4]);
}

fn hits_by_layer(report: &CacheReport) -> Vec<u64> {
    report.layers.iter().map(|of_layer| of_layer.hits).collect()
}

#[test]
fn belady_by_hand() {
    let sizes = ExpertSizes::equal(1, 3, 5).unwrap();
    let order = [[0], [1], [2], [0], [1], [2], [0]];
    let trace = || order.iter().zip(0..).map(|(experts, step)| LayerAccess { step, layer: 0, experts });
    // 0 and 1 are loaded; 2 is used later than both, and streams; 0 and 1 hit; 2 is never used again, and 0 hits.
    let report = belady(&sizes, 10, [], trace()).unwrap();
    let total = report.total();
    assert_eq!(
        (total.hits, total.misses(), total.bytes_read, report.streamed, report.evictions),
        (3, 4, 20, 2, 0)
    );
    // With 2 from the start, 0 takes the free place, and 1 streams: it is used again later than 0 and 2.
    let report = belady(&sizes, 10, [ExpertKey::new(0, 2)], trace()).unwrap();
    assert_eq!((report.total().hits, report.streamed), (4, 2));
    let error = belady(&sizes, 4, [ExpertKey::new(0, 2)], trace()).unwrap_err().to_string();
    assert_eq!(
        error,
        "initial residents: expected distinct experts within the budget, found layer 0, expert 2"
    );
}

#[test]
fn policies_as_text() {
    for text in ["lru", "lru-per-layer", "lfu", "lfu-per-layer:age=7", "least-stale"] {
        assert_eq!(text.parse::<CachePolicy>().unwrap().to_string(), text);
    }
    assert_eq!("lfu-per-layer".parse::<CachePolicy>().unwrap().to_string(), "lfu-per-layer:age=64");
    let error = |text: &str| text.parse::<CachePolicy>().unwrap_err().to_string();
    assert_eq!(
        error("arc"),
        "expert cache policy: expected one of lru, lru-per-layer, lfu, lfu-per-layer:age=STEPS, least-stale, found arc"
    );
    for age in ["0", "-1", "1.5", "", "4294967296"] {
        let expected = format!("lfu-per-layer, age: expected 1 to 4294967295 steps, found {age}");
        assert_eq!(error(&format!("lfu-per-layer:age={age}")), expected);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut cache = cache("lru", 2, 3, 4);
    let mut evicted = Vec::new();
    let error = cache.request(0, &mut evicted).unwrap_err().to_string();
    assert_eq!(error, "expert cache: expected a layer at hand, found expert 0 asked for before one");
    let mut layer =
        |layer, plan: &[usize]| cache.begin_layer(layer, plan.iter().copied()).unwrap_err().to_string();
    assert_eq!(
        layer(2, &[0]),
        "expert cache: expected a layer below 2 and an expert below 3, found layer 2, expert 0"
    );
    assert_eq!(
        layer(1, &[0, 3]),
        "expert cache: expected a layer below 2 and an expert below 3, found layer 1, expert 3"
    );
    assert_eq!(
        layer(1, &[2, 0, 2]),
        "expert cache, plan: expected distinct experts, found layer 1, expert 2 twice"
    );
    assert!(cache.request(2, &mut evicted).is_err(), "no layer is at hand after an error");
    cache.begin_layer(1, [2]).unwrap();
    let error = cache.request(1, &mut evicted).unwrap_err().to_string();
    assert_eq!(
        error,
        "expert cache: expected an expert of the plan of layer 1, found expert 1, which was not announced"
    );
    assert!(cache.request(usize::MAX, &mut evicted).is_err());
    assert_eq!(cache.request(2, &mut evicted).unwrap(), Answer::Load);

    let sizes =
        |layers, experts, bytes: &[u64]| ExpertSizes::new(layers, experts, bytes).unwrap_err().to_string();
    assert_eq!(
        sizes(0, 3, &[]),
        "expert sizes: expected at least one layer of one expert, found 0 layers of 3 experts"
    );
    assert_eq!(sizes(2, 2, &[1]), "expert sizes: expected 4 for 2 layers of 2 experts, found 1");
    assert_eq!(sizes(1, 2, &[u64::MAX, 1]), "expert sizes: expected a sum below 2^64 bytes, found more");
    assert!(
        ExpertSizes::equal(usize::MAX, 2, 1).is_err() && ExpertSizes::equal(1 << 20, 1 << 12, 1).is_err()
    );
    assert!(!ExpertSizes::new(1, 3, &[2, 0, 3]).unwrap().are_equal());
    assert!(ExpertSizes::new(1, 3, &[2, 0, 2]).unwrap().are_equal());
}
