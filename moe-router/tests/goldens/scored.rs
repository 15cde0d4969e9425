//! Choice by scores: the routers of Hugging Face `transformers` that are not plain top-k.

use moe_core::{Assignments, Gate, LinearGate, RouteInput, Router, Scratch, TokenContext};
use moe_router::{ExpertGroups, Normalizer, Score, ScoredTopK, SoftCapped, TopK};
use ndarray::{Array2, ArrayView1};

use crate::fixture::{Case, Report, cases, indices, numbers, renormalized_bound, softmax_bound, units};

/// Scores closer than this, relatively, are flagged: another correct function may order them otherwise.
const NEAR_TIE: f64 = 1e-6;

/// Bound of the relative distance of two sigmoids or root-softpluses, ours and a reference's, in units of 2⁻²⁴.
///
/// `1 / (1 + exp(-l))`: ours is 2.5 ulp off (5 units), the reference's is taken to be as much. Softplus is off by 1.7 ulp (3.4) and
/// the reference's taken to be by 2 (4); a root halves that and rounds (1).
const ELEMENTWISE: f64 = 10.0;

/// How a case is routed, and by what it is judged where ties leave the choice open.
struct Rule {
    router: Box<dyn Router>,
    /// What is chosen by, in f64.
    choice: Choice,
    k: usize,
    groups: Option<(usize, usize, GroupScore)>,
    /// Of weights, relatively.
    bound: f64,
}

struct Choice {
    score: Score,
    bias: Vec<f32>,
}

type GroupScore = fn(&[f64]) -> f64;

fn best(scores: &[f64]) -> f64 {
    scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

fn two_best(scores: &[f64]) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted.iter().take(2).sum()
}

impl Choice {
    /// By definition, in f64.
    fn of(&self, logits: ArrayView1<'_, f32>) -> Vec<f64> {
        let l: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        let top = best(&l);
        let total: f64 = l.iter().map(|l| (l - top).exp()).sum();
        let score = |l: f64| match self.score {
            Score::Softmax => (l - top).exp() / total,
            Score::Sigmoid => 1.0 / (1.0 + (-l).exp()),
            Score::SqrtSoftplus => (l.max(0.0) + (-l.abs()).exp().ln_1p()).sqrt(),
            _ => l,
        };
        let bias = |e: usize| self.bias.get(e).map_or(0.0, |&b| f64::from(b));
        l.iter().enumerate().map(|(e, &l)| score(l) + bias(e)).collect()
    }
}

impl Rule {
    /// Whether a choice is right, up to ties: the groups it uses are as good as any that could be kept, and nobody who is surely a
    /// candidate is better than the worst of the chosen.
    fn allows(&self, scores: &[f64], chosen: &[usize]) -> bool {
        let slack = |v: f64| v.abs() * NEAR_TIE + NEAR_TIE;
        let (groups, kept, of): (usize, usize, GroupScore) = self.groups.unwrap_or((1, 1, best));
        let size = scores.len() / groups;
        let group_scores: Vec<f64> = scores.chunks(size).map(of).collect();
        let mut sorted = group_scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let threshold = sorted[kept - 1];
        let used: Vec<usize> = chosen.iter().map(|e| e / size).collect();
        let surely = |g: usize| used.contains(&g) || group_scores[g] > threshold + slack(threshold);
        let worst = chosen.iter().map(|&e| scores[e]).fold(f64::INFINITY, f64::min);
        used.iter().all(|&g| group_scores[g] >= threshold - slack(threshold))
            && (0..groups).filter(|&g| surely(g)).count() <= kept
            && (0..scores.len())
                .filter(|e| surely(e / size) && !chosen.contains(e))
                .all(|e| scores[e] <= worst + slack(worst))
    }
}

/// Choices of each token by rank, before sealing: weights may be NaN where the reference's are.
fn push(router: &dyn Router, logits: &Array2<f32>) -> Vec<Vec<(usize, f32)>> {
    let mut out = Assignments::new();
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    router.route(&RouteInput::new(logits.view(), TokenContext::new()).unwrap(), &mut out).unwrap();
    let mut tokens = vec![vec![]; logits.nrows()];
    for pair in out.granted() {
        assert_eq!(pair.rank as usize, tokens[pair.token as usize].len());
        tokens[pair.token as usize].push((pair.expert as usize, pair.weight));
    }
    tokens
}

