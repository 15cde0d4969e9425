//! Laws of the metrics.

use moe_router::losses::{Entropy, ZLoss};
use moe_router::metrics::{Agreement, CoActivation, Confidence, Proportion, TemporalLocality, Transitions};
use ndarray::array;
use proptest::prelude::*;

use crate::batch::{Batch, batches, config};

const ROUNDING: f64 = 1e-12;

fn locality(batch: &Batch) -> TemporalLocality {
    let mut locality = TemporalLocality::default();
    locality.add(&batch.routed(&batch.plan()));
    locality
}

fn together(batch: &Batch) -> CoActivation {
    let mut together = CoActivation::new(batch.logits.ncols());
    together.add(&batch.routed(&batch.plan()));
    together
}

fn transitions(from: &Batch, to: &Batch) -> Transitions {
    let mut t = Transitions::new(from.logits.ncols(), to.logits.ncols());
    t.add(&from.routed(&from.plan()), &to.routed(&to.plan()));
    t
}

fn agreement(a: &Batch, b: &Batch) -> Agreement {
    let mut agreement = Agreement::default();
    agreement.add(&a.routed(&a.plan()), &b.routed(&b.plan()));
    agreement
}

/// q is 0 in f64, its logarithm is not; a logit of negative infinity is.
#[test]
fn divergence_from_what_is_all_but_impossible() {
    let of = |logits| Batch::plain(logits, &[&[0, 1]]);
    let kl = |a: &Batch, b: &Batch| (agreement(a, b).kl(), agreement(a, b).kl_over_chosen());
    let (sure, other) = (of(array![[0.0f32, -2000.0]]), of(array![[-1000.0f32, 0.0]]));
    assert_eq!(kl(&sure, &other), (1000.0, 1000.0));
    let closed = |logit: f32| of(array![[logit, 0.0]]);
    assert_eq!(kl(&sure, &closed(f32::NEG_INFINITY)).0, f64::INFINITY);
    assert_eq!(kl(&closed(f32::NEG_INFINITY), &closed(f32::NEG_INFINITY)), (0.0, 0.0));
    assert!(kl(&sure, &closed(f32::NAN)).0.is_nan());
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn locality_is_symmetric_in_time_and_bounded(batch in batches()) {
        let l = locality(&batch);
        prop_assert_eq!(l, locality(&batch.reversed()));
        prop_assert_eq!(l.first.trials, l.any.trials);
        prop_assert!(l.first.hits <= l.any.hits && l.any.hits <= l.any.trials);
    }

    #[test]
    fn co_activation_is_symmetric_and_counts_tokens(batch in batches()) {
        let c = together(&batch);
        prop_assert_eq!(c.counts(), c.counts().reversed_axes());
        prop_assert_eq!(&c, &together(&batch.reversed()));
        let stats = batch.without_padding().plan().stats();
        let diagonal: Vec<usize> = c.counts().diag().iter().map(|&n| n as usize).collect();
        prop_assert_eq!(diagonal, stats.requested_load);
        for ((a, b), &n) in c.counts().indexed_iter() {
            prop_assert!(n <= c.counts()[[a, a]].min(c.counts()[[b, b]]));
        }
        // All pairs of a token's k choices: Σ k².
        let squares: usize = batch.without_padding().choices.iter().map(|list| list.len().pow(2)).sum();
        prop_assert_eq!(c.counts().sum() as usize, squares);
    }

    #[test]
    fn a_layer_decides_itself(batch in batches(), shift in 0usize..7) {
        let experts = batch.logits.ncols();
        let names: Vec<usize> = (0..experts).map(|e| (e + shift) % experts).collect();
        let t = transitions(&batch, &batch.renamed(&names));
        let (from, to) = t.entropies();
        prop_assert!((from - to).abs() < ROUNDING && (t.mutual_information() - from).abs() < ROUNDING);
    }

    #[test]
    fn mutual_information_is_bounded_and_symmetric(a in batches(), b in batches()) {
        let tokens = a.logits.nrows().min(b.logits.nrows());
        let cut = |batch: &Batch| Batch {
            logits: batch.logits.slice(ndarray::s![..tokens, ..]).to_owned(),
            offsets: vec![],
            padding: vec![false; tokens],
            choices: batch.choices[..tokens].to_vec(),
        };
        let (a, b) = (cut(&a), cut(&b));
        let (t, back) = (transitions(&a, &b), transitions(&b, &a));
        let (from, to) = t.entropies();
        let information = t.mutual_information();
        prop_assert!((0.0..=from.min(to) + ROUNDING).contains(&information));
        prop_assert!((information - back.mutual_information()).abs() < ROUNDING);
        prop_assert_eq!(t.counts(), back.counts().reversed_axes());
    }

    #[test]
    fn a_routing_agrees_with_itself(batch in batches()) {
        let same = agreement(&batch, &batch);
        prop_assert_eq!(same.choices.first.trials as usize, batch.present());
        prop_assert_eq!(same.choices.first.hits, same.choices.first.trials);
        prop_assert_eq!(same.choices.flips().hits, 0);
        prop_assert_eq!((same.kl(), same.kl_over_chosen()), (0.0, 0.0));
        prop_assert!(batch.present() == 0 || same.choices.overlap() == 1.0);
    }

    #[test]
    fn agreement_is_bounded(batch in batches(), shift in 0usize..7) {
        let experts = batch.logits.ncols();
        let names: Vec<usize> = (0..experts).map(|e| (e + shift) % experts).collect();
        let other = batch.renamed(&names);
        let (there, back) = (agreement(&batch, &other), agreement(&other, &batch));
        prop_assert!(there.kl() >= 0.0 && there.kl_over_chosen() >= 0.0);
        prop_assert!((0.0..=1.0).contains(&there.choices.overlap()));
        prop_assert_eq!((there.choices.first, there.choices.set), (back.choices.first, back.choices.set));
        prop_assert!(there.choices.set.rate() <= there.choices.overlap() + ROUNDING);
        // Order does not matter.
        let reversed = agreement(&batch.reversed(), &other.reversed());
        prop_assert!((there.kl() - reversed.kl()).abs() < ROUNDING);
    }

    #[test]
    fn confidence_agrees_with_the_losses(batch in batches()) {
        let mut confidence = Confidence::default();
        confidence.add(&batch.input());
        let experts = batch.logits.ncols() as f64;
        prop_assert!((confidence.z() - ZLoss::of(&batch.input()).value()).abs() < ROUNDING * 1e3);
        prop_assert!((confidence.entropy() - Entropy::of(&batch.input()).value()).abs() < ROUNDING);
        if batch.present() > 0 {
            prop_assert!((1.0 / experts..=1.0).contains(&(confidence.top_probability() + ROUNDING)));
        }
        prop_assert!((0.0..=confidence.top_probability()).contains(&confidence.margin()));
    }

    #[test]
    fn batches_add_up(a in batches(), b in batches()) {
        let mut l = locality(&a);
        l.add(&b.routed(&b.plan()));
        let (mut first, mut any) = (locality(&a).first, locality(&a).any);
        first += locality(&b).first;
        any += locality(&b).any;
        prop_assert_eq!((l.first, l.any), (first, any));
    }

    #[test]
    fn an_interval_holds_its_rate(hits in 0u64..50, more in 0u64..50, z in 0.1f64..4.0) {
        let p = Proportion { hits, trials: hits + more };
        let (narrow, wide) = (p.interval(z), p.interval(z * 2.0));
        prop_assert!(0.0 <= *narrow.start() && *narrow.end() <= 1.0);
        if p.trials > 0 {
            prop_assert!(narrow.start() - ROUNDING <= p.rate() && p.rate() <= narrow.end() + ROUNDING);
        }
        prop_assert!(wide.start() <= narrow.start() && narrow.end() <= wide.end());
        // Mirrored with the complement.
        let other = p.complement().interval(z);
        prop_assert!((narrow.start() + other.end() - 1.0).abs() < ROUNDING);
    }
}
