//! A routing as the reference data write it: for each token its choices, best first.

use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
use ndarray::ArrayView2;

use crate::fixture::{Case, Report, numbers};

/// One choice of a token; refused ones have no weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) expert: usize,
    pub(crate) weight: Option<f32>,
}

/// Routes, seals, and lists each token's choices by rank.
pub(crate) fn choices(
    router: &dyn Router,
    logits: ArrayView2<'_, f32>,
    context: TokenContext<'_>,
) -> Vec<Vec<Choice>> {
    let mut out = Assignments::new();
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    router.route(&RouteInput::new(logits, context).unwrap(), &mut out).unwrap();
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    let granted = |t| plan.choices(t).map(|c| (c.rank, c.expert, Some(c.weight)));
    let refused = |t| {
        let of_token = plan.refused().iter().filter(move |r| r.token as usize == t);
        of_token.map(|r| (r.rank as usize, r.expert as usize, None))
    };
    let by_rank = |t| {
        let mut all: Vec<_> = granted(t).chain(refused(t)).collect();
        all.sort_by_key(|&(rank, ..)| rank);
        all.into_iter().map(|(_, expert, weight)| Choice { expert, weight }).collect()
    };
    (0..plan.tokens()).map(by_rank).collect()
}

/// Boundaries of groups of equal length.
pub(crate) fn equal_groups(groups: usize, length: usize) -> Vec<usize> {
    (0..=groups).map(|g| g * length).collect()
}

/// A pair of a token and an expert, with its weight.
pub(crate) type Entry = (usize, usize, f32);

/// `outputs.entries`, rows of `[token, expert, weight]`, in order of token and expert.
pub(crate) fn expected_entries(case: Case) -> Vec<Entry> {
    let rows = case.output("entries").as_array().unwrap().iter().map(numbers);
    rows.map(|r| (r[0] as usize, r[1] as usize, r[2])).collect()
}

/// What was granted, in the same order.
pub(crate) fn granted(choices: &[Vec<Choice>]) -> Vec<Entry> {
    let of_token = |(t, list): (usize, &Vec<Choice>)| {
        list.iter().filter_map(move |c| c.weight.map(|w| (t, c.expert, w))).collect::<Vec<_>>()
    };
    let mut entries: Vec<Entry> = choices.iter().enumerate().flat_map(of_token).collect();
    entries.sort_by_key(|&(t, e, _)| (t, e));
    entries
}

/// Compares pairs exactly, and their weights.
pub(crate) fn compare_entries(
    report: &mut Report,
    case: Case,
    expected: &[Entry],
    found: &[Entry],
    bound: f64,
) {
    let pairs = |list: &[Entry]| list.iter().map(|&(t, e, _)| (t, e)).collect::<Vec<_>>();
    let (e, f) = (pairs(expected), pairs(found));
    report.check(e == f, || {
        let missing: Vec<_> = e.iter().filter(|p| !f.contains(p)).collect();
        let extra: Vec<_> = f.iter().filter(|p| !e.contains(p)).collect();
        format!("{}: pairs (token, expert): missing {missing:?}, extra {extra:?}", case.name())
    });
    if e == f {
        expected.iter().zip(found).for_each(|(e, f)| report.weight(case, e.0, e.2, f.2, bound));
    }
    report.cases += 1;
}
