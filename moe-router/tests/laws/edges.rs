//! Empty, tiny, large and hostile inputs.

use moe_core::{Assignments, Locality, RouteInput, Router, RoutingPlan, TokenContext};
use moe_router::{Capacity, Capped, ExpertChoice, Normalization, Renormalized, TopK};
use ndarray::{Array2, ArrayView2, array};

use crate::listed::{route, routers, words};

#[test]
fn no_token_and_one_token() {
    for experts in [1, 2, 5] {
        for listed in routers(experts) {
            let none = route(&*listed.router, Array2::zeros((0, experts)).view(), TokenContext::new());
            assert_eq!((none.tokens(), none.rows()), (0, 0), "{}", listed.name);
            if listed.varies() {
                continue;
            }
            let one = route(&*listed.router, Array2::zeros((1, experts)).view(), TokenContext::new());
            assert_eq!(one.choices(0).len(), listed.k.unwrap_or(experts), "{}", listed.name);
        }
    }
}

#[test]
fn one_expert_has_weight_one() {
    let logits = array![[-3.5], [0.0], [1e4]];
    for listed in routers(1).into_iter().filter(|l| !l.varies() && (l.sums_to_one || l.k.is_none())) {
        let plan = route(&*listed.router, logits.view(), TokenContext::new());
        assert!(plan.row_weights().iter().all(|&w| w == 1.0), "{}", listed.name);
    }
}

#[test]
fn many_experts_all_chosen() {
    let logits = Array2::from_shape_fn((3, 300), |(t, e)| ((t * 300 + e) * 7919 % 300) as f32 * 0.01);
    for normalization in [Normalization::OverChosen, Normalization::OverAll] {
        for k in [1, 8, 255, 256, 300] {
            let plan =
                route(&TopK::new(k).unwrap().normalized(normalization), logits.view(), TokenContext::new());
            for t in 0..3 {
                let chosen: Vec<_> = plan.choices(t).map(|c| logits[[t, c.expert]]).collect();
                assert_eq!(chosen.len(), k);
                assert!(chosen.is_sorted_by(|a, b| a > b));
                assert!(
                    k == 300 || plan.choices(t).all(|c| logits[[t, c.expert]] >= (300 - k) as f32 * 0.01)
                );
            }
        }
    }
}

/// The laws of `quantities`, for every router at the width of DeepSeek-V3.
#[test]
fn two_hundred_and_fifty_six_experts() {
    let logits =
        Array2::from_shape_fn((12, 256), |(t, e)| ((t * 256 + e) * 7919 % 1024) as f32 / 128.0 - 4.0);
    for listed in routers(256) {
        let plan = route(&*listed.router, logits.view(), TokenContext::new());
        assert!(plan.row_weights().iter().all(|w| w.is_finite() && *w >= 0.0), "{}", listed.name);
        let k = listed.k.unwrap_or(1);
        assert!(listed.k.is_none() || plan.rows() + plan.refused().len() == 12 * k, "{}", listed.name);
        if let Some(capacity) = listed.capacity {
            let places = capacity.places(12, 12 * k, 256).unwrap();
            assert!((0..256).all(|e| plan.expert_rows(e).len() <= places), "{}", listed.name);
        }
        for t in (0..12).filter(|&t| listed.sums_to_one && plan.choices(t).len() == k) {
            let sum: f32 = plan.choices(t).map(|c| c.weight).sum();
            // As `quantities::SUM_BOUND`, for up to 256 weights.
            assert!((sum - 1.0).abs() <= 2.0 * 3.0 * 256.0 / 16_777_216.0, "{}: {sum}", listed.name);
        }
    }
}

#[test]
fn equal_scores_go_to_the_lower_index() {
    let logits = array![[1.0, 2.0, 2.0, 1.0], [0.0, -0.0, 0.0, -0.0], [2.0, 1.0, 2.0, 2.0]];
    let chosen = |plan: &RoutingPlan, t| plan.choices(t).map(|c| c.expert).collect::<Vec<_>>();
    let plan = route(&TopK::new(3).unwrap(), logits.view(), TokenContext::new());
    assert_eq!([0, 1, 2].map(|t| chosen(&plan, t)), [vec![1, 2, 0], vec![0, 1, 2], vec![0, 2, 3]]);

    let equal = Array2::zeros((4, 3));
    let choice = ExpertChoice::new(Capacity::absolute(2)).unwrap();
    let plan = route(&choice, equal.view(), TokenContext::new());
    assert_eq!(plan.row_tokens(), [0, 1, 0, 1, 0, 1]);

    let capped = Capped::new(TopK::new(1).unwrap(), Capacity::absolute(2)).unwrap().by_score();
    let plan = route(&capped, equal.view(), TokenContext::new());
    assert_eq!(plan.row_tokens(), [0, 1]);
}