/// What the reference gave token by token, in no order.
fn expected(case: Case, k: usize) -> Vec<Vec<(usize, f32)>> {
    let dense = case.output("dense_weights");
    if dense.is_null() {
        let pairs = indices(case.output("ids")).into_iter().zip(numbers(case.output("weights")));
        return pairs.collect::<Vec<_>>().chunks(k).map(<[_]>::to_vec).collect();
    }
    let experts = case.size("num_experts");
    let chosen = |row: &[f32]| row.iter().copied().enumerate().filter(|&(_, w)| w != 0.0).collect();
    numbers(dense).chunks(experts).map(chosen).collect()
}

/// Compares the choices of all tokens as sets of (expert, weight), and each choice with its definition.
///
/// Under a tie of what is chosen by, another choice may be as right. Then weights are compared by rank where equal scores mean
/// equal weights; where a bias or a group made the tie they do not, and the token counts as `unlike`.
fn compare(report: &mut Report, unlike: &mut usize, case: Case, rule: &Rule, logits: &Array2<f32>) {
    let expected = expected(case, rule.k);
    let found = push(&*rule.router, logits);
    report.check(expected.len() == found.len(), || format!("{}: {} tokens", case.name(), found.len()));
    let doubtful = case.doubtful("exact_tie_tokens", "near_tie_tokens", 0);
    for (t, (expected, found)) in expected.iter().zip(&found).enumerate() {
        let scores = rule.choice.of(logits.row(t));
        let ids: Vec<usize> = found.iter().map(|c| c.0).collect();
        report.check(ids.len() == rule.k, || format!("{}: token {t}: {ids:?}", case.name()));
        report.check(rule.allows(&scores, &ids), || {
            format!("{}: token {t}: chose {ids:?} of {scores:?}", case.name())
        });
        let by_expert = |list: &[(usize, f32)]| {
            let mut list = list.to_vec();
            list.sort_by_key(|c| c.0);
            list
        };
        let (mut expected, mut found) = (by_expert(expected), by_expert(found));
        if !case.output("dense_weights").is_null() {
            // There, a chosen weight of zero looks like none.
            found.retain(|c| c.1 != 0.0);
        }
        let equal = expected.iter().map(|c| c.0).eq(found.iter().map(|c| c.0));
        let doubtful = doubtful.contains(&t);
        report.check(equal || doubtful, || {
            format!("{}: token {t}: expected {expected:?}, found {found:?}", case.name())
        });
        let mut bound = rule.bound;
        if !equal && rule.choice.bias.is_empty() && rule.groups.is_none() {
            // Equal scores have equal weights, whoever has them.
            expected.sort_by(|a, b| b.1.total_cmp(&a.1));
            found.sort_by(|a, b| b.1.total_cmp(&a.1));
            bound += 2.0 * NEAR_TIE;
        } else if !equal {
            *unlike += 1;
            continue;
        }
        for (e, f) in expected.iter().zip(&found) {
            if e.1.is_nan() && f.1.is_nan() {
                report.weights += 1;
            } else {
                report.weight(case, t, e.1, f.1, bound);
            }
        }
    }
    report.cases += 1;
}

/// Runs a group of `count` cases, with `unlike` tokens whose weights are not comparable.
fn run(group: &str, count: usize, unlike: usize, rule: impl Fn(Case) -> Rule) {
    run_on(group, count, unlike, |case| (rule(case), case.logits()));
}

/// The same, with logits that are not those of the case.
fn run_on(group: &str, count: usize, unlike: usize, rule: impl Fn(Case) -> (Rule, Array2<f32>)) {
    let (mut report, mut found) = (Report::default(), 0);
    for case in cases(group) {
        let (rule, logits) = rule(case);
        compare(&mut report, &mut found, case, &rule, &logits);
    }
    report.finish(count);
    assert_eq!(found, unlike, "{group}: tokens not compared");
}

fn bias(case: Case) -> Vec<f32> {
    let name = if case.input("expert_bias").is_null() { "e_score_correction_bias" } else { "expert_bias" };
    numbers(case.input(name))
}

fn scale(case: Case, name: &str) -> f32 {
    case.setting(name).as_f64().unwrap() as f32
}

