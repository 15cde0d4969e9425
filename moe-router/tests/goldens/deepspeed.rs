//! DeepSpeed's gating functions: random token selection, token dropping by weight and by position.

use moe_core::{Router, TokenContext};
use moe_router::{Capacity, Capped, Normalization, Renormalized, TopK};

use crate::fixture::{Case, Report, cases, renormalized_bound, softmax_bound};
use crate::routed::{choices, compare_entries, expected_entries, granted};

/// The k best by softmax over all, limited by the case's factor.
fn capped(case: Case, k: usize, least: usize) -> Capped<TopK> {
    let top = TopK::new(k).unwrap().normalized(Normalization::OverAll);
    let factor = case.setting("capacity_factor").as_f64().unwrap();
    Capped::new(top, Capacity::factor_of_choices(factor).at_least(least)).unwrap()
}

fn compare(report: &mut Report, case: Case, router: &dyn Router, context: TokenContext<'_>, bound: f64) {
    let found = granted(&choices(router, case.logits().view(), context));
    compare_entries(report, case, &expected_entries(case), &found, bound);
}

#[test]
fn random_token_selection() {
    let mut report = Report::default();
    for case in cases("deepspeed_top1") {
        let router = capped(case, 1, case.size("min_capacity")).at_random();
        let context = TokenContext::new().with_seed(case.size("seed") as u64);
        compare(&mut report, case, &router, context, softmax_bound(case.size("num_experts")));
    }
    report.finish(8);
}

#[test]
fn top2() {
    let mut report = Report::default();
    for case in cases("deepspeed_top2") {
        let router = Renormalized::new(capped(case, 2, 0));
        let bound = renormalized_bound(case.size("num_experts"), 2);
        compare(&mut report, case, &router, TokenContext::new(), bound);
    }
    report.finish(6);
}

#[test]
fn topk_drop_policies() {
    let mut report = Report::default();
    for case in cases("deepspeed_topk") {
        let k = case.size("top_k");
        let capped = capped(case, k, 0);
        let capped = match case.setting("drop_policy").as_str() {
            Some("probs") => capped.by_own_score(),
            // An expert's tokens in their order, whatever their ranks.
            _ => capped.token_by_token(),
        };
        let bound = renormalized_bound(case.size("num_experts"), k);
        compare(&mut report, case, &Renormalized::new(capped), TokenContext::new(), bound);
    }
    report.finish(12);
}