/// Routes without sealing: what is not finite in goes out as weights that sealing refuses.
fn push(router: &dyn Router, logits: ArrayView2<'_, f32>) -> Assignments {
    let mut out = Assignments::new();
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    let words = words(logits);
    let context = TokenContext::new().with_token_ids(&words);
    router.route(&RouteInput::new(logits, context).unwrap(), &mut out).unwrap();
    out
}

#[test]
fn nothing_panics_and_finite_extremes_have_finite_weights() {
    let values = [
        0.0,
        -0.0,
        1e4,
        -1e4,
        1e-45,
        -1e-45,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
    ];
    for experts in [1, 2, 3, 5] {
        // Every value meets every other in some row.
        let logits =
            Array2::from_shape_fn((144, experts), |(t, e)| values[(t + e * (t / 12)) % values.len()]);
        for listed in routers(experts) {
            let out = push(&*listed.router, logits.view());
            if listed.router.locality() != Locality::Token {
                continue;
            }
            for pair in out.granted() {
                let row = logits.row(pair.token as usize);
                let finite = listed.guarded && row.iter().all(|v| v.is_finite());
                assert!(!finite || pair.weight.is_finite(), "{}: {row}: {pair:?}", listed.name);
                // A hash and a random choice look at no logits.
                let blind = ["hash", "scored hash", "random"].contains(&&*listed.name);
                // Where every score is NaN, and so every weight, nothing is preferred; sealing reports it.
                let numbers = out.granted().iter().any(|p| p.token == pair.token && !p.weight.is_nan());
                if numbers && !blind && row[pair.expert as usize].is_nan() {
                    let open = |v: &&f32| !v.is_nan() && **v != f32::NEG_INFINITY;
                    let numbers = row.iter().filter(open).count();
                    assert!(pair.rank as usize >= numbers, "{}: prefers NaN: {row}", listed.name);
                }
            }
        }
        for value in values {
            let all_equal = Array2::from_elem((4, experts), value);
            for listed in routers(experts) {
                let out = push(&*listed.router, all_equal.view());
                assert!(
                    !value.is_finite()
                        || !listed.guarded
                        || out.granted().iter().all(|p| p.weight.is_finite())
                );
            }
        }
    }
}

#[test]
fn expert_choice_takes_a_nan_last() {
    let logits = array![[f32::NAN, 0.0], [-9.0, 0.0], [-8.0, 0.0]];
    let router = ExpertChoice::new(Capacity::absolute(2)).unwrap();
    let plan = route(&router, logits.view(), TokenContext::new());
    assert_eq!(plan.row_tokens(), [1, 2, 1, 2]);
}

#[test]
fn settings_that_cannot_work_are_errors() {
    assert!(TopK::new(0).is_err());
    assert!(Capped::new(TopK::new(1).unwrap(), Capacity::absolute(0)).is_err());
    assert!(ExpertChoice::new(Capacity::factor_of_tokens(f64::NAN)).is_err());

    let mut out = Assignments::new();
    let logits = Array2::zeros((2, 3));
    let input = RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    let error = |router: &dyn Router, out: &mut Assignments| {
        out.reset(2, 3).unwrap();
        router.route(&input, out).unwrap_err().to_string()
    };
    assert_eq!(
        error(&TopK::new(4).unwrap(), &mut out),
        "router: top-k: expected at least 4 experts, found 3"
    );
    let none = Capacity::factor_of_tokens(0.1).rounded(moe_router::Rounding::Down);
    let message = error(&Capped::new(TopK::new(2).unwrap(), none).unwrap(), &mut out);
    assert_eq!(
        message,
        "router: capacity: expected at least 1 place an expert, found 0 for 2 tokens, 4 choices and 3 experts"
    );
}

/// A decorator passes on what is out of range, and sealing reports it.
#[test]
fn pairs_out_of_range_survive_decoration() {
    #[derive(Clone, Copy)]
    struct Wild(usize, usize);
    impl Router for Wild {
        fn route(&self, _: &RouteInput<'_>, out: &mut Assignments) -> moe_core::Result<()> {
            out.assign(0, 0, 0.5);
            out.assign(self.0, self.1, 0.5);
            Ok(())
        }
    }
    let logits = Array2::zeros((2, 3));
    for (token, expert) in [(2, 0), (0, 3), (usize::MAX, 0), (1, usize::MAX)] {
        let capped = Capped::new(Wild(token, expert), Capacity::absolute(1)).unwrap();
        let routers: [&dyn Router; 3] = [&capped, &capped.by_score(), &Renormalized::new(&capped)];
        for router in routers {
            let out = push(router, logits.view());
            assert!(RoutingPlan::new().seal(&out).unwrap_err().to_string().contains("below"));
        }
    }
}
