//! The cache against a slow one written as the documentation says it, and Belady's bound against all choices there are.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use std::cmp::Reverse;
use std::collections::BTreeMap;

use moe_core::expert_cache::{
    Answer, CachePolicy, ExpertCache, ExpertKey, ExpertSizes, LayerAccess, belady, simulate,
};

/// Numbers that look random (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// So many distinct numbers below `n` in any order; low ones more often.
    fn distinct(&mut self, count: usize, n: usize) -> Vec<usize> {
        let mut left: Vec<usize> = (0..n).collect();
        (0..count)
            .map(|_| {
                let at = self.below(left.len()).min(self.below(left.len()));
                left.remove(at)
            })
            .collect()
    }
}

/// A cache that keeps lists and searches them.
struct Slow {
    sizes: ExpertSizes,
    policy: CachePolicy,
    budgets: Vec<u64>,
    residents: Vec<ExpertKey>,
    /// Every use, with its step; those of a prior have none.
    uses: Vec<(ExpertKey, Option<usize>)>,
    counts: BTreeMap<ExpertKey, f64>,
    step: Option<usize>,
    layer: usize,
    plan: Vec<ExpertKey>,
}

impl Slow {
    fn new(sizes: &ExpertSizes, budget: u64, policy: CachePolicy) -> Self {
        let mut budgets = vec![0; sizes.layers()];
        let bytes = |layer, expert| sizes.bytes(ExpertKey::new(layer, expert)).unwrap();
        let (mut left, mut dealt) = (budget, true);
        while std::mem::take(&mut dealt) {
            for layer in 0..sizes.layers() {
                let all: u64 = (0..sizes.experts()).map(|e| bytes(layer, e)).sum();
                let largest = (0..sizes.experts()).map(|e| bytes(layer, e)).max().unwrap();
                let more = largest.min(all - budgets[layer]);
                if more > 0 && more <= left {
                    budgets[layer] += more;
                    left -= more;
                    dealt = true;
                }
            }
        }
        if !policy.is_per_layer() {
            budgets.fill(budget);
        }
        let (residents, uses, counts) = (vec![], vec![], BTreeMap::new());
        Self {
            sizes: sizes.clone(),
            policy,
            budgets,
            residents,
            uses,
            counts,
            step: None,
            layer: 0,
            plan: vec![],
        }
    }

    fn bytes(&self, key: ExpertKey) -> u64 {
        self.sizes.bytes(key).unwrap()
    }

    /// What competes with an expert for room.
    fn rivals(&self, key: ExpertKey) -> Vec<ExpertKey> {
        let competes = |other: &&ExpertKey| !self.policy.is_per_layer() || other.layer == key.layer;
        self.residents.iter().filter(competes).copied().collect()
    }

    fn sum(&self, keys: &[ExpertKey]) -> u64 {
        keys.iter().map(|&key| self.bytes(key)).sum()
    }

    fn prior(&mut self, worth: &[f64]) {
        let experts = self.sizes.experts();
        let mut keys: Vec<ExpertKey> =
            (0..worth.len()).map(|i| ExpertKey::new(i / experts, i % experts)).collect();
        let of = |key: &ExpertKey| worth[key.layer * experts + key.expert];
        keys.retain(|key| of(key) > 0.0);
        keys.sort_by(|a, b| of(b).total_cmp(&of(a)));
        for &key in &keys {
            if self.sum(&self.rivals(key)) + self.bytes(key) <= self.budgets[key.layer] {
                self.residents.push(key);
            }
        }
        for key in keys.iter().rev() {
            self.uses.push((*key, None));
            self.counts.insert(*key, of(key));
        }
    }

    fn begin_step(&mut self) {
        let step = self.step.map_or(0, |step| step + 1);
        self.step = Some(step);
        if let CachePolicy::LfuPerLayer { age } = self.policy
            && step > 0
            && step.is_multiple_of(age.get() as usize)
        {
            self.counts.values_mut().for_each(|count| *count /= 2.0);
        }
        self.plan.clear();
    }

    fn begin_layer(&mut self, layer: usize, plan: &[usize]) {
        self.layer = layer;
        self.plan = plan.iter().map(|&expert| ExpertKey::new(layer, expert)).collect();
    }

    /// Steps until the layer's turn, in layers.
    fn turn(&self, layer: usize) -> usize {
        if layer > self.layer { layer - self.layer } else { layer + self.sizes.layers() - self.layer }
    }

    fn victim(&self, key: ExpertKey) -> ExpertKey {
        let mut rivals = self.rivals(key);
        rivals.retain(|rival| !self.plan.contains(rival));
        let last = |rival: &ExpertKey| self.uses.iter().rposition(|(used, _)| used == rival).unwrap();
        let lru = |a: &ExpertKey, b: &ExpertKey| last(a).cmp(&last(b));
        let first = match self.policy {
            CachePolicy::Lru | CachePolicy::LruPerLayer => rivals.into_iter().min_by(lru),
            CachePolicy::Lfu | CachePolicy::LfuPerLayer { .. } => rivals
                .into_iter()
                .min_by(|a, b| self.counts[a].total_cmp(&self.counts[b]).then_with(|| lru(a, b))),
            _ => rivals.into_iter().min_by_key(|rival| {
                let used = self.uses[last(rival)].1 == self.step;
                (used, Reverse(self.turn(rival.layer)), last(rival))
            }),
        };
        first.unwrap()
    }

