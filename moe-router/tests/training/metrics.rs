//! Metrics by hand.

use moe_core::{RoutingPlan, TokenContext};
use moe_router::metrics::{
    Agreement, CoActivation, Confidence, Proportion, TemporalLocality, Transitions, capacity_utilisation,
};
use ndarray::{Array2, array};

use crate::batch::Batch;

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-7, "{a} {b}");
}

fn of(hits: u64, trials: u64) -> Proportion {
    Proportion { hits, trials }
}

fn chosen(choices: &[&[usize]], experts: usize) -> Batch {
    Batch::plain(Array2::zeros((choices.len(), experts)), choices)
}

#[test]
fn temporal_locality() {
    let mut batch = chosen(&[&[0, 1], &[0, 2], &[2, 3], &[1, 3], &[1, 0], &[], &[1, 0], &[1, 2]], 4);
    let count = |batch: &Batch| {
        let mut locality = TemporalLocality::default();
        locality.add(&batch.routed(&batch.plan()));
        (locality.first, locality.any)
    };
    // Pairs 0-1 (first), 1-2 (2 in both), 2-3 (3 in both), 3-4 (first), 6-7 (first); token 5 chose nothing.
    assert_eq!(count(&batch), (of(3, 5), of(5, 5)));
    // No pair spans sequences: without 3-4.
    batch.offsets = vec![0, 4, 8];
    assert_eq!(count(&batch), (of(2, 4), of(4, 4)));
    // Nor padding: without 0-1, 1-2. Its neighbours are no pair either.
    batch.padding[1] = true;
    assert_eq!(count(&batch), (of(1, 2), of(2, 2)));
    // What was refused was a choice.
    batch.choices[6][0].1 = false;
    assert_eq!(count(&batch), (of(1, 2), of(2, 2)));
    assert_eq!(count(&chosen(&[&[0, 1], &[2, 3]], 4)), (of(0, 1), of(0, 1)));

    // Two of eight: 1 - 15/28.
    let (first, any) = TemporalLocality::chance(8, 2);
    near(first, 0.125);
    near(any, 13.0 / 28.0);
    assert_eq!(TemporalLocality::chance(4, 3).1, 1.0);
}

#[test]
fn co_activation() {
    let mut batch = chosen(&[&[0, 1], &[1, 0], &[1, 2], &[2], &[0, 2]], 3);
    batch.padding[4] = true;
    let mut together = CoActivation::new(3);
    together.add(&batch.routed(&batch.plan()));
    assert_eq!(together.counts(), array![[2, 2, 0], [2, 3, 1], [0, 1, 2]]);
    assert_eq!(together.tokens(), 4);
    assert_eq!(together.given(1, 0), of(2, 3));
    assert_eq!(together.given(0, 1), of(2, 2));
    assert_eq!(together.jaccard(1, 2), of(1, 4));
    assert_eq!(together.jaccard(2, 2).rate(), 1.0);
}

#[test]
fn transitions() {
    let (from, to) = (chosen(&[&[0], &[0], &[1], &[1]], 2), chosen(&[&[2], &[2], &[0], &[0]], 3));
    let mut t = Transitions::new(2, 3);
    t.add(&from.routed(&from.plan()), &to.routed(&to.plan()));
    assert_eq!(t.counts(), array![[0, 0, 2], [2, 0, 0]]);
    assert_eq!(t.given(0, 2), of(2, 2));
    assert_eq!(t.given(1, 2), of(0, 2));
    // One decides the other: a bit.
    near(t.mutual_information(), 2f64.ln());
    near(t.entropies().0, 2f64.ln());
    near(t.entropies().1, 2f64.ln());

    // From 0: once to 0, twice to 1; from 1: once to 1.
    let (from, to) = (chosen(&[&[0], &[0], &[0], &[1]], 2), chosen(&[&[0], &[1], &[1], &[1]], 2));
    let mut t = Transitions::new(2, 2);
    t.add(&from.routed(&from.plan()), &to.routed(&to.plan()));
    assert_eq!((t.given(0, 1), t.given(1, 1), t.given(1, 0)), (of(2, 3), of(1, 1), of(0, 1)));

    let (from, independent) =
        (chosen(&[&[0], &[0], &[1], &[1]], 2), chosen(&[&[0, 1], &[1, 0], &[0, 1], &[1, 0]], 3));
    let mut t = Transitions::new(2, 3);
    t.add(&from.routed(&from.plan()), &independent.routed(&independent.plan()));
    near(t.mutual_information(), 0.0);
    assert_eq!(Transitions::new(2, 2).mutual_information(), 0.0);
}

