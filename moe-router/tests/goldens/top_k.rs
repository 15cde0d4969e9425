//! Token choice without capacity: the routers of Hugging Face `transformers`.

use moe_core::TokenContext;
use moe_router::{Normalization, TopK};

use crate::fixture::{Case, Report, cases, indices, numbers, renormalized_bound, softmax_bound};
use crate::routed::{Choice, choices};

/// Scores closer than this, relatively, are flagged: another correct softmax may order them otherwise.
const NEAR_TIE: f64 = 1e-6;

/// Compares ids and weights of all tokens, `[T, k]`; `expected` is by rank unless `as_sets`.
fn compare(
    report: &mut Report,
    case: Case,
    k: usize,
    normalization: Normalization,
    expected: &[(usize, f32)],
) {
    let logits = case.logits();
    let experts = logits.ncols();
    let router = TopK::new(k).unwrap().normalized(normalization);
    let found = choices(&router, logits.view(), TokenContext::new());
    let doubtful = case.doubtful("exact_tie_tokens", "near_tie_tokens", 0);
    let bound = match normalization {
        Normalization::OverAll => softmax_bound(experts),
        _ => renormalized_bound(experts, k),
    };
    report
        .check(expected.len() == found.len() * k, || format!("{}: {} choices", case.name(), expected.len()));
    for (t, (expected, found)) in expected.chunks(k).zip(&found).enumerate() {
        let mut expected = expected.to_vec();
        let mut found: Vec<(usize, f32)> =
            found.iter().map(|&Choice { expert, weight }| (expert, weight.unwrap())).collect();
        let mut bound = bound;
        if doubtful.contains(&t) {
            // Which of the tied experts were chosen is open; what they weigh is not.
            expected.sort_by(|a, b| b.1.total_cmp(&a.1));
            found.sort_by(|a, b| b.1.total_cmp(&a.1));
            bound += NEAR_TIE;
        } else {
            let ids = |list: &[(usize, f32)]| list.iter().map(|c| c.0).collect::<Vec<_>>();
            let (e, f) = (ids(&expected), ids(&found));
            report
                .check(e == f, || format!("{}: token {t}: expected experts {e:?}, found {f:?}", case.name()));
        }
        for (e, f) in expected.iter().zip(&found) {
            report.weight(case, t, e.1, f.1, bound);
        }
    }
    report.cases += 1;
}

fn by_rank(case: Case) -> Vec<(usize, f32)> {
    indices(case.output("ids")).into_iter().zip(numbers(case.output("weights"))).collect()
}

fn norm_topk_prob(case: Case) -> Normalization {
    if case.flag("norm_topk_prob") { Normalization::OverAllRenormalized } else { Normalization::OverAll }
}

/// Runs a group under the normalisations that `rule` gives a case.
fn run(group: &str, rule: impl Fn(Case) -> Vec<Normalization>, comparisons: usize) {
    let mut report = Report::default();
    for case in cases(group) {
        for normalization in rule(case) {
            compare(&mut report, case, case.size("top_k"), normalization, &by_rank(case));
        }
    }
    report.finish(comparisons);
}

#[test]
fn mixtral() {
    run("mixtral", |_| vec![Normalization::OverChosen, Normalization::OverAllRenormalized], 2 * 12);
}

#[test]
fn olmoe() {
    run("olmoe", |case| vec![norm_topk_prob(case)], 24);
}

#[test]
fn qwen2_moe() {
    run("qwen2_moe", |case| vec![norm_topk_prob(case)], 16);
}

#[test]
fn jamba() {
    run("jamba", |case| vec![norm_topk_prob(case)], 6);
}

#[test]
fn granitemoe() {
    run("granitemoe", |_| vec![Normalization::OverChosen], 10);
}

/// The p-norm for p = 1 is the sum; for p = 2 (6 cases of the 18) see `scored`.
#[test]
fn dbrx() {
    let rule = |case: Case| match case.setting("norm_p").as_f64() {
        None => vec![Normalization::OverAll],
        Some(1.0) => vec![Normalization::OverAllRenormalized],
        Some(_) => vec![],
    };
    run("dbrx", rule, 12);
}

/// JetMoE lists the pairs by expert; they are put back into rank order, which weights give.
#[test]
fn jetmoe() {
    let mut report = Report::default();
    for case in cases("jetmoe") {
        let k = case.size("top_k");
        let sizes = indices(case.output("expert_sizes"));
        let experts = sizes.iter().enumerate().flat_map(|(e, &n)| std::iter::repeat_n(e, n));
        let weights = numbers(case.output("sorted_weights"));
        let slots = indices(case.output("sorted_slots"));
        let tokens = indices(case.output("sorted_tokens"));
        let mut by_slot = vec![(usize::MAX, f32::NAN); slots.len()];
        for ((expert, weight), (slot, token)) in experts.zip(weights).zip(slots.into_iter().zip(tokens)) {
            assert_eq!(slot / k, token);
            by_slot[slot] = (expert, weight);
        }
        compare(&mut report, case, k, Normalization::OverChosen, &by_slot);
    }
    report.finish(7);
}