    fn request(&mut self, expert: usize) -> (Answer, Vec<ExpertKey>) {
        let key = ExpertKey::new(self.layer, expert);
        self.uses.push((key, self.step));
        *self.counts.entry(key).or_default() += 1.0;
        if self.residents.contains(&key) {
            return (Answer::Hit, vec![]);
        }
        let mut pinned = self.rivals(key);
        pinned.retain(|rival| self.plan.contains(rival));
        if self.sum(&pinned) + self.bytes(key) > self.budgets[self.layer] {
            return (Answer::Stream, vec![]);
        }
        let mut evicted = vec![];
        while self.sum(&self.rivals(key)) + self.bytes(key) > self.budgets[self.layer] {
            let victim = self.victim(key);
            self.residents.retain(|&resident| resident != victim);
            evicted.push(victim);
        }
        self.residents.push(key);
        (Answer::Load, evicted)
    }
}

fn policies(draw: &mut Draw) -> Vec<CachePolicy> {
    let age = format!("lfu-per-layer:age={}", 1 + draw.below(5));
    ["lru", "lru-per-layer", "lfu", &age, "least-stale"].map(|text| text.parse().unwrap()).into()
}

/// Runs both for some steps and compares all that they say.
fn compare(draw: &mut Draw, sizes: &ExpertSizes, budget: u64, policy: CachePolicy, steps: usize) {
    let (layers, experts) = (sizes.layers(), sizes.experts());
    let mut fast = ExpertCache::new(sizes.clone(), budget, policy).unwrap();
    let mut slow = Slow::new(sizes, budget, policy);
    if draw.below(3) == 0 {
        let worth: Vec<f64> = (0..layers * experts).map(|_| draw.below(5) as f64 / 2.0).collect();
        fast = fast.with_prior(&worth).unwrap();
        slow.prior(&worth);
    }
    let mut evicted = Vec::new();
    for step in 0..steps {
        fast.begin_step();
        slow.begin_step();
        for layer in 0..layers {
            // Now and then a layer is left out, or its turn comes twice.
            for _ in 0..[1, 1, 1, 1, 0, 2][draw.below(6)] {
                let count = 1 + draw.below(experts);
                let plan = draw.distinct(count, experts);
                fast.begin_layer(layer, plan.iter().copied()).unwrap();
                slow.begin_layer(layer, &plan);
                for (i, &expert) in plan.iter().enumerate() {
                    if draw.below(20) == 0 {
                        continue;
                    }
                    let answer = fast.request(expert, &mut evicted).unwrap();
                    let at =
                        format!("{policy}, step {step}, layer {layer}, {i} of {plan:?}, budget {budget}");
                    assert_eq!((answer, evicted.clone()), slow.request(expert), "{at}");
                    assert!(fast.resident_bytes() <= budget, "{at}");
                    assert!(
                        !evicted.iter().any(|key| key.layer == layer && plan.contains(&key.expert)),
                        "{at}"
                    );
                    if draw.below(30) == 0 {
                        let key = ExpertKey::new(draw.below(layers), draw.below(experts));
                        assert_eq!(fast.forget(key), slow.residents.contains(&key), "{at}");
                        slow.residents.retain(|&resident| resident != key);
                    }
                    slow.residents.sort_unstable();
                    assert!(fast.residents().eq(slow.residents.iter().copied()), "{at}");
                    assert_eq!(fast.resident_bytes(), slow.sum(&slow.residents), "{at}");
                }
            }
        }
    }
}

#[test]
fn every_policy_is_what_its_documentation_says() {
    let mut draw = Draw(1);
    for case in 0..60 {
        let (layers, experts) = (1 + draw.below(4), 1 + draw.below(6));
        let equal = case % 2 == 0;
        let bytes: Vec<u64> =
            (0..layers * experts).map(|_| if equal { 3 } else { draw.below(7) as u64 }).collect();
        let sizes = ExpertSizes::new(layers, experts, &bytes).unwrap();
        let budget = draw.below(sizes.total() as usize + 3) as u64;
        for policy in policies(&mut draw) {
            compare(&mut draw, &sizes, budget, policy, 25);
        }
    }
}

#[test]
fn counts_age_for_as_long_as_one_likes() {
    let mut draw = Draw(2);
    let sizes = ExpertSizes::equal(1, 6, 1).unwrap();
    compare(&mut draw, &sizes, 3, "lfu-per-layer:age=1".parse().unwrap(), 800);
}

#[test]
fn more_layers_than_a_word_has_bits() {
    let mut draw = Draw(3);
    let sizes = ExpertSizes::equal(70, 2, 1).unwrap();
    compare(&mut draw, &sizes, 65, CachePolicy::LeastStale, 6);
}

