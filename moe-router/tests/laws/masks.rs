//! Masked experts: a logit of negative infinity.

use moe_core::{Routed, Router, RoutingPlan, TokenContext};
use moe_router::losses::{
    Affinity, CommunicationBalance, DeviceBalance, Entropy, Importance, Load, LoadBalance, SequenceBalance,
    ZLoss,
};
use moe_router::metrics::{Agreement, Confidence};
use moe_router::{
    Base, Capacity, Capped, CappedExpertChoice, Dense, ExpertChoice, ExpertGroups, ExpertThreshold, Hash,
    Normalization, Perturbed, Relu, Renormalized, Score, ScoredTopK, Sinkhorn, SoftCapped, SparseMixer, TopK,
    TopP,
};
use ndarray::{Array2, ArrayView2, array, s};
use proptest::prelude::*;

use crate::listed::{Batch, batches, config, decisions, route, routers};

const OUT: f32 = f32::NEG_INFINITY;

/// Which experts are masked for whom.
#[derive(Clone, Debug)]
enum Masks {
    Columns(Vec<bool>),
    Entries(Vec<bool>),
    /// All but this one, modulo the experts, for each token; none is left for every fifth.
    AllBut(Vec<usize>),
}

fn masks() -> impl Strategy<Value = Masks> {
    let some = |n, share| proptest::collection::vec(proptest::bool::weighted(share), n);
    prop_oneof![
        some(12, 0.4).prop_map(Masks::Columns),
        some(24 * 12, 0.3).prop_map(Masks::Entries),
        some(24 * 12, 0.8).prop_map(Masks::Entries),
        proptest::collection::vec(0usize..12, 24).prop_map(Masks::AllBut),
    ]
}

fn masked(batch: &Batch, masks: &Masks) -> Batch {
    let mut batch = batch.clone();
    let experts = batch.experts();
    for ((t, e), l) in batch.logits.indexed_iter_mut() {
        let out = match masks {
            Masks::Columns(columns) => columns[e],
            Masks::Entries(entries) => entries[t * experts + e],
            Masks::AllBut(one) => one[t] % experts != e || t % 5 == 4,
        };
        if out {
            *l = OUT;
        }
    }
    batch
}

fn open(logits: &Array2<f32>, t: usize) -> usize {
    logits.row(t).iter().filter(|l| **l != OUT).count()
}

