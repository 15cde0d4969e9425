//! What the losses promise: scales, padding, sequences, names of experts.

use moe_core::Routed;
use moe_router::losses::{
    Affinity, CommunicationBalance, DeviceBalance, Entropy, Importance, Load, LoadBalance, SequenceBalance,
    ZLoss,
};
use ndarray::{Array2, Axis, array};
use proptest::prelude::*;

use crate::batch::{Batch, batches, config};

/// Sums of at most 14 · 7 terms in another order, in f64.
const REORDERED: f64 = 1e-12;

/// Every loss of a batch, with its gradient.
fn all(batch: &Batch) -> Vec<(&'static str, f64, Array2<f64>)> {
    let plan = batch.plan();
    let (routed, input) = (batch.routed(&plan), batch.input());
    // All experts of an even number on one device: renaming keeps it only where names are the identity, so one a device.
    let devices: Vec<usize> = (0..input.experts()).collect();
    let noisy = &batch.logits + 0.125;
    let (over_all, sequence) = (LoadBalance::over_all(&[routed]), LoadBalance::per_sequence(&routed));
    let first = LoadBalance::of_first_choices(&routed);
    let v3 = SequenceBalance::of(&routed, Affinity::Sigmoid);
    let device = DeviceBalance::of(&routed, Affinity::Softmax, &devices);
    let sent = CommunicationBalance::of(&routed, Affinity::Softmax, &devices, 2);
    let importance = Importance::of(&input);
    let load = Load::of(&input, noisy.view(), 2, 0.5).unwrap();
    let (z, entropy) = (ZLoss::of(&input), Entropy::of(&input));
    vec![
        ("over all", over_all.value(), over_all.gradient().unwrap()),
        ("per sequence", sequence.value(), sequence.gradient().unwrap()),
        ("first choices", first.value(), first.gradient().unwrap()),
        ("sequence-wise", v3.value(), v3.gradient().unwrap()),
        ("device-wise", device.value(), device.gradient().unwrap()),
        ("communication", sent.value(), sent.gradient().unwrap()),
        ("importance", importance.value(), importance.gradient().unwrap()),
        ("load", load.value(), load.gradient().unwrap().logits),
        ("z", z.value(), z.gradient().unwrap()),
        ("entropy", entropy.value(), entropy.gradient().unwrap()),
    ]
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= REORDERED * a.abs().max(1.0)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn padding_might_as_well_not_be_there(batch in batches()) {
        prop_assume!(batch.present() > 0);
        let without = batch.without_padding();
        let kept: Vec<usize> = (0..batch.padding.len()).filter(|&t| !batch.padding[t]).collect();
        for (with, without) in all(&batch).into_iter().zip(all(&without)) {
            prop_assert_eq!(with.1, without.1, "{}", with.0);
            prop_assert_eq!(with.2.select(Axis(0), &kept), without.2, "{}", with.0);
            let of_padding = with.2.axis_iter(Axis(0)).zip(&batch.padding).filter(|(_, p)| **p);
            prop_assert!(of_padding.flat_map(|(row, _)| row.to_vec()).all(|d| d == 0.0), "{}", with.0);
        }
    }

    #[test]
    fn padding_may_hold_anything(batch in batches()) {
        let mut spoiled = batch.clone();
        for (mut row, _) in spoiled.logits.rows_mut().into_iter().zip(&batch.padding).filter(|(_, p)| **p) {
            row.fill(f32::NAN);
        }
        for (clean, spoiled) in all(&batch).into_iter().zip(all(&spoiled)) {
            prop_assert_eq!(clean, spoiled);
        }
    }

    #[test]
    fn the_order_of_tokens_does_not_matter(batch in batches()) {
        for (a, b) in all(&batch).into_iter().zip(all(&batch.reversed())) {
            prop_assert!(close(a.1, b.1), "{}: {} {}", a.0, a.1, b.1);
        }
    }

    #[test]
    fn the_names_of_experts_do_not_matter(batch in batches(), shift in 0usize..7) {
        let experts = batch.logits.ncols();
        let names: Vec<usize> = (0..experts).map(|e| (e + shift) % experts).collect();
        for (a, b) in all(&batch).into_iter().zip(all(&batch.renamed(&names))) {
            // The threshold of equal noisy logits is of one value, whoever has it.
            prop_assert!(close(a.1, b.1), "{}: {} {}", a.0, a.1, b.1);
        }
    }

    #[test]
    fn gradients_do_not_shift_a_row(batch in batches()) {
        // But for z, which a constant changes; and the sigmoids.
        for (name, _, gradient) in all(&batch) {
            if ["z", "load", "sequence-wise"].contains(&name) {
                continue;
            }
            for row in gradient.rows() {
                prop_assert!(row.sum().abs() < REORDERED, "{}: {}", name, row.sum());
            }
        }
    }

    #[test]
    fn values_are_within_their_bounds(batch in batches()) {
        let experts = batch.logits.ncols() as f64;
        for (name, value, _) in all(&batch) {
            let top = match name {
                "importance" | "load" => experts - 1.0,
                "entropy" => experts.ln(),
                "z" => f64::INFINITY,
                _ => experts,
            };
            prop_assert!((0.0..=top + REORDERED).contains(&value), "{}: {}", name, value);
        }
    }

    #[test]
    fn refused_choices_count_like_granted_ones(batch in batches()) {
        let mut granted = batch.clone();
        granted.choices.iter_mut().flatten().for_each(|c| c.1 = true);
        for (a, b) in all(&batch).into_iter().zip(all(&granted)) {
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn a_mean_over_sequences(batch in batches()) {
        let plan = batch.plan();
        let loss = LoadBalance::per_sequence(&batch.routed(&plan));
        let alone = |w: &[usize]| {
            let range = w[0]..w[1];
            let rows: Vec<usize> = range.clone().filter(|&t| !batch.padding[t]).collect();
            let one = Batch {
                logits: batch.logits.select(Axis(0), &rows),
                offsets: vec![0, rows.len()],
                padding: vec![false; rows.len()],
                choices: rows.iter().map(|&t| batch.choices[t].clone()).collect(),
            };
            let plan = one.plan();
            (!rows.is_empty()).then(|| LoadBalance::over_all(&[one.routed(&plan)]).value())
        };
        let values: Vec<f64> = batch.offsets.windows(2).filter_map(alone).collect();
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        prop_assert!(close(loss.value(), mean));
    }
}

/// Uniform: every expert is chosen equally often, all logits are zero.
#[test]
fn uniform_routing() {
    let batch = Batch::plain(Array2::zeros((4, 4)), &[&[0, 1], &[1, 2], &[2, 3], &[3, 0]]);
    let plan = batch.plan();
    let (routed, input) = (batch.routed(&plan), batch.input());
    assert_eq!(LoadBalance::over_all(&[routed, routed]).value(), 2.0);
    assert_eq!(LoadBalance::per_sequence(&routed).value(), 2.0);
    assert_eq!(LoadBalance::of_first_choices(&routed).value(), 1.0);
    for affinity in [Affinity::Softmax, Affinity::Sigmoid] {
        assert_eq!(SequenceBalance::of(&routed, affinity).value(), 1.0);
        assert_eq!(DeviceBalance::of(&routed, affinity, &[0, 1, 0, 1]).value(), 1.0);
        // Every token goes to both devices; then half of the tokens to one of them alone.
        let sent = |devices| CommunicationBalance::of(&routed, affinity, devices, 2).value();
        assert_eq!((sent(&[0, 1, 0, 1]), sent(&[0, 0, 1, 1])), (1.0, 0.75));
    }
    assert_eq!(Importance::of(&input).value(), 0.0);
    assert!(Importance::of(&input).gradient().unwrap().iter().all(|&d| d == 0.0));
    assert_eq!(Load::of(&input, batch.logits.view(), 2, 0.5).unwrap().value(), 0.0);
    assert!((ZLoss::of(&input).value() - 4f64.ln().powi(2)).abs() < 1e-15);
    assert!((Entropy::of(&input).value() - 4f64.ln()).abs() < 1e-15);
}

/// Collapse: all tokens choose experts 0 and 1, with all the probability on expert 0.
#[test]
fn collapse() {
    let logits = Array2::from_shape_fn((3, 4), |(_, e)| if e == 0 { 2000.0 } else { -500.0 * e as f32 });
    let batch = Batch::plain(logits, &[&[0, 1][..]; 3]);
    let plan = batch.plan();
    let (routed, input) = (batch.routed(&plan), batch.input());
    assert_eq!(LoadBalance::over_all(&[routed]).value(), 4.0);
    assert_eq!(LoadBalance::per_sequence(&routed).value(), 4.0);
    assert_eq!(LoadBalance::of_first_choices(&routed).value(), 4.0);
    assert_eq!(SequenceBalance::of(&routed, Affinity::Softmax).value(), 2.0);
    assert_eq!(DeviceBalance::of(&routed, Affinity::Softmax, &[0, 0, 1, 1]).value(), 2.0);
    let sent = |most| CommunicationBalance::of(&routed, Affinity::Softmax, &[9, 9, 1, 4], most).value();
    assert_eq!((sent(1), sent(2)), (3.0, 1.5));
    assert_eq!(Importance::of(&input).value(), 3.0);
    assert_eq!(Load::of(&input, batch.logits.view(), 1, 0.5).unwrap().value(), 3.0);
    // Chances 1, ½, 0, 0: mean 3/8, mean of squares 5/16.
    let load = Load::of(&input, batch.logits.view(), 2, 0.5).unwrap();
    assert_eq!(load.chances(), array![[1.0, 0.5, 0.0, 0.0]]);
    assert!((load.value() - (5.0 / 16.0 / (9.0 / 64.0) - 1.0)).abs() < 1e-15 && load.value() >= 1.0);
    assert_eq!(Entropy::of(&input).value(), 0.0);
    assert_eq!(ZLoss::of(&input).value(), 4e6);
}

/// Two experts: each has to reach the other's noisy logit.
#[test]
fn load_excluding_self_by_hand() {
    let batch = Batch::plain(array![[1.0, 0.0]], &[&[0]]);
    let (noisy, sigma) = (array![[0.5f32, 2.0]], array![[1.0f32, 0.5]]);
    let load = Load::excluding_self(&batch.input(), noisy.view(), 1, sigma.view()).unwrap();
    // 1 - Φ((2 - 1)/1) and 1 - Φ((0.5 - 0)/0.5).
    let chance = 0.158_655_253_931_457_05;
    assert!(load.chances().iter().all(|c| (c - chance).abs() < 1e-15), "{:?}", load.chances());
    assert!(load.value() < 1e-15);
    // Sure of both of three experts, and of either of those the threshold is the third's.
    let batch = Batch::plain(array![[50.0, 50.0, 0.0]], &[&[0, 1]]);
    let load =
        Load::excluding_self(&batch.input(), batch.logits.view(), 2, array![[1.0, 1.0, 1.0]].view()).unwrap();
    assert_eq!(load.chances(), array![[1.0, 1.0, 0.0]]);
    assert!((load.value() - 0.5).abs() < 1e-15);
}

/// f = (1, ½, ½), P by hand.
#[test]
fn load_balance_by_hand() {
    // Softmax (½, ¼, ¼) and (¼, ½, ¼).
    let two = std::f32::consts::LN_2;
    let batch = Batch::plain(array![[two, 0.0, 0.0], [0.0, two, 0.0]], &[&[0, 2], &[1, 0]]);
    let plan = batch.plan();
    let loss = LoadBalance::per_sequence(&batch.routed(&plan));
    let group = loss.groups().next().unwrap();
    assert_eq!((group.tokens, &*group.f), (2, &[1.0, 0.5, 0.5][..]));
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-7, "{a} {b}");
    group.p.iter().zip([0.375, 0.375, 0.25]).for_each(|(&p, by_hand)| near(p, by_hand));
    near(loss.value(), 3.0 * (0.375 + 0.1875 + 0.125));
    // First choices: f = (½, ½, 0). Sequence-wise: f = E/(kn) · counts = (3/2, 3/4, 3/4).
    near(LoadBalance::of_first_choices(&batch.routed(&plan)).value(), 3.0 * 0.375);
    near(SequenceBalance::of(&batch.routed(&plan), Affinity::Softmax).value(), 1.03125);
    // Devices {0}, {1, 2}: f' = (3/2, 3/4), P' = (0.375, 0.625).
    let device = DeviceBalance::of(&batch.routed(&plan), Affinity::Softmax, &[7, 2, 2]);
    near(device.value(), 1.5 * 0.375 + 0.75 * 0.625);
    // Devices {0, 2}, {1}: the first token is sent to one, the second to both. f'' = 2/(2·2) · (2, 1), P'' = (0.625, 0.375).
    let sent = CommunicationBalance::of(&batch.routed(&plan), Affinity::Softmax, &[2, 7, 2], 2);
    near(sent.value(), 0.625 + 0.5 * 0.375);
}

/// One mean over the rows of all layers, not a mean of the layers' means.
#[test]
fn layers_of_different_length() {
    let one = Batch::plain(array![[40.0, 0.0]], &[&[0]]);
    let three = Batch::plain(array![[0.0, 40.0], [0.0, 40.0], [0.0, 40.0]], &[&[1][..]; 3]);
    let (plan_one, plan_three) = (one.plan(), three.plan());
    let loss = LoadBalance::over_all(&[one.routed(&plan_one), three.routed(&plan_three)]);
    assert!((loss.value() - 2.0 * (1.0 / 16.0 + 9.0 / 16.0)).abs() < 1e-15);
}

/// Sigmoids of these logits are 0 in f64; their shares are not.
#[test]
fn sigmoids_too_small_to_divide() {
    let by = std::f32::consts::LN_2;
    let balance = |logits: Array2<f32>| {
        let batch = Batch::plain(logits, &[&[0]]);
        let plan = batch.plan();
        let loss = SequenceBalance::of(&batch.routed(&plan), Affinity::Sigmoid);
        let devices = DeviceBalance::of(&batch.routed(&plan), Affinity::Sigmoid, &[0, 1]);
        assert_eq!((loss.value(), loss.gradient().unwrap()), (devices.value(), devices.gradient().unwrap()));
        (loss.value(), loss.gradient().unwrap())
    };
    assert_eq!(balance(array![[-1000.0, -1000.0]]), (1.0, array![[0.5, -0.5]]));
    assert_eq!(balance(array![[-3e38, -3e38]]).0, 1.0);
    // 2σ₀/(σ₀ + σ₁) with σ₀ = 2σ₁, but for the rounding of the logit.
    let (value, gradient) = balance(array![[-128.0 + by, -128.0]]);
    assert!((value - 4.0 / 3.0).abs() < 1e-5, "{value}");
    assert!((gradient[[0, 0]] - 4.0 / 9.0).abs() < 1e-5, "{gradient}");
    // A masked expert has no share, and no pull.
    assert_eq!(balance(array![[-1000.0, f32::NEG_INFINITY]]), (2.0, array![[0.0, 0.0]]));
}

/// The chance of every expert is some 1e-200, whose square is 0.
#[test]
fn chances_too_small_to_square() {
    let batch = Batch::plain(array![[0.0, -0.5, 0.25]], &[&[0]]);
    let noisy = array![[30.0f32, 30.0, 30.0]];
    let load = Load::of(&batch.input(), noisy.view(), 1, 1.0).unwrap();
    let gradient = load.gradient().unwrap();
    assert!(load.chances().iter().all(|&c| 0.0 < c && c < 1e-180), "{:?}", load.chances());
    assert!((1.0..=2.0).contains(&load.value()), "{}", load.value());
    assert!(gradient.logits.iter().all(|d| d.is_finite() && d.abs() > 1e-9), "{gradient:?}");
}

#[test]
fn of_nothing() {
    let empty = Batch::plain(Array2::zeros((0, 3)), &[]);
    let mut padding = Batch::plain(Array2::ones((2, 3)), &[&[0], &[1]]);
    padding.padding = vec![true; 2];
    for batch in [empty, padding] {
        for (name, value, gradient) in all(&batch) {
            assert_eq!(value, 0.0, "{name}");
            assert!(gradient.iter().all(|&d| d == 0.0), "{name}");
        }
    }
    assert_eq!(LoadBalance::over_all(&[]).value(), 0.0);
    assert!(LoadBalance::over_all(&[]).gradients().unwrap().is_empty());
}

#[test]
fn a_plan_of_other_shape_is_refused() {
    let batch = Batch::plain(Array2::zeros((2, 3)), &[&[0], &[1]]);
    let plan = batch.plan();
    let other = Array2::zeros((2, 4));
    let error = Routed::new(other.view(), &plan, moe_core::TokenContext::new()).unwrap_err().to_string();
    assert_eq!(error, "routing plan: expected shape [2, 4], found [2, 3]");
}
