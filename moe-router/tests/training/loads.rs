//! How even a load is, by hand, and balance over a global batch.

use moe_core::{Assignments, RouteInput, Routed, Router, RoutingPlan, TokenContext};
use moe_router::losses::LoadBalance;
use moe_router::metrics::ExpertLoad;
use moe_router::{RouterSpec, TopK};
use ndarray::{Array2, ArrayView2, s};

fn plan(router: &dyn Router, logits: ArrayView2<'_, f32>) -> RoutingPlan {
    let mut out = Assignments::new();
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    router.route(&RouteInput::new(logits, TokenContext::new()).unwrap(), &mut out).unwrap();
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    plan
}

#[test]
fn devices_by_hand() {
    let mut logits = Array2::zeros((8, 4));
    [0, 0, 0, 0, 1, 1, 2, 3]
        .into_iter()
        .enumerate()
        .for_each(|(t, e): (usize, usize)| logits[[t, e]] = 3.0f32);
    let mut load = ExpertLoad::default();
    load.add(&plan(&TopK::new(1).unwrap(), logits.view()));
    assert_eq!((load.counts(), load.max_over_mean(), load.max_violation()), (&[4, 2, 1, 1][..], 2.0, 1.0));
    let devices = load.on_devices(&[0, 0, 1, 1]);
    assert_eq!((devices.counts(), devices.max_over_mean()), (&[6, 2][..], 1.5));
    // With two choices a token goes to one device or two, and is sent once to each.
    let two = plan(&TopK::new(2).unwrap(), logits.view());
    let (mut asked, mut received) = (ExpertLoad::default(), ExpertLoad::default());
    asked.add(&two);
    received.add_received(&two, &[0, 0, 1, 1], 2);
    assert_eq!(asked.counts(), [8, 6, 1, 1]);
    assert_eq!((asked.on_devices(&[0, 0, 1, 1]).counts(), received.counts()), (&[14, 2][..], &[8, 2][..]));
}

#[test]
fn evenness_at_its_ends_and_between() {
    let of = |counts: &[u64]| {
        let load = ExpertLoad::from_counts(counts);
        [load.max_violation(), load.gini(), load.effective_share()]
    };
    let near = |a: [f64; 3], b: [f64; 3]| {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?}, expected {b:?}");
    };
    near(of(&[5, 5, 5, 5]), [0.0, 0.0, 1.0]);
    near(of(&[0, 7, 0, 0]), [3.0, 0.75, 0.25]);
    near(of(&[0, 0]), [0.0, 0.0, 0.0]);
    near(of(&[]), [0.0, 0.0, 0.0]);
    // Gini by its definition, 2·(1 + 3 + 2) / (2·3·4); H of a quarter and three.
    let nats = -0.25 * 0.25f64.ln() - 0.75 * 0.75f64.ln();
    near(of(&[3, 0, 1]), [1.25, 0.5, nats.exp() / 3.0]);
}

/// Two micro-batches with counts of both are the whole batch, in value and gradient.
#[test]
fn global_balance() {
    let logits = Array2::from_shape_fn((12, 4), |(t, e)| ((t * 7 + e * 5) % 11) as f32 * 0.3 - 1.0);
    let top = TopK::new(2).unwrap();
    let parts = [logits.slice(s![..4, ..]), logits.slice(s![4.., ..])];
    let (whole, plans) = (plan(&top, logits.view()), parts.map(|part| plan(&top, part)));
    let context = TokenContext::new();
    let whole = LoadBalance::over_all(&[Routed::new(logits.view(), &whole, context).unwrap()]);
    let mut counts = ExpertLoad::default();
    plans.iter().for_each(|plan| counts.add(plan));
    let (mut value, mut first) = (0.0, 0);
    for (part, plan) in parts.into_iter().zip(&plans) {
        let micro = LoadBalance::over_all(&[Routed::new(part, plan, context).unwrap()]);
        let global = micro.with_global_choices(counts.counts(), 12);
        let share = part.nrows() as f64 / 12.0;
        value += share * global.value();
        for ((t, e), d) in global.gradient().unwrap().indexed_iter() {
            assert!((share * d - whole.gradient().unwrap()[[first + t, e]]).abs() < 1e-15);
        }
        first += part.nrows();
    }
    assert!((value - whole.value()).abs() < 1e-12);
    assert!((value - 2.007_214_840_194_604).abs() < 1e-12, "{value}");
}

/// Even routing over true and null experts is even in the loss of the router inside, which is AdaMoE's.
#[test]
fn null_experts_and_balance() {
    let mut logits = Array2::zeros((6, 6));
    for (t, pair) in [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 0]].into_iter().enumerate() {
        pair.into_iter().for_each(|e| logits[[t, e]] = 0.001f32);
    }
    let of = |spec: &str| {
        let router = spec.parse::<RouterSpec>().unwrap().build().unwrap();
        let plan = plan(&*router, logits.view());
        LoadBalance::over_all(&[Routed::new(logits.view(), &plan, TokenContext::new()).unwrap()]).value()
    };
    assert!((of("top-k:k=2") - 2.0).abs() < 1e-6);
    assert!((of("without-nulls(top-k:k=2):experts=4") - 4.0 / 3.0).abs() < 1e-6);
}