proptest! {
    #![proptest_config(config())]

    /// No masked expert is filled, all weights are finite, and a token asks for as many as it can have.
    #[test]
    fn a_masked_expert_gets_nothing(batch in batches(), masks in masks()) {
        let batch = masked(&batch, &masks);
        let mild = batch.logits.iter().all(|l| *l == OUT || l.abs() < 80.0);
        for listed in routers(batch.experts()).into_iter().filter(|listed| listed.guarded || mild) {
            // Sealing refuses weights that are not finite.
            let plan = route(&*listed.router, batch.logits.view(), batch.padded());
            for (&t, &e) in plan.row_tokens().iter().zip(plan.row_experts()) {
                prop_assert!(batch.logits[[t as usize, e as usize]] != OUT, "{}: {t} to {e}", &listed.name);
            }
            for r in plan.refused() {
                let wanted = batch.logits[[r.token as usize, r.expert as usize]] != OUT;
                prop_assert!(wanted || ["hash", "scored hash"].contains(&&*listed.name), "{}: {r:?}", &listed.name);
            }
            let Some(k) = listed.k else { continue };
            for t in (0..batch.tokens()).filter(|&t| !batch.padding[t]) {
                let ranks: Vec<_> = decisions(&plan, t).into_iter().map(|d| d.0).collect();
                let most = k.min(open(&batch.logits, t));
                // Within groups there may be fewer, and where a shared expert is masked.
                let grouped = ["limited", "deepseek-v3", "pangu", "inkling"].iter().any(|name| listed.name.contains(name));
                let least = if grouped { most.min(1) } else { most };
                prop_assert_eq!(&ranks, &(0..ranks.len()).collect::<Vec<_>>(), "{}", &listed.name);
                prop_assert!((least..=most).contains(&ranks.len()), "{}: token {t}: {ranks:?}", &listed.name);
            }
        }
    }

    /// Where tokens compete, what masks leave is filled.
    #[test]
    fn balance_under_masks(batch in batches(), masks in masks(), places in 1usize..5) {
        let batch = masked(&batch, &masks);
        let capacity = Capacity::absolute(places);
        let choice = ExpertChoice::new(capacity).unwrap();
        let capped = CappedExpertChoice::new(capacity, batch.experts()).unwrap();
        for router in [&choice as &dyn Router, &capped] {
            let plan = route(router, batch.logits.view(), batch.padded());
            for e in 0..batch.experts() {
                let open = |t: &usize| !batch.padding[*t] && batch.logits[[*t, e]] != OUT;
                let filled: usize = batch.sequences().map(|s| s.filter(open).count().min(places)).sum();
                prop_assert_eq!(plan.expert_rows(e).len(), filled);
            }
        }
        let base = route(&Base::new(), batch.logits.view(), batch.padded());
        for tokens in batch.sequences() {
            let real: Vec<usize> =
                tokens.filter(|&t| !batch.padding[t] && open(&batch.logits, t) > 0).collect();
            let column = |e: usize| real.iter().any(|&t| batch.logits[[t, e]] != OUT);
            let experts = (0..batch.experts()).filter(|&e| column(e)).count();
            for e in 0..batch.experts() {
                let rows = &base.row_tokens()[base.expert_rows(e)];
                let load = rows.iter().filter(|&&t| real.contains(&(t as usize))).count();
                prop_assert!(load == 0 || load <= real.len().div_ceil(experts));
            }
            prop_assert!(real.iter().all(|&t| decisions(&base, t).len() == 1), "placed or refused");
        }
    }

    /// Every token that finds no place by rerouting has none of its experts free.
    #[test]
    fn rerouting_stops_at_masks(batch in batches(), masks in masks(), places in 1usize..3) {
        let batch = masked(&batch, &masks);
        let router = Capped::new(TopK::new(1).unwrap(), Capacity::absolute(places)).unwrap().rerouting();
        for router in [router, router.by_score(), router.token_by_token()] {
            let plan = route(&router, batch.logits.view(), batch.unpadded());
            for (r, tokens) in plan.refused().iter().flat_map(|r| batch.sequences().map(move |s| (r, s))) {
                if !tokens.contains(&(r.token as usize)) {
                    continue;
                }
                for e in (0..batch.experts()).filter(|&e| batch.logits[[r.token as usize, e]] != OUT) {
                    let rows = &plan.row_tokens()[plan.expert_rows(e)];
                    prop_assert_eq!(rows.iter().filter(|&&t| tokens.contains(&(t as usize))).count(), places);
                }
            }
        }
    }

    /// Finite values and gradients, and a token without any expert counts as padding does.
    #[test]
    fn losses_are_finite(batch in batches(), masks in masks()) {
        let batch = masked(&batch, &masks);
        prop_assume!(batch.experts() > 1);
        let devices: Vec<usize> = (0..batch.experts()).map(|e| e % 2).collect();
        let numbers = |context: TokenContext<'_>| {
            let plan = route(&TopK::new(2).unwrap(), batch.logits.view(), context);
            let routed = Routed::new(batch.logits.view(), &plan, context).unwrap();
            let input = routed.input();
            let (mut confidence, mut agreement) = (Confidence::default(), Agreement::default());
            confidence.add(&input);
            agreement.add(&routed, &routed);
            let all = LoadBalance::over_all(&[routed]);
            let sequence = SequenceBalance::of(&routed, Affinity::Sigmoid);
            let load = Load::of(&input, batch.logits.view(), 2, 0.5).unwrap();
            let one = Array2::ones(batch.logits.dim());
            let own = Load::excluding_self(&input, batch.logits.view(), 1, one.view()).unwrap();
            let mut found = vec![
                all.value(),
                LoadBalance::per_sequence(&routed).value(),
                LoadBalance::of_first_choices(&routed).value(),
                SequenceBalance::of(&routed, Affinity::Softmax).value(),
                sequence.value(),
                DeviceBalance::of(&routed, Affinity::Sigmoid, &devices).value(),
                CommunicationBalance::of(&routed, Affinity::Softmax, &devices, 1).value(),
                Importance::of(&input).value(),
                load.value(),
                own.value(),
                ZLoss::of(&input).value(),
                Entropy::of(&input).value(),
                confidence.entropy(),
                confidence.z(),
                agreement.kl(),
                agreement.kl_over_chosen(),
            ];
            for gradient in [
                all.gradient().unwrap(),
                sequence.gradient().unwrap(),
                load.gradient().unwrap().logits,
                load.gradient().unwrap().noisy,
                load.gradient().unwrap().sigma,
                own.gradient().unwrap().noisy,
                Importance::of(&input).gradient().unwrap(),
                ZLoss::of(&input).gradient().unwrap(),
                Entropy::of(&input).gradient().unwrap(),
            ] {
                found.extend(gradient);
            }
            found
        };
        let found = numbers(batch.padded());
        prop_assert!(found.iter().all(|x| x.is_finite()), "{:?}", found);
        let nothing: Vec<bool> =
            (0..batch.tokens()).map(|t| batch.padding[t] || open(&batch.logits, t) == 0).collect();
        prop_assert_eq!(found, numbers(batch.unpadded().with_padding(&nothing)));
    }
}

