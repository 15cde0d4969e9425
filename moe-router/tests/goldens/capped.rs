//! Token choice with capacity: Switch and NLLB of `transformers`, flaxformer, V-MoE.

use std::collections::BTreeSet;

use moe_core::{Assignments, Result, RouteInput, Router, TokenContext, TokenRows, numerics};
use moe_router::{Capacity, Capped, Normalization, Perturbed, Renormalized, Rounding, TopK};
use ndarray::Array2;
use serde_json::Value;

use crate::fixture::{Case, Report, cases, indices, numbers, renormalized_bound, softmax_bound};
use crate::routed::{Choice, choices, equal_groups};

/// The k best by softmax over all, as all of these references weigh them.
fn top(k: usize) -> TopK {
    TopK::new(k).unwrap().normalized(Normalization::OverAll)
}

/// [`top`] as a reference on XLA computes it: chosen by the f32 softmax values, subnormal ones flushed to zero, ties to the
/// lower expert. It sees ties where the logits differ but their softmax values do not, mostly zeros.
struct OnScores(usize);

impl Router for OnScores {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        for (token, logits) in input.logits.rows().into_iter().enumerate() {
            let mut scores = logits.to_vec();
            numerics::softmax(&mut scores);
            scores.iter_mut().filter(|s| s.is_subnormal()).for_each(|s| *s = 0.0);
            let mut experts: Vec<usize> = (0..scores.len()).collect();
            experts.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            experts[..self.0].iter().for_each(|&e| out.assign(token, e, scores[e]));
        }
        Ok(())
    }
}

/// Rank by rank, by position or by score.
fn capped<R: Router>(inner: R, capacity: Capacity, by_score: bool) -> Capped<R> {
    let capped = Capped::new(inner, capacity).unwrap();
    if by_score { capped.by_score() } else { capped }
}

/// A kept pair: token, expert, weight.
type Kept = (usize, usize, f32);

fn kept(choices: &[Vec<Choice>]) -> Vec<Kept> {
    let of_token = |(t, list): (usize, &Vec<Choice>)| {
        list.iter().filter_map(move |c| c.weight.map(|w| (t, c.expert, w))).collect::<Vec<_>>()
    };
    let mut kept: Vec<Kept> = choices.iter().enumerate().flat_map(of_token).collect();
    kept.sort_by_key(|&(t, e, _)| (t, e));
    kept
}

/// Compares the kept pairs exactly, and their weights.
fn compare_kept(report: &mut Report, case: Case, mut expected: Vec<Kept>, found: &[Vec<Choice>], bound: f64) {
    expected.sort_by_key(|&(t, e, _)| (t, e));
    let found = kept(found);
    let pairs = |list: &[Kept]| list.iter().map(|&(t, e, _)| (t, e)).collect::<Vec<_>>();
    let (e, f) = (pairs(&expected), pairs(&found));
    report.check(e == f, || {
        let missing: Vec<_> = e.iter().filter(|p| !f.contains(p)).collect();
        let extra: Vec<_> = f.iter().filter(|p| !e.contains(p)).collect();
        format!("{}: kept pairs (token, expert): missing {missing:?}, extra {extra:?}", case.name())
    });
    for (e, f) in expected.iter().zip(&found).filter(|(e, f)| (e.0, e.1) == (f.0, f.1)) {
        report.weight(case, e.0, e.2, f.2, bound);
    }
    report.cases += 1;
}

/// Compares the choices of all tokens, dropped ones included; `false` if some differ that the reference leaves in doubt.
fn compare_ids(report: &mut Report, case: Case, k: usize, inner: usize, found: &[Vec<Choice>]) -> bool {
    let doubtful = case.doubtful("exact_tie_tokens", "near_tie_tokens", inner);
    let mut same = true;
    for (t, (expected, found)) in indices(case.output("ids")).chunks(k).zip(found).enumerate() {
        let found: Vec<_> = found.iter().map(|c| c.expert).collect();
        same &= found == expected;
        report.check(found == expected || doubtful.contains(&t), || {
            format!("{}: token {t}: expected experts {expected:?}, found {found:?}", case.name())
        });
    }
    same
}