/// Weights that are a score, scaled, or divided by the sum of k of them: each term's distance once more in the sum, a unit for
/// each addition on either side, the epsilon's included, and two for division and scale on either side.
fn bound(score: f64, k: usize, divided: bool) -> f64 {
    if divided { units(2.0 * score + 2.0 * (k as f64 + 1.0) + 4.0) } else { units(score + 2.0) }
}

fn sigmoid_rule(router: ScoredTopK, divided: bool) -> Rule {
    let (k, bias) = (router.k(), router.bias().to_vec());
    Rule {
        router: Box::new(router),
        choice: Choice { score: Score::Sigmoid, bias },
        k,
        groups: None,
        bound: bound(ELEMENTWISE, k, divided),
    }
}

#[test]
fn deepseek_v3() {
    run("deepseek_v3", 20, 3, |case| {
        let (groups, kept) = (case.size("n_group"), case.size("topk_group"));
        let divided = case.flag("norm_topk_prob");
        let router = ScoredTopK::deepseek_v3(
            case.size("top_k"),
            bias(case),
            ExpertGroups::by_two_best(groups, kept).unwrap(),
            scale(case, "routed_scaling_factor"),
        );
        let router = router.unwrap();
        let router = if divided { router } else { router.normalized(Normalizer::None).unwrap() };
        Rule { groups: Some((groups, kept, two_best)), ..sigmoid_rule(router, divided) }
    });
}

#[test]
fn deepseek_v2() {
    run("deepseek_v2", 10, 10, |case| {
        let (k, groups, kept) = (case.size("top_k"), case.size("n_group"), case.size("topk_group"));
        let router = ScoredTopK::deepseek_v2(k, scale(case, "routed_scaling_factor")).unwrap();
        let limited = case.setting("topk_method") == "group_limited_greedy";
        let router =
            if limited { router.within(ExpertGroups::by_best(groups, kept).unwrap()) } else { router };
        Rule {
            router: Box::new(router),
            choice: Choice { score: Score::Softmax, bias: vec![] },
            k,
            groups: limited.then_some((groups, kept, best as GroupScore)),
            bound: softmax_bound(case.size("num_experts")) + units(2.0),
        }
    });
}

#[test]
fn deepseek_v4() {
    run("deepseek_v4", 10, 11, |case| {
        let (k, scale) = (case.size("top_k"), scale(case, "routed_scaling_factor"));
        if case.setting("scoring_func") == "sigmoid" {
            return sigmoid_rule(ScoredTopK::afmoe(k, bias(case), scale).unwrap(), true);
        }
        let rule = sigmoid_rule(ScoredTopK::deepseek_v4(k, bias(case), scale).unwrap(), true);
        Rule { choice: Choice { score: Score::SqrtSoftplus, ..rule.choice }, ..rule }
    });
}

#[test]
fn afmoe() {
    run("afmoe", 7, 7, |case| {
        let router = ScoredTopK::afmoe(case.size("top_k"), bias(case), scale(case, "route_scale"));
        sigmoid_rule(router.unwrap(), true)
    });
}

#[test]
fn minimax_m2() {
    run("minimax_m2", 8, 8, |case| {
        sigmoid_rule(ScoredTopK::minimax_m2(case.size("top_k"), bias(case)).unwrap(), true)
    });
}

#[test]
fn lfm2_moe() {
    run("lfm2_moe", 8, 0, |case| {
        let divided = case.flag("norm_topk_prob");
        let router = ScoredTopK::lfm2(case.size("top_k"), scale(case, "routed_scaling_factor")).unwrap();
        let router = if divided { router } else { router.normalized(Normalizer::None).unwrap() };
        let router =
            if case.flag("use_expert_bias") { router.with_bias(bias(case)).unwrap() } else { router };
        sigmoid_rule(router, divided)
    });
}

fn softmax_rule(case: Case, router: ScoredTopK, divided: bool) -> Rule {
    let (k, bias, experts) = (router.k(), router.bias().to_vec(), case.size("num_experts"));
    Rule {
        router: Box::new(router),
        choice: Choice { score: Score::Softmax, bias },
        k,
        groups: None,
        bound: if divided { renormalized_bound(experts, k) } else { softmax_bound(experts) } + units(2.0),
    }
}

