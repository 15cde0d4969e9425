//! Megatron Core: choices by several scores, token dropping, Sinkhorn, the update of selection biases.

use moe_core::{Router, TokenContext, numerics};
use moe_router::{
    BiasBalancer, Capacity, Capped, ExpertGroups, Normalization, Normalizer, Score, ScoredTopK, Sinkhorn,
    TopK,
};

use crate::fixture::{Case, Report, cases, indices, numbers, softmax_bound, units};
use crate::routed::{Choice, Entry, choices, compare_entries, expected_entries, granted};

fn route(router: &dyn Router, case: Case) -> Vec<Vec<Choice>> {
    choices(router, case.logits().view(), TokenContext::new())
}

/// The router of a case's settings, and the bound of its weights.
fn top_k(case: Case) -> (Box<dyn Router>, f64) {
    let (k, experts) = (case.size("top_k"), case.size("num_experts"));
    if case.setting("score_function") == "softmax" {
        let top = TopK::new(k).unwrap();
        return match case.flag("pre_softmax") {
            true => (Box::new(top.normalized(Normalization::OverAll)), softmax_bound(experts)),
            false => (Box::new(top), softmax_bound(k)),
        };
    }
    let bias = numbers(case.input("bias"));
    let groups = case
        .setting("groups")
        .as_u64()
        .map(|groups| ExpertGroups::by_two_best(groups as usize, case.size("kept_groups")).unwrap());
    let scale = case.setting("scale").as_f64().unwrap_or(1.0) as f32;
    let router = ScoredTopK::new(k, Score::Sigmoid).unwrap().with_bias(bias).unwrap();
    let router = groups.into_iter().fold(router, ScoredTopK::within);
    let router = router.normalized(Normalizer::Sum { epsilon: 1e-20 }).unwrap().scaled(scale).unwrap();
    // A sigmoid has an exp, an addition and a division: 2.1, 1 and 1 units here, 2, 1 and 1 there. It enters twice, with the
    // sum of k, a division and the scale on either side.
    (Box::new(router), units(2.0 * 8.1 + 2.0 * (k as f64 + 2.0)))
}

#[test]
fn top_k_by_score_functions() {
    let mut report = Report::default();
    for case in cases("megatron_top_k") {
        let (router, bound) = top_k(case);
        let found = granted(&route(&*router, case));
        compare_entries(&mut report, case, &expected_entries(case), &found, bound);
    }
    report.finish(10);
}

#[test]
fn token_dropping() {
    let mut report = Report::default();
    for case in cases("megatron_drop") {
        let (router, bound) = top_k(case);
        let factor = case.setting("capacity_factor").as_f64().unwrap();
        let capped = Capped::new(router, Capacity::factor_of_choices(factor)).unwrap();
        let expected = expected_entries(case);
        if case.setting("drop_policy") == "probs" {
            let found = granted(&route(&capped.by_own_score(), case));
            compare_entries(&mut report, case, &expected, &found, bound);
            continue;
        }
        // As many of each expert; ours are the first in order of position, as the name says, Megatron's those that a topk of
        // zeros and ones finds.
        let found = granted(&route(&capped.token_by_token(), case));
        let load = |entries: &[(usize, usize, f32)]| {
            let mut load = vec![0; case.size("num_experts")];
            entries.iter().for_each(|&(_, e, _)| load[e] += 1);
            load
        };
        assert_eq!(load(&found), load(&expected), "{}", case.name());
        let chosen = indices(case.output("chosen"));
        let capacity = indices(case.output("capacity"))[0];
        let mut taken = vec![0; case.size("num_experts")];
        for (i, _) in chosen.iter().enumerate().filter(|(_, c)| **c == 1) {
            let (t, e) = (i / taken.len(), i % taken.len());
            taken[e] += 1;
            let granted = found.iter().any(|&(token, expert, _)| (token, expert) == (t, e));
            assert_eq!(granted, taken[e] <= capacity, "{}: {t} {e}", case.name());
        }
        for (t, e, w) in &found {
            let same = expected.iter().find(|x| (x.0, x.1) == (*t, *e));
            same.into_iter().for_each(|x| report.weight(case, *t, x.2, *w, bound));
        }
        report.cases += 1;
    }
    report.finish(24);
}

/// Megatron stops once the factors of experts move by 1e-4 on average and keeps sums from 0 by an epsilon, [`Sinkhorn`] once no
/// logarithm moves by 1e-4; both are nearer to the plan they converge to than this where the plan's choice is ahead of the
/// next expert by more.
const AHEAD: f32 = 0.01;

#[test]
fn sinkhorn() {
    let mut report = Report::default();
    let (mut compared, mut all) = (0, 0);
    for case in cases("megatron_sinkhorn") {
        let (k, experts) = (case.size("top_k"), case.size("num_experts"));
        let ahead = numbers(case.output("ahead"));
        let clear = |t: usize| ahead[t] > AHEAD;
        let of_clear =
            |list: Vec<Entry>| -> Vec<Entry> { list.into_iter().filter(|&(t, ..)| clear(t)).collect() };
        let mut found = of_clear(granted(&route(&Sinkhorn::new(k).unwrap(), case)));
        let converged = indices(case.output("converged"));
        let chosen = |t: usize| found.iter().filter(move |f| f.0 == t).map(|f| f.1).collect::<Vec<_>>();
        let tokens = (0..ahead.len()).filter(|&t| clear(t));
        tokens.for_each(|t| assert_eq!(chosen(t), converged[t * k..][..k], "{}: token {t}", case.name()));
        // For one choice Megatron weighs by σ(l), where S-BASE and we have the softmax.
        let bound = if k == 1 { units(8.1) } else { softmax_bound(experts) };
        if k == 1 {
            let logits = case.logits();
            found.iter_mut().for_each(|(t, e, w)| *w = numerics::sigmoid(logits[[*t, *e]]));
        }
        compare_entries(&mut report, case, &of_clear(expected_entries(case)), &found, bound);
        compared += found.len() / k;
        all += ahead.len();
    }
    report.finish(12);
    assert!(compared * 100 > all * 97, "{compared} of {all} tokens");
}

#[test]
fn bias_updates() {
    let mut report = Report::default();
    for case in cases("megatron_bias") {
        let experts = case.size("num_experts");
        let rate = case.setting("rate").as_f64().unwrap() as f32;
        let mut balancer = BiasBalancer::resume(numbers(case.input("bias")), rate).unwrap();
        let (loads, after) = (indices(case.input("loads")), numbers(case.output("biases")));
        for (load, expected) in loads.chunks(experts).zip(after.chunks(experts)) {
            balancer.update(load).unwrap();
            // The same f32 additions.
            assert_eq!(balancer.biases(), expected, "{}", case.name());
            report.weights += experts;
        }
        report.cases += 1;
    }
    report.finish(3);
}