/// `ids`, `kept` and a list of weights, all `[T, k]`, as kept pairs.
fn by_choice(case: Case, k: usize, weights: &Value) -> Vec<Kept> {
    let kept = indices(case.output("kept"));
    let all = indices(case.output("ids")).into_iter().zip(numbers(weights)).enumerate();
    all.filter(|&(i, _)| kept[i] == 1).map(|(i, (e, w))| (i / k, e, w)).collect()
}

/// `[group, token, expert, place, weight]` as kept pairs.
fn by_entry(case: Case, tokens_per_group: usize) -> Vec<Kept> {
    let rows = case.output("entries").as_array().unwrap().iter().map(numbers);
    rows.map(|r| (r[0] as usize * tokens_per_group + r[1] as usize, r[2] as usize, r[4])).collect()
}

#[test]
fn switch_top1() {
    let mut report = Report::default();
    for case in cases("switch_top1") {
        let (batch, seq, experts) = (case.size("batch"), case.size("seq"), case.size("num_experts"));
        let router = capped(top(1), Capacity::absolute(case.size("expert_capacity")), false);
        let offsets = equal_groups(batch, seq);
        let context = TokenContext::new().with_sequences(&offsets);
        let found = choices(&router, case.logits().view(), context);
        assert!(compare_ids(&mut report, case, 1, seq, &found), "argmax takes the first maximum");
        let expected = by_choice(case, 1, case.output("probs"));
        compare_kept(&mut report, case, expected, &found, softmax_bound(experts));
        // For a single choice the two turns are one.
        let causal = choices(&router.token_by_token(), case.logits().view(), context);
        assert_eq!(causal, found);
    }
    report.finish(12);
}

/// How a JAX reference numbers its choices.
struct Jax<'a> {
    case: Case,
    k: usize,
    capacity: Capacity,
    by_score: bool,
    padding: Option<&'a [bool]>,
}

impl Jax<'_> {
    fn route<R: Router>(&self, inner: R) -> Vec<Vec<Choice>> {
        let offsets = equal_groups(self.case.size("num_groups"), self.case.size("tokens_per_group"));
        let mut context = TokenContext::new().with_sequences(&offsets);
        context.padding = self.padding;
        choices(&capped(inner, self.capacity, self.by_score), self.case.logits().view(), context)
    }

    /// The routing by [`top`]; where that keeps other pairs than expected and the case has ties, by [`OnScores`]. Names the
    /// case in `on_scores` then.
    fn route_like(&self, expected: &[Kept], on_scores: &mut Vec<&'static str>) -> Vec<Vec<Choice>> {
        let found = self.route(top(self.k));
        let pairs = |list: &[Kept]| list.iter().map(|&(t, e, _)| (t, e)).collect::<BTreeSet<_>>();
        let inner = self.case.size("tokens_per_group");
        let ties = !self.case.doubtful("exact_tie_tokens", "near_tie_tokens", inner).is_empty();
        if ties && pairs(expected) != pairs(&kept(&found)) {
            on_scores.push(self.case.name());
            return self.route(OnScores(self.k));
        }
        found
    }
}

#[test]
fn flaxformer_tokens_choose_scatter() {
    let mut report = Report::default();
    let mut on_scores = vec![];
    for case in cases("flaxformer_tokens_choose_scatter") {
        let k = case.size("num_selected_experts");
        let jax = Jax {
            case,
            k,
            capacity: Capacity::absolute(case.size("expert_capacity")),
            by_score: case.flag("batch_prioritized_routing"),
            // This form lets padding take places, so the router is told of none.
            padding: None,
        };
        let mut expected = by_choice(case, k, case.output("weights"));
        let found = jax.route_like(&expected, &mut on_scores);
        compare_ids(&mut report, case, k, case.size("tokens_per_group"), &found);
        if !case.input("non_padding").is_null() {
            // Here padding weighs nothing.
            let present = indices(case.input("non_padding"));
            expected.iter_mut().filter(|(t, ..)| present[*t] == 0).for_each(|(t, e, w)| {
                assert_eq!(*w, 0.0);
                *w = found[*t].iter().find(|c| c.expert == *e).and_then(|c| c.weight).unwrap_or(f32::NAN);
            });
        }
        compare_kept(&mut report, case, expected, &found, softmax_bound(case.size("num_experts")));
    }
    assert_eq!(on_scores, ["flax_scatter_15_extreme_G3_T6_E12_k3_cap6_bpr1"]);
    report.finish(24);
}

