//! SparseMixer of Phi-3.5-MoE: choices and weights.

use moe_core::{TokenContext, TokenRows};
use moe_router::SparseMixer;

use crate::fixture::{Case, Report, cases, indices, numbers, softmax_bound};
use crate::routed::choices;

/// Compares both choices of every token by id, and their weights.
fn compare(report: &mut Report, case: Case, router: SparseMixer, noise: Option<TokenRows<'_>>) {
    let logits = case.logits();
    let mut context = TokenContext::new();
    context.noise = noise;
    let found = choices(&router, logits.view(), context);
    let (ids, weights) = (indices(case.output("ids")), numbers(case.output("weights")));
    report.check(ids.len() == 2 * found.len(), || format!("{}: {} choices", case.name(), ids.len()));
    let doubtful = case.doubtful("exact_tie_tokens", "near_tie_tokens", 0);
    for (t, (ids, found)) in ids.chunks(2).zip(&found).enumerate() {
        let mine: Vec<_> = found.iter().map(|c| c.expert).collect();
        report.check(mine == ids || doubtful.contains(&t), || {
            format!("{}: token {t}: expected experts {ids:?}, found {mine:?}", case.name())
        });
        // Which of equal logits was chosen changes no weight.
        for (c, expected) in found.iter().zip(&weights[2 * t..]) {
            report.weight(case, t, *expected, c.weight.unwrap(), softmax_bound(logits.ncols()));
        }
    }
    report.cases += 1;
}

fn epsilon(case: Case) -> f32 {
    case.setting("jitter_eps").as_f64().unwrap() as f32
}

#[test]
fn phimoe_eval() {
    let mut report = Report::default();
    for case in cases("phimoe_eval") {
        compare(&mut report, case, SparseMixer::new(epsilon(case)).unwrap(), None);
    }
    report.finish(9);
}

#[test]
fn phimoe_train() {
    let mut report = Report::default();
    for case in cases("phimoe_train") {
        let experts = case.size("num_experts");
        let draws =
            ["exponential_1", "exponential_2", "uniform_1", "uniform_2"].map(|n| numbers(case.input(n)));
        let mut noise = vec![];
        for t in 0..draws[2].len() {
            noise.extend_from_slice(&draws[0][t * experts..][..experts]);
            noise.extend_from_slice(&draws[1][t * experts..][..experts]);
            noise.extend([draws[2][t], draws[3][t]]);
        }
        let noise = TokenRows::new(&noise, 2 * experts + 2).unwrap();
        let router = SparseMixer::new(epsilon(case)).unwrap().sampling();
        compare(&mut report, case, router, Some(noise));
    }
    report.finish(6);
}