#[test]
fn a_plan_that_fits_is_resident_in_the_end() {
    let mut draw = Draw(4);
    for policy in policies(&mut draw) {
        let mut cache = ExpertCache::new(ExpertSizes::equal(3, 6, 2).unwrap(), 20, policy).unwrap();
        let mut evicted = Vec::new();
        for _ in 0..200 {
            cache.begin_step();
            for layer in 0..3 {
                // Shares are 4, 3 and 3 places.
                let plan = draw.distinct(3, 6);
                cache.begin_layer(layer, plan.iter().copied()).unwrap();
                let had: Vec<bool> =
                    plan.iter().map(|&e| cache.is_resident(ExpertKey::new(layer, e))).collect();
                for (&expert, had) in plan.iter().zip(had) {
                    let answer = cache.request(expert, &mut evicted).unwrap();
                    assert_eq!(answer, if had { Answer::Hit } else { Answer::Load }, "{policy}");
                }
                assert!(plan.iter().all(|&e| cache.is_resident(ExpertKey::new(layer, e))), "{policy}");
            }
        }
    }
}

/// The most hits that any sequence of choices has: for each request and each set of residents, to let pass or to evict any one.
fn most_hits(requests: &[usize], places: usize, initial: usize) -> u64 {
    let keys = requests.iter().max().unwrap() + 1;
    let mut best = vec![0; 1 << keys];
    for &key in requests.iter().rev() {
        let after = best.clone();
        for (set, best) in best.iter_mut().enumerate() {
            let holds = |key: usize| set >> key & 1 == 1;
            *best = if holds(key) {
                1 + after[set]
            } else if set.count_ones() < places as u32 {
                after[set].max(after[set | 1 << key])
            } else {
                let evict = (0..keys)
                    .filter(|&other| holds(other))
                    .map(|other| after[set & !(1 << other) | 1 << key]);
                evict.fold(after[set], u64::max)
            };
        }
    }
    best[initial]
}

#[test]
fn belady_is_the_best_of_all_choices() {
    let mut draw = Draw(5);
    for _ in 0..500 {
        let (keys, length, places) = (2 + draw.below(6), 1 + draw.below(30), draw.below(5));
        let requests: Vec<usize> = (0..length).map(|_| draw.below(keys)).collect();
        let experts: Vec<[u32; 1]> = requests.iter().map(|&key| [key as u32]).collect();
        let trace = experts.iter().zip(0..).map(|(experts, step)| LayerAccess { step, layer: 0, experts });
        let initial: Vec<usize> = (0..draw.below(places + 1).min(keys)).collect();
        let set = initial
            .iter()
            .filter(|&&key| key <= *requests.iter().max().unwrap())
            .fold(0, |set, key| set | 1 << key);
        let sizes = ExpertSizes::equal(1, keys, 7).unwrap();
        // A budget is as good as the whole experts that it holds.
        let budget = (places * 7 + draw.below(7)) as u64;
        // An expert that is never asked for is the first to go, so it takes no place.
        let found = belady(&sizes, budget, initial.iter().map(|&key| ExpertKey::new(0, key)), trace).unwrap();
        assert_eq!(
            found.total().hits,
            most_hits(&requests, places, set),
            "{requests:?}, {places} places, {initial:?}"
        );
    }
}

#[test]
fn no_policy_beats_belady() {
    let mut draw = Draw(6);
    for _ in 0..40 {
        let (layers, experts) = (1 + draw.below(5), 2 + draw.below(7));
        let mut accesses = vec![];
        for step in 0..40 {
            for layer in 0..layers {
                let count = 1 + draw.below(experts.min(3));
                let plan = draw.distinct(count, experts);
                accesses.push((step, layer, plan.iter().map(|&e| e as u32).collect::<Vec<_>>()));
            }
        }
        let trace = || {
            accesses.iter().map(|(step, layer, experts)| LayerAccess { step: *step, layer: *layer, experts })
        };
        let sizes = ExpertSizes::equal(layers, experts, 3).unwrap();
        let budget = draw.below(3 * layers * experts + 2) as u64;
        let worth: Vec<f64> = (0..layers * experts).map(|_| draw.below(3) as f64).collect();
        for policy in policies(&mut draw) {
            let new = || ExpertCache::new(sizes.clone(), budget, policy).unwrap();
            for mut cache in [new(), new().with_prior(&worth).unwrap()] {
                let initial: Vec<ExpertKey> = cache.residents().collect();
                let found = simulate(&mut cache, trace()).unwrap();
                let bound = belady(&sizes, budget, initial, trace()).unwrap();
                let (total, most) = (found.total(), bound.total());
                assert!(total.hits <= most.hits, "{policy}: {} hits of at most {}", total.hits, most.hits);
                assert!((0.0..=1.0).contains(&found.share_of(&bound)));
                assert_eq!((total.requests, found.steps), (most.requests, bound.steps));
                assert_eq!(total.bytes_read, total.misses() * 3);
            }
        }
    }
}