#[test]
fn agreement() {
    let (two, four) = (std::f32::consts::LN_2, 2.0 * std::f32::consts::LN_2);
    // Softmax (½, ¼, ¼) against (⅓, ⅓, ⅓), and (4, 1, 1)/6 against the same.
    let a = Batch::plain(array![[two, 0.0, 0.0], [four, 0.0, 0.0]], &[&[0, 1], &[0, 2]]);
    let b = Batch::plain(array![[0.0, 0.0, 0.0], [four, 0.0, 0.0]], &[&[2, 0], &[2, 0]]);
    let mut agreement = Agreement::default();
    agreement.add(&a.routed(&a.plan()), &b.routed(&b.plan()));
    assert_eq!(agreement.choices.first, of(0, 2));
    assert_eq!(agreement.choices.set, of(1, 2));
    assert_eq!(agreement.choices.flips(), of(1, 2));
    near(agreement.choices.overlap(), (1.0 / 3.0 + 1.0) / 2.0);
    // ½ ln (½ · 3) + 2 · ¼ ln (¼ · 3) over all; over {0, 1}: (⅔, ⅓) against (½, ½).
    near(agreement.kl(), 0.25 * (1.5f64.ln() + 0.75f64.ln()));
    near(agreement.kl_over_chosen(), (2.0 / 3.0 * (4f64 / 3.0).ln() + (2f64 / 3.0).ln() / 3.0) / 2.0);

    // A set is not its subset, from either side.
    let (less, more) = (chosen(&[&[0], &[1, 2]], 3), chosen(&[&[0, 1], &[1]], 3));
    let mut agreement = Agreement::default();
    agreement.add(&less.routed(&less.plan()), &more.routed(&more.plan()));
    assert_eq!((agreement.choices.first, agreement.choices.set), (of(2, 2), of(0, 2)));
    near(agreement.choices.overlap(), 0.5);
}

#[test]
fn confidence_and_utilisation() {
    let two = std::f32::consts::LN_2;
    let mut batch =
        Batch::plain(array![[two, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]], &[&[0], &[0], &[1]]);
    batch.padding[2] = true;
    let mut confidence = Confidence::default();
    confidence.add(&batch.input());
    assert_eq!(confidence.tokens, 2);
    near(confidence.top_probability(), (0.5 + 1.0 / 3.0) / 2.0);
    near(confidence.margin(), 0.125);
    near(confidence.z(), (4f64.ln().powi(2) + 3f64.ln().powi(2)) / 2.0);
    near(confidence.entropy(), (1.5 * 2f64.ln() + 3f64.ln()) / 2.0);
    assert_eq!(Confidence::default().margin(), 0.0);
    // 0.1, 0.3, 0.6: the greatest comes last.
    let ascending = Batch::plain(array![[0.0, 3f32.ln(), 6f32.ln()]], &[&[2]]);
    let mut confidence = Confidence::default();
    confidence.add(&ascending.input());
    near(confidence.margin(), 0.3);

    batch.choices[1][0].1 = false;
    assert_eq!(capacity_utilisation(&batch.plan(), 2), 2.0 / 6.0);
    assert_eq!(capacity_utilisation(&RoutingPlan::new(), 2), 0.0);
    assert_eq!(TokenContext::new().sequences(), 1);
}