#[test]
fn ernie4_5_moe() {
    run("ernie4_5_moe", 8, 0, |case| {
        let router = ScoredTopK::ernie_4_5(case.size("top_k"), bias(case), scale(case, "norm_min"));
        softmax_rule(case, router.unwrap(), true)
    });
}

#[test]
fn longcat_flash() {
    run("longcat_flash", 8, 3, |case| {
        let scale = scale(case, "routed_scaling_factor");
        let router = ScoredTopK::longcat_flash(case.size("top_k"), bias(case), scale);
        softmax_rule(case, router.unwrap(), false)
    });
}

/// A norm of p = 2 squares and adds where a sum adds; the square root halves what comes of it.
#[test]
fn dbrx() {
    run("dbrx", 18, 0, |case| {
        let p = case.setting("norm_p").as_f64().map(|p| p as f32);
        let rule = softmax_rule(case, ScoredTopK::dbrx(case.size("top_k"), p).unwrap(), p.is_some());
        Rule { choice: Choice { score: Score::Softmax, bias: vec![] }, ..rule }
    });
}

fn logit_rule(router: Box<dyn Router>, k: usize, bound: f64) -> Rule {
    let choice = Choice { score: Score::Logit, bias: vec![] };
    Rule { router, choice, k, groups: None, bound }
}

#[test]
fn llama4() {
    run("llama4", 9, 0, |case| {
        let k = case.size("top_k");
        logit_rule(Box::new(ScoredTopK::llama4(k).unwrap()), k, bound(ELEMENTWISE, k, false))
    });
}

#[test]
fn cohere2_moe() {
    run("cohere2_moe", 15, 0, |case| {
        let (k, divided) = (case.size("top_k"), case.flag("norm_topk_prob"));
        if case.setting("expert_selection_fn") == "softmax" {
            return logit_rule(Box::new(TopK::new(k).unwrap()), k, renormalized_bound(k, k));
        }
        let router = if divided { ScoredTopK::cohere2(k) } else { ScoredTopK::llama4(k) };
        logit_rule(Box::new(router.unwrap()), k, bound(ELEMENTWISE, k, divided))
    });
}

/// The logits of a gate whose input are the logits of the case.
fn gated(gate: &dyn Gate, case: Case) -> Array2<f32> {
    let input = case.logits();
    let mut logits = Array2::zeros(input.dim());
    gate.logits(input.view(), &TokenContext::new(), &mut Scratch::default(), logits.view_mut()).unwrap();
    logits
}

#[test]
fn gpt_oss() {
    run_on("gpt_oss", 10, 0, |case| {
        let k = case.size("top_k");
        let gate = LinearGate::new(Array2::eye(case.size("num_experts")));
        let logits = gated(&gate.with_bias(numbers(case.input("bias"))).unwrap(), case);
        assert_eq!(logits.iter().copied().collect::<Vec<_>>(), numbers(case.output("biased_logits")));
        (logit_rule(Box::new(TopK::new(k).unwrap()), k, renormalized_bound(k, k)), logits)
    });
}

/// Bound of the relative distance of two soft-capped logits: tanh is 1.5 ulp off (3 units), the reference's is taken to be 2 (4);
/// the quotient (1) and the product (1) round on either side, and tanh passes on no more of the former than it gets.
const SOFT_CAP: f64 = 3.0 + 4.0 + 4.0;

#[test]
fn laguna() {
    run_on("laguna", 6, 0, |case| {
        let cap = scale(case, "logit_softcap");
        let gate = LinearGate::new(Array2::eye(case.size("num_experts")));
        let logits =
            if cap > 0.0 { gated(&SoftCapped::new(gate, cap).unwrap(), case) } else { gated(&gate, case) };
        for (&found, expected) in logits.iter().zip(numbers(case.output("capped_logits"))) {
            let (found, expected) = (f64::from(found), f64::from(expected));
            let off = (found - expected).abs() / expected.abs();
            assert!(found == expected || off <= units(SOFT_CAP), "{}: {expected} {found}", case.name());
        }
        // Sigmoid multiplies a relative distance by |l| at most, which the cap bounds.
        let score = ELEMENTWISE + f64::from(cap) * SOFT_CAP;
        let rule = sigmoid_rule(ScoredTopK::laguna(case.size("top_k"), bias(case)).unwrap(), true);
        (Rule { bound: bound(score, rule.k, true), ..rule }, logits)
    });
}