/// Irregular numbers between -2 and 2.
fn irregular(tokens: usize, experts: usize, seed: usize) -> Array2<f32> {
    Array2::from_shape_fn((tokens, experts), |(t, e)| {
        let mixed = ((t * 8191 + e * 131 + seed) as u32).wrapping_mul(2_654_435_761);
        ((mixed ^ mixed >> 15).wrapping_mul(2_246_822_519) >> 8) as f32 / 4_194_304.0 - 2.0
    })
}

/// Experts that are masked for all tokens might as well not be there.
#[test]
fn masked_columns_are_as_absent() {
    let all = || TopK::new(2).unwrap().normalized(Normalization::OverAll);
    let two = Capacity::absolute(2);
    let list: [Box<dyn Router>; 17] = [
        Box::new(TopK::new(1).unwrap()),
        Box::new(TopK::new(2).unwrap()),
        Box::new(all()),
        Box::new(TopP::new(0.7).unwrap()),
        Box::new(Dense::new()),
        Box::new(Relu::new()),
        Box::new(SparseMixer::new(0.1).unwrap()),
        Box::new(ScoredTopK::new(2, Score::Sigmoid).unwrap()),
        Box::new(Sinkhorn::new(1).unwrap()),
        Box::new(Sinkhorn::new(2).unwrap()),
        Box::new(Base::new()),
        Box::new(ExpertChoice::new(two).unwrap()),
        Box::new(CappedExpertChoice::new(two, 4).unwrap()),
        Box::new(Capped::new(all(), two).unwrap()),
        Box::new(Capped::new(all(), two).unwrap().rerouting()),
        Box::new(Renormalized::new(Capped::new(all(), two).unwrap().by_score())),
        Box::new(Perturbed::gaussian(Sinkhorn::new(1).unwrap(), 0.5).unwrap()),
    ];
    for (seed, router) in (0..20).flat_map(|seed| list.iter().map(move |router| (seed, router))) {
        let mut logits = irregular(13, 7, seed * 1009);
        // At the end, so that the others' sums run as they do without.
        logits.slice_mut(s![.., 4..]).fill(OUT);
        let plan = route(router, logits.view(), TokenContext::new());
        let alone = route(router, logits.slice(s![.., ..4]), TokenContext::new());
        for t in 0..13 {
            assert_eq!(decisions(&plan, t), decisions(&alone, t), "seed {seed}");
        }
    }
}

fn load(router: &dyn Router, logits: ArrayView2<'_, f32>) -> (Vec<usize>, RoutingPlan) {
    let plan = route(router, logits, TokenContext::new());
    (plan.stats().load, plan)
}

/// Twelve tokens of four experts of which the last is masked for all: the loads are those of three experts.
#[test]
fn sinkhorn_shares_out_what_is_open() {
    let mut logits = irregular(12, 4, 5);
    logits.column_mut(3).fill(OUT);
    let (found, _) = load(&Sinkhorn::new(1).unwrap(), logits.view());
    let (three, _) = load(&Sinkhorn::new(1).unwrap(), logits.slice(s![.., ..3]));
    assert_eq!((&found[..3], found[3]), (&three[..], 0));
    assert!(three.iter().all(|n| (2..=6).contains(n)), "{three:?}");
}

#[test]
fn rerouting_by_hand() {
    let logits = Array2::from_shape_fn((5, 3), |(_, e)| [2.0, 1.0, OUT][e]);
    let router = Capped::new(TopK::new(1).unwrap(), Capacity::absolute(1)).unwrap().rerouting();
    let (loads, plan) = load(&router, logits.view());
    let stats = plan.stats();
    assert_eq!((loads, plan.refused().len(), stats.drop_rate), (vec![1, 1, 0], 3, 0.6));
}

