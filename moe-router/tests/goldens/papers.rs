//! Routers and a gate of papers, by their authors' code or by packages that follow the paper.

use moe_core::{Gate, Router, Scratch, TokenContext, TokenRows};
use moe_router::{
    Base, Capacity, Capped, CosineGate, Normalization, RandomSecond, Relu, Renormalized, SkipLight, TopK,
    TopP, WithoutNulls,
};
use ndarray::Array2;

use crate::fixture::{Case, Report, cases, indices, numbers, renormalized_bound, softmax_bound, units};
use crate::given::table;
use crate::routed::{choices, compare_entries, equal_groups, expected_entries, granted};

fn compare(report: &mut Report, case: Case, router: &dyn Router, bound: f64) {
    let found = granted(&choices(router, case.logits().view(), TokenContext::new()));
    compare_entries(report, case, &expected_entries(case), &found, bound);
}

fn number(case: Case, setting: &str) -> f32 {
    case.setting(setting).as_f64().unwrap() as f32
}

fn over_all(k: usize) -> TopK {
    TopK::new(k).unwrap().normalized(Normalization::OverAll)
}

/// The best assignment is that of `scipy`, and no worse than the auction of BASE layers, nor better than that can be by.
#[test]
fn base() {
    let mut report = Report::default();
    for case in cases("fairseq_base") {
        let logits = case.logits();
        // Exp, addition and division, 2.1 units for ours and 2 for the reference's exp.
        compare(&mut report, case, &Base::new(), units(8.1));
        let best: f64 = expected_entries(case).iter().map(|&(t, e, _)| f64::from(logits[[t, e]])).sum();
        let auctioned = indices(case.output("auctioned"));
        let total: f64 = auctioned.iter().enumerate().map(|(t, &e)| f64::from(logits[[t, e]])).sum();
        let most = logits.iter().fold(f32::MIN, |a, &l| a.max(l));
        let least = logits.iter().fold(f32::MAX, |a, &l| a.min(l));
        // A bid is above what a token is worth to its bidder by at most the step of the auction.
        let slack = f64::from(most - least) / 50.0 * logits.nrows() as f64;
        assert!((0.0..=slack).contains(&(best - total)), "{}: {best}, {total}, {slack}", case.name());
    }
    report.finish(12);
}

#[test]
fn top_p() {
    let mut report = Report::default();
    for case in cases("dynamic_moe_top_p") {
        let router = TopP::new(number(case, "p")).unwrap();
        compare(&mut report, case, &router, softmax_bound(case.size("num_experts")));
    }
    report.finish(9);
}

#[test]
fn relu() {
    let mut report = Report::default();
    for case in cases("remoe_relu") {
        // The logits themselves.
        compare(&mut report, case, &Relu::new(), 0.0);
    }
    report.finish(4);
}

#[test]
fn skip_light() {
    let mut report = Report::default();
    for case in cases("naee_skip") {
        let skip = SkipLight::by_ratio(over_all(2), number(case, "ratio")).unwrap();
        let bound = renormalized_bound(case.size("num_experts"), 2);
        compare(&mut report, case, &Renormalized::new(skip), bound);
    }
    report.finish(6);
}

#[test]
fn without_nulls() {
    let mut report = Report::default();
    for case in cases("adamoe_nulls") {
        let k = case.size("top_k");
        let router = Renormalized::new(WithoutNulls::new(over_all(k), case.size("true_experts")));
        compare(&mut report, case, &router, renormalized_bound(case.size("num_experts"), k));
    }
    report.finish(6);
}

/// The draw of a token is given to each of its experts: one of them is its second.
#[test]
fn random_second() {
    let mut report = Report::default();
    for case in cases("gshard_second") {
        let experts = case.size("num_experts");
        let second = RandomSecond::new(Renormalized::new(over_all(2)));
        let second = second.with_threshold(number(case, "threshold")).unwrap();
        let capacity = Capacity::absolute(case.size("expert_capacity"));
        let router = Capped::new(second, capacity).unwrap();
        let draws: Vec<f32> =
            numbers(case.input("draws")).iter().flat_map(|&u| std::iter::repeat_n(u, experts)).collect();
        let groups = equal_groups(case.size("groups"), 24);
        let context = TokenContext::new().with_sequences(&groups);
        let context = context.with_noise(TokenRows::new(&draws, experts).unwrap());
        let found = granted(&choices(&router, case.logits().view(), context));
        // The reference adds 1e-9 to the sum, less than a unit of what is at least 2/E.
        let bound = renormalized_bound(experts, 2) + units(1.0);
        compare_entries(&mut report, case, &expected_entries(case), &found, bound);
    }
    report.finish(8);
}

#[test]
fn cosine_gate() {
    let mut report = Report::default();
    for case in cases("tutel_cosine") {
        let width = case.input("hidden")[0].as_array().unwrap().len();
        let directions = case.input("experts");
        let inner = directions[0].as_array().unwrap().len();
        let (hidden, projection) =
            (table(case.input("hidden"), width), table(case.input("projection"), width));
        let temperature = number(case, "temperature");
        let gate = CosineGate::new(projection.clone(), table(directions, inner), temperature).unwrap();
        let mut found = Array2::zeros((hidden.nrows(), case.size("num_experts")));
        gate.logits(hidden.view(), &TokenContext::new(), &mut Scratch::default(), found.view_mut()).unwrap();
        let expected = numbers(case.output("logits"));
        assert_eq!(expected.len(), found.len());
        for (i, (&e, &f)) in expected.iter().zip(&found).enumerate() {
            let x = hidden.row(i / found.ncols());
            let projected =
                projection.rows().into_iter().map(|p| (p.dot(&x), p.mapv(f32::abs).dot(&x.mapv(f32::abs))));
            let (square, size) = projected.fold((0.0, 0.0), |(a, b), (l, m)| (a + l * l, b + m * m));
            // A projection is off by D units of the sum of its terms' magnitudes, in each implementation; the cosine by that over
            // its length, and by the d terms of its own sum, the two lengths (d/2 and a root and a division each) and the
            // division by τ. A length is 1 and a cosine at most 1, so that all are of 1/τ.
            let (width, inner) = (width as f64, inner as f64);
            let of_projection = width * f64::from((size / square).sqrt());
            let bound = units(2.0 * (2.0 * of_projection + 2.0 * inner + 6.0)) / f64::from(temperature);
            let off = (f64::from(e) - f64::from(f)).abs();
            report.check(off <= bound, || {
                format!("{}: {i}: expected {e}, found {f}: {}", case.name(), off / bound)
            });
            report.weights += 1;
        }
        report.cases += 1;
    }
    report.finish(4);
}