/// Logits one ulp apart, whose softmax values are equal or not as an implementation's exp rounds: the choices of the tokens
/// flagged for it are left out.
const UNDECIDED: &str = "flax_masked_17_tiny_G1_T12_E8_k2_cap1_bpr1";

#[test]
fn flaxformer_tokens_choose_masked() {
    let mut report = Report::default();
    let mut on_scores = vec![];
    for case in cases("flaxformer_tokens_choose_masked") {
        let padding = padding_mask(case, "non_padding", 0);
        let jax = Jax {
            case,
            k: case.size("num_selected_experts"),
            capacity: Capacity::absolute(case.size("expert_capacity")),
            by_score: case.flag("batch_prioritized_routing"),
            padding: padding.as_deref(),
        };
        let mut expected = by_entry(case, case.size("tokens_per_group"));
        let mut found = jax.route_like(&expected, &mut on_scores);
        if case.name() == UNDECIDED {
            let near = case.doubtful("near_tie_tokens", "near_tie_tokens", 0);
            expected.retain(|(t, ..)| !near.contains(t));
            near.into_iter().for_each(|t| found[t].clear());
        }
        compare_kept(&mut report, case, expected, &found, softmax_bound(case.size("num_experts")));
    }
    assert_eq!(on_scores, ["flax_masked_3_extreme_G2_T14_E8_k4_cap14_bpr0", UNDECIDED]);
    report.finish(24);
}

/// The mask of an input where `padding` marks padding; `None` where the case has none.
fn padding_mask(case: Case, input: &str, padding: usize) -> Option<Vec<bool>> {
    let mask = case.input(input);
    (!mask.is_null()).then(|| indices(mask).iter().map(|&m| m == padding).collect())
}

/// V-MoE's capacity: given, or of the choices, up to a multiple that is 4 unless stated and may be none.
fn vmoe_capacity(dispatcher: &Value) -> Capacity {
    if let Some(n) = dispatcher.get("capacity") {
        return Capacity::absolute(n.as_u64().unwrap() as usize);
    }
    let rounding = match dispatcher.get("capacity_ceil_or_round").map(|v| v.as_str().unwrap()) {
        None | Some("ceil") => Rounding::Up,
        Some("round") => Rounding::HalfEven,
        Some(other) => panic!("{other}"),
    };
    let multiple = match dispatcher.get("capacity_multiple_of") {
        None => 4,
        Some(v) => v.as_u64().unwrap_or(1),
    };
    Capacity::factor_of_choices(dispatcher["capacity_factor"].as_f64().unwrap())
        .rounded(rounding)
        .multiple_of(multiple as usize)
}