#[test]
fn a_bias_opens_no_mask() {
    let router = ScoredTopK::new(1, Score::Sigmoid).unwrap().with_bias([0.0, 5.0, 0.1, 0.0]).unwrap();
    let logits = array![[1.0, OUT, 0.5, 0.0]];
    assert_eq!(route(&router, logits.view(), TokenContext::new()).row_experts(), [0]);
    // A group with one expert left has that one's score, and not what the bias of a masked one adds.
    let groups = |kept| ExpertGroups::by_two_best(2, kept).unwrap();
    let grouped = router.clone().within(groups(1));
    let logits = array![[0.1, OUT, 0.5, -3.0]];
    assert_eq!(route(&grouped, logits.view(), TokenContext::new()).row_experts(), [2]);
    // A group without any is not kept in place of one with some.
    let logits = array![[OUT, OUT, -9.0, OUT]];
    assert_eq!(route(&grouped, logits.view(), TokenContext::new()).row_experts(), [2]);
    let threshold = ExpertThreshold::new(vec![-1.0; 4]).unwrap();
    assert_eq!(route(&threshold, logits.view(), TokenContext::new()).row_experts(), [2]);
}

#[test]
fn what_looks_at_no_logits_is_refused() {
    let logits = Array2::from_elem((6, 3), OUT);
    let plan = route(&Hash::new(0), logits.view(), TokenContext::new());
    assert_eq!((plan.rows(), plan.refused().len(), plan.stats().drop_rate), (0, 6, 1.0));
}

/// Jitter of 0 times a mask is no number.
#[test]
fn noise_opens_no_mask() {
    let logits = array![[OUT, 1.0], [2.0, OUT]];
    for noise in [0.0, 1.0, f32::INFINITY, f32::NAN] {
        let noise = [noise, 0.5, 0.5, noise];
        let context = TokenContext::new().with_noise(moe_core::TokenRows::new(&noise, 2).unwrap());
        let jitter = Perturbed::jitter(TopK::new(2).unwrap(), 1.0).unwrap();
        assert_eq!(route(&jitter, logits.view(), context).row_experts(), [0, 1]);
        let gaussian = Perturbed::gaussian(TopK::new(2).unwrap(), 1.0).unwrap();
        assert_eq!(route(&gaussian, logits.view(), context).row_experts(), [0, 1]);
    }
}

#[test]
fn a_soft_cap_opens_no_mask() {
    use moe_core::{Gate, Scratch};
    struct Masking;
    impl Gate for Masking {
        fn experts(&self) -> usize {
            2
        }
        fn dim(&self) -> usize {
            1
        }
        fn logits(
            &self,
            _: ArrayView2<'_, f32>,
            _: &TokenContext<'_>,
            _: &mut Scratch,
            mut out: ndarray::ArrayViewMut2<'_, f32>,
        ) -> moe_core::Result<()> {
            out.assign(&array![[OUT, 0.0]]);
            Ok(())
        }
    }
    let gate = SoftCapped::new(Masking, 30.0).unwrap();
    let mut logits = Array2::zeros((1, 2));
    gate.logits(array![[1.0]].view(), &TokenContext::new(), &mut Scratch::default(), logits.view_mut())
        .unwrap();
    assert_eq!(logits, array![[OUT, 0.0]]);
}

/// Half of the probability on one expert and a mask: the entropy of two equal ones, whatever is masked.
#[test]
fn losses_by_hand() {
    let logits = array![[0.0, 0.0, OUT], [OUT, OUT, OUT]];
    let plan = route(&TopK::new(2).unwrap(), logits.view(), TokenContext::new());
    let routed = Routed::new(logits.view(), &plan, TokenContext::new()).unwrap();
    let input = routed.input();
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    near(Entropy::of(&input).value(), 2f64.ln());
    near(ZLoss::of(&input).value(), 2f64.ln().powi(2));
    // 3 (1 · 1/2 + 1 · 1/2) of the one token that has experts.
    near(LoadBalance::over_all(&[routed]).value(), 3.0);
    // Importance 1/2, 1/2, 0 of mean 1/3: variance (1/36 + 1/36 + 1/9) / 3 = 1/18.
    near(Importance::of(&input).value(), 0.5);
}
