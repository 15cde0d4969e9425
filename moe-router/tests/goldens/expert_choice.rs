//! Expert choice: flaxformer and V-MoE.

use moe_core::TokenContext;
use moe_router::{Capacity, ExpertChoice, Rounding};

use crate::fixture::{Case, Report, cases, indices, numbers, softmax_bound};
use crate::routed::{choices, equal_groups};

/// Compares who is chosen by each expert of each group, and the weights.
fn compare(report: &mut Report, case: Case, capacity: Capacity, places: usize, padding: Option<&[bool]>) {
    let (groups, tokens) = (case.size("num_groups"), case.size("tokens_per_group"));
    let logits = case.logits();
    let experts = logits.ncols();
    let offsets = equal_groups(groups, tokens);
    let mut context = TokenContext::new().with_sequences(&offsets);
    context.padding = padding;
    let found = choices(&ExpertChoice::new(capacity).unwrap(), logits.view(), context);
    let near_ties = case.doubtful("near_tie_experts", "near_tie_experts", experts);

    let chosen = indices(case.output("chosen_tokens"));
    let weights = numbers(case.output("weights"));
    for (column, (tokens_of, weights)) in chosen.chunks(places).zip(weights.chunks(places)).enumerate() {
        let (group, expert) = (column / experts, column % experts);
        let first = group * tokens;
        let present = |t: usize| padding.is_none_or(|mask| !mask[t]);
        // Flaxformer may choose padding, with weight 0.
        let mut expected: Vec<(usize, f32)> =
            (tokens_of.iter().map(|t| first + t).zip(weights.iter().copied()))
                .filter(|&(t, _)| present(t))
                .collect();
        let of_expert = (first..first + tokens)
            .filter_map(|t| found[t].iter().find(|c| c.expert == expert).map(|c| (t, c.weight.unwrap())));
        let mut found: Vec<(usize, f32)> = of_expert.collect();
        // Equal scores go to the lower token. Only scores that round otherwise elsewhere, or that the reference flushes to
        // zero, may be chosen otherwise.
        let other = |list: &[(usize, f32)], (t, w): (usize, f32)| {
            list.iter().all(|c| c.0 != t) && !(near_ties.contains(&column) || w < f32::MIN_POSITIVE)
        };
        let missing: Vec<_> = expected.iter().filter(|&&c| other(&found, c)).collect();
        let extra: Vec<_> = found.iter().filter(|&&c| other(&expected, c)).collect();
        report.check(expected.len() == found.len() && missing.is_empty() && extra.is_empty(), || {
            format!("{}: group {group}, expert {expert}: missing {missing:?}, extra {extra:?}", case.name())
        });
        expected.sort_by(|a, b| b.1.total_cmp(&a.1));
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (e, f) in expected.iter().zip(&found) {
            report.weight(case, e.0, e.1, f.1, softmax_bound(experts));
        }
    }
    report.cases += 1;
}

#[test]
fn flaxformer_experts_choose() {
    let mut report = Report::default();
    for case in cases("flaxformer_experts_choose") {
        let places = case.size("expert_capacity");
        let padding: Option<Vec<bool>> = Some(case.input("non_padding"))
            .filter(|v| !v.is_null())
            .map(|v| indices(v).into_iter().map(|present| present == 0).collect());
        compare(&mut report, case, Capacity::absolute(places), places, padding.as_deref());
    }
    report.finish(13);
}

#[test]
fn vmoe_top_items_per_expert() {
    let mut report = Report::default();
    for case in cases("vmoe_top_items_per_expert") {
        let dispatcher = case.setting("dispatcher");
        let capacity = match dispatcher.get("capacity") {
            Some(n) => Capacity::absolute(n.as_u64().unwrap() as usize),
            None => Capacity::factor_of_choices(dispatcher["capacity_factor"].as_f64().unwrap())
                .rounded(Rounding::Up)
                .multiple_of(dispatcher["capacity_multiple_of"].as_u64().unwrap() as usize),
        };
        let places = case.output("capacity").as_u64().unwrap() as usize;
        compare(&mut report, case, capacity, places, None);
    }
    report.finish(12);
}