#[test]
fn vmoe_top_experts_per_item() {
    let mut report = Report::default();
    let mut on_scores = vec![];
    let mut noisy = 0;
    for case in cases("vmoe_top_experts_per_item") {
        let (tokens, experts) = (case.size("tokens_per_group"), case.size("num_experts"));
        let (k, dispatcher) = (case.size("num_selected_experts"), case.setting("dispatcher"));
        let capacity = vmoe_capacity(dispatcher);
        let places = capacity.places(tokens, tokens * k, experts).unwrap();
        let expected = case.output("capacity").as_u64().unwrap() as usize;
        report.check(places == expected, || format!("{}: capacity {expected}, found {places}", case.name()));

        let by_score = dispatcher["batch_priority"].as_bool().unwrap();
        let jax = Jax { case, k, capacity, by_score, padding: None };
        let by_entry = dispatcher["name"] == "einsum";
        let expected =
            if by_entry { self::by_entry(case, tokens) } else { by_choice(case, k, case.output("weights")) };
        let found = jax.route_like(&expected, &mut on_scores);
        if !case.input("standard_normal").is_null() {
            // The same where the router adds the noise.
            let noise = numbers(case.input("standard_normal"));
            let std = case.setting("noise_std").as_f64().unwrap() as f32 / experts as f32;
            let raw = numbers(case.input("logits"));
            let raw = Array2::from_shape_vec((raw.len() / experts, experts), raw).unwrap();
            let offsets = equal_groups(case.size("num_groups"), tokens);
            let context = TokenContext::new().with_sequences(&offsets);
            let context = context.with_noise(TokenRows::new(&noise, experts).unwrap());
            let inside = capped(Perturbed::gaussian(top(k), std).unwrap(), capacity, by_score);
            let inside = choices(&inside, raw.view(), context);
            report.check(inside == found, || format!("{}: noise added by the router", case.name()));
            let around = Perturbed::gaussian(capped(top(k), capacity, by_score), std).unwrap();
            let around = choices(&around, raw.view(), context);
            report.check(around == found, || format!("{}: noise added around the cap", case.name()));
            noisy += 1;
        }
        if !by_entry {
            compare_ids(&mut report, case, k, tokens, &found);
        }
        compare_kept(&mut report, case, expected, &found, softmax_bound(experts));
    }
    assert_eq!(noisy, 12);
    assert_eq!(on_scores, ["vmoe_einsum_14_extreme_G3_T16_E4_k3_cap12_bp1"]);
    report.finish(44);
}

#[test]
fn vmoe_compute_capacity() {
    let rows = cases("vmoe_compute_capacity")[0].0["rows"].as_array().unwrap();
    let mut compared = 0;
    for row in rows {
        let size = |name: &str| row[name].as_u64().unwrap() as usize;
        let rounding = if row["ceil_or_round"] == "ceil" { Rounding::Up } else { Rounding::HalfEven };
        let capacity = Capacity::factor_of_choices(row["capacity_factor"].as_f64().unwrap())
            .rounded(rounding)
            .multiple_of(row["multiple_of"].as_u64().unwrap_or(1) as usize);
        let places = capacity.places(0, size("num_tokens"), size("num_experts"));
        assert_eq!(places.ok().map(|n| n as u64), row["capacity"].as_u64(), "{row}");
        compared += 1;
    }
    assert_eq!(compared, 60);
}

#[test]
fn nllb_top2() {
    let mut report = Report::default();
    for case in cases("nllb_top2") {
        let experts = case.size("num_experts");
        let logits = case.logits();
        let capacity = Capacity::absolute(case.output("capacity").as_u64().unwrap() as usize);
        let by_score = case.flag("batch_prioritized_routing");
        let router: Box<dyn Router> = if case.flag("normalize_router_prob_before_dropping") {
            Box::new(capped(Renormalized::new(top(2)), capacity, by_score))
        } else {
            Box::new(Renormalized::new(capped(top(2), capacity, by_score)))
        };
        let padding = padding_mask(case, "padding_mask", 1);
        let mut context = TokenContext::new();
        context.padding = padding.as_deref();
        let found = choices(&*router, logits.view(), context);
        let dense = numbers(case.output("dense_weights"));
        let ids = indices(case.output("ids"));
        let kept = indices(case.output("kept"));
        let pairs = ids.iter().enumerate().filter(|&(i, _)| kept[i] == 1);
        let expected = pairs.map(|(i, &e)| (i / 2, e, dense[i / 2 * experts + e])).collect();
        compare_kept(&mut report, case, expected, &found, renormalized_bound(experts, 2));
    }
    report.finish(32);
}
