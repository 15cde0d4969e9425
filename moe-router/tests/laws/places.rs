//! Who gets the places of an expert: the priorities and scopes of capacity, and the scores of expert choice.

use moe_core::{Locality, Router, TokenContext};
use moe_router::{Capacity, Capped, ExpertChoice, Normalization, Score, TopK};
use ndarray::{Array2, array};

use crate::listed::route;
use crate::particular::{chosen, irregular};

/// Each expert's choices by their own weights, found by sorting them expert by expert.
#[test]
fn own_scores_by_definition() {
    for seed in 0..30 {
        let logits = irregular(14, 5, seed * 31);
        let inner = TopK::new(3).unwrap().normalized(Normalization::OverAll);
        let asked = route(&inner, logits.view(), TokenContext::new());
        let capped = Capped::new(inner, Capacity::absolute(4)).unwrap().by_own_score();
        let plan = route(&capped, logits.view(), TokenContext::new());
        for e in 0..5 {
            let mut own: Vec<_> = asked.expert_rows(e).collect();
            own.sort_by(|&a, &b| asked.row_weights()[b].total_cmp(&asked.row_weights()[a]));
            let mut kept: Vec<u32> = own.iter().take(4).map(|&row| asked.row_tokens()[row]).collect();
            kept.sort_unstable();
            assert_eq!(&plan.row_tokens()[plan.expert_rows(e)], &kept, "seed {seed}, expert {e}");
        }
    }
}

/// What Megatron's code keeps of these, and none of the other priorities: the first choice of token 5 before the second of 4.
#[test]
fn own_scores_by_hand() {
    let logits = array![
        [0.63f32, -0.13, 0.64],
        [0.6, -0.54, 0.36],
        [1.8, 0.95, -0.7],
        [-0.77, -0.62, 0.04],
        [-1.83, -0.22, -1.25],
        [-0.23, -0.54, -0.32]
    ];
    let inner = TopK::new(2).unwrap().normalized(Normalization::OverAll);
    let refused = |router: Capped<TopK>| {
        let plan = route(&router, logits.view(), TokenContext::new());
        plan.refused().iter().map(|r| (r.token, r.expert)).collect::<Vec<_>>()
    };
    let capped = Capped::new(inner, Capacity::factor_of_choices(1.0)).unwrap();
    assert_eq!(refused(capped.by_own_score()), [(4, 2)]);
    assert_eq!(refused(capped.by_score()), [(5, 2)]);
}

/// Ten tokens and three places: each has a place in three of ten seeds, within 5 standard errors, wherever it stands.
#[test]
fn random_places_favour_no_position() {
    let logits = Array2::from_shape_fn((10, 2), |(_, e)| -(e as f32));
    let router = Capped::new(TopK::new(1).unwrap(), Capacity::absolute(3)).unwrap().at_random();
    let (seeds, mut kept) = (4000, [0u32; 10]);
    for seed in 0..seeds {
        let plan = route(&router, logits.view(), TokenContext::new().with_seed(seed));
        assert_eq!(plan.rows(), 3);
        plan.row_tokens().iter().for_each(|&t| kept[t as usize] += 1);
    }
    let error = 5.0 * (seeds as f64 * 0.3 * 0.7).sqrt();
    assert!(kept.iter().all(|&n| (f64::from(n) - 0.3 * seeds as f64).abs() < error), "{kept:?}");
    // A draw belongs to a position.
    let tokens = |positions: &[usize]| {
        let plan = route(&router, logits.view(), TokenContext::new().with_seed(5).with_positions(positions));
        plan.row_tokens().iter().map(|&t| positions[t as usize]).collect::<std::collections::BTreeSet<_>>()
    };
    let there: Vec<usize> = (0..10).collect();
    let back: Vec<usize> = (0..10).rev().collect();
    assert_eq!(tokens(&there), tokens(&back));
}

/// The block of Mixture-of-Depths: one expert, the tokens with the greatest logits.
#[test]
fn one_expert_takes_the_greatest_logits() {
    let logits = array![[1.0], [50.0], [40.0], [-2.0]];
    for (score, weights) in [(Score::Sigmoid, [1.0, 1.0]), (Score::Logit, [50.0, 40.0])] {
        let router = ExpertChoice::new(Capacity::absolute(2)).unwrap().scored_by(score);
        let plan = route(&router, logits.view(), TokenContext::new());
        assert_eq!((plan.row_tokens(), plan.row_weights()), (&[1, 2][..], &weights[..]));
    }
    // Saturated sigmoids tie, their logits do not; a negative logit is a weight like another.
    let router = ExpertChoice::new(Capacity::absolute(1)).unwrap().scored_by(Score::Sigmoid);
    assert_eq!(route(&router, array![[30.0], [31.0]].view(), TokenContext::new()).row_tokens(), [1]);
    let router = ExpertChoice::new(Capacity::absolute(2)).unwrap().scored_by(Score::Logit);
    let plan = route(&router, array![[-1.0], [-3.0], [-2.0]].view(), TokenContext::new());
    assert_eq!((plan.row_tokens(), plan.row_weights()), (&[0, 2][..], &[-1.0, -2.0][..]));
}

/// The places of a whole call are those of one sequence of all its tokens.
#[test]
fn a_capacity_of_the_call() {
    let logits = irregular(12, 4, 2);
    let (offsets, padding) = ([0, 5, 5, 12], [2, 8]);
    let padding: Vec<bool> = (0..12).map(|t| padding.contains(&t)).collect();
    for capacity in [Capacity::absolute(2), Capacity::factor_of_choices(0.6), Capacity::factor_of_tokens(1.0)]
    {
        let own = Capped::new(TopK::new(2).unwrap(), capacity).unwrap();
        for own in [own, own.by_score(), own.token_by_token(), own.rerouting()] {
            let one = route(&own, logits.view(), TokenContext::new().with_padding(&padding));
            let context = TokenContext::new().with_sequences(&offsets).with_padding(&padding);
            let call = route(&own.over_call(), logits.view(), context);
            for t in 0..12 {
                assert_eq!(chosen(&call, t), chosen(&one, t), "{capacity:?}");
            }
            assert_eq!(call.stats(), one.stats());
            assert_eq!(own.over_call().locality(), Locality::Batch);
        }
    }
    // Both sequences want expert 0, which has one place in each, or one in all.
    let alike = Array2::from_shape_fn((2, 2), |(_, e)| -(e as f32));
    let context = TokenContext::new().with_sequences(&[0, 1, 2]);
    let own = Capped::new(TopK::new(1).unwrap(), Capacity::absolute(1)).unwrap();
    assert_eq!(route(&own, alike.view(), context).row_tokens(), [0, 1]);
    assert_eq!(route(&own.over_call(), alike.view(), context).row_tokens(), [0]);
}
