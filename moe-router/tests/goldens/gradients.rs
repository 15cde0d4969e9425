//! The gradient of combination weights: every router of the reference data whose rule [`Weighting`] has.
//!
//! The choice is the reference's, so that ties play no part.

use moe_router::backward::{SparseMixer, Weighting};
use moe_router::{ExpertGroups, Normalization, Normalizer, ScoredTopK, TopK};
use ndarray::Array2;

use crate::fixture::{Case, cases, indices, numbers};
use crate::given::{Derivatives, UNIT, grads, ids, plan, table};

/// Bound of the reference's f32 gradient for a token, over the greatest |upstream · scale| of its choices.
///
/// A derivative by a score times the score is at most 2 |u| (`u wⱼ - wⱼ Σ u w`), and so is that by a logit. Every score is within
/// E + 8 units of exact (softmax: see `softmax_bound`), their sum within k more; the way back adds E terms of that size in
/// a row, and rounds some ten times. Each of the two passes (score to weight, logit to score) carries both.
fn bound(experts: usize, k: usize) -> f64 {
    2.0 * 2.0 * (2.0 * experts as f64 + k as f64 + 20.0) * UNIT
}

/// Chosen pairs with `coeff` as upstream, compared with the gradient named `name`.
pub(crate) struct Check<'a> {
    weighting: Weighting,
    logits: &'a Array2<f32>,
    /// (token, expert, kept)
    pairs: Vec<(usize, usize, bool)>,
    coeff: Array2<f32>,
    /// What the weighting multiplies by; the bound is relative to it.
    scale: f64,
    name: &'static str,
}

impl<'a> Check<'a> {
    /// Of the gradient named `logits`, without a scale.
    pub(crate) fn new(
        weighting: Weighting,
        logits: &'a Array2<f32>,
        pairs: Vec<(usize, usize, bool)>,
        coeff: Array2<f32>,
    ) -> Self {
        Self { weighting, logits, pairs, coeff, scale: 1.0, name: "logits" }
    }

    fn gradient(&self) -> Array2<f64> {
        let (tokens, experts) = self.logits.dim();
        let plan = plan(tokens, experts, self.pairs.iter().copied());
        let at = plan.row_tokens().iter().zip(plan.row_experts());
        let upstream: Vec<f32> = at.map(|(&t, &e)| self.coeff[[t as usize, e as usize]]).collect();
        self.weighting.gradient(self.logits.view(), &plan, &upstream).unwrap()
    }

    pub(crate) fn run(&self, all: &mut Derivatives, case: Case, k: usize) {
        self.compare(all, case, k, self.gradient());
        all.report.cases += 1;
    }

    fn compare(&self, all: &mut Derivatives, case: Case, k: usize, gradient: Array2<f64>) {
        let bound = bound(self.logits.ncols(), k) * self.scale;
        let greatest = |t: usize| {
            let row = self.coeff.row(t);
            bound * row.iter().fold(0.0f64, |m, &c| m.max(f64::from(c).abs()))
        };
        all.compare(case, grads(case, self.name), gradient.view(), greatest);
    }
}

fn chosen(case: Case, k: usize) -> Vec<(usize, usize, bool)> {
    ids(case, k).into_iter().map(|(t, e)| (t, e, true)).collect()
}

/// Runs a group of `transformers` with ids; `rule` gives the weighting and scale of a case.
fn run(group: &str, undefined: usize, comparisons: usize, rule: impl Fn(Case) -> Vec<(Weighting, f64)>) {
    let mut all = Derivatives::default();
    for case in cases(group) {
        let logits = case.logits();
        let k = case.size("top_k");
        for (weighting, scale) in rule(case) {
            let coeff = table(case.input("coeff"), logits.ncols());
            let check = Check { scale, ..Check::new(weighting, &logits, chosen(case, k), coeff) };
            check.run(&mut all, case, k);
        }
    }
    all.finish(comparisons, undefined);
}

/// Softmax over all experts, as it is.
pub(crate) fn over_all() -> Weighting {
    top(1, Normalization::OverAll)
}

fn top(k: usize, normalization: Normalization) -> Weighting {
    TopK::new(k).unwrap().normalized(normalization).weighting()
}

fn of(router: moe_core::Result<ScoredTopK>) -> Weighting {
    router.unwrap().weighting()
}

fn top_k(case: Case) -> usize {
    case.size("top_k")
}

fn norm_topk_prob(case: Case) -> Vec<(Weighting, f64)> {
    let of = |normalization| (top(top_k(case), normalization), 1.0);
    if case.flag("norm_topk_prob") {
        vec![of(Normalization::OverAllRenormalized), of(Normalization::OverChosen)]
    } else {
        vec![of(Normalization::OverAll)]
    }
}

/// The router as it is published, or without its normaliser.
fn unless_normalized(case: Case, router: ScoredTopK) -> ScoredTopK {
    if case.flag("norm_topk_prob") { router } else { router.normalized(Normalizer::None).unwrap() }
}

fn scale(case: Case, name: &str) -> f64 {
    case.setting(name).as_f64().unwrap()
}

fn routed_scale(case: Case) -> f64 {
    scale(case, "routed_scaling_factor")
}

#[test]
fn mixtral() {
    run("mixtral", 0, 24, norm_topk_prob);
}

#[test]
fn olmoe() {
    run("olmoe", 0, 24 + 12, norm_topk_prob);
}

#[test]
fn qwen2_moe() {
    run("qwen2_moe", 0, 16 + 8, norm_topk_prob);
}

#[test]
fn jamba() {
    run("jamba", 0, 6, norm_topk_prob);
}

#[test]
fn granitemoe() {
    run("granitemoe", 0, 10, |case| vec![(top(top_k(case), Normalization::OverChosen), 1.0)]);
}

#[test]
fn dbrx() {
    run("dbrx", 0, 18, |case| {
        let p = case.setting("norm_p").as_f64().map(|p| p as f32);
        vec![(of(ScoredTopK::dbrx(top_k(case), p)), 1.0)]
    });
}

#[test]
fn deepseek_v2() {
    run("deepseek_v2", 0, 10, |case| {
        let scale = routed_scale(case);
        vec![(of(ScoredTopK::deepseek_v2(top_k(case), scale as f32)), scale)]
    });
}

#[test]
fn deepseek_v3() {
    run("deepseek_v3", 0, 20, |case| {
        let scale = routed_scale(case);
        let groups = ExpertGroups::by_two_best(case.size("n_group"), case.size("topk_group")).unwrap();
        let bias = numbers(case.input("e_score_correction_bias"));
        let router = ScoredTopK::deepseek_v3(top_k(case), bias, groups, scale as f32).unwrap();
        vec![(unless_normalized(case, router).weighting(), scale)]
    });
}

#[test]
fn deepseek_v4() {
    run("deepseek_v4", 8, 10, |case| {
        let scale = routed_scale(case);
        let router = match case.setting("scoring_func").as_str().unwrap() {
            "sqrtsoftplus" => ScoredTopK::deepseek_v4(top_k(case), [], scale as f32),
            _ => ScoredTopK::afmoe(top_k(case), [], scale as f32),
        };
        vec![(of(router), scale)]
    });
}

#[test]
fn ernie4_5_moe() {
    run("ernie4_5_moe", 0, 8, |case| {
        vec![(of(ScoredTopK::ernie_4_5(top_k(case), [], scale(case, "norm_min") as f32)), 1.0)]
    });
}

#[test]
fn longcat_flash() {
    run("longcat_flash", 0, 8, |case| {
        let scale = routed_scale(case);
        vec![(of(ScoredTopK::longcat_flash(top_k(case), [], scale as f32)), scale)]
    });
}

#[test]
fn afmoe() {
    run("afmoe", 0, 7, |case| {
        let scale = scale(case, "route_scale");
        vec![(of(ScoredTopK::afmoe(top_k(case), [], scale as f32)), scale)]
    });
}

#[test]
fn minimax_m2() {
    run("minimax_m2", 4, 8, |case| vec![(of(ScoredTopK::minimax_m2(top_k(case), [])), 1.0)]);
}

#[test]
fn lfm2_moe() {
    run("lfm2_moe", 0, 8, |case| {
        let scale = routed_scale(case);
        let router = ScoredTopK::lfm2(top_k(case), scale as f32).unwrap();
        vec![(unless_normalized(case, router).weighting(), scale)]
    });
}

#[test]
fn cohere2_moe() {
    run("cohere2_moe", 0, 15, |case| {
        let softmax = case.setting("expert_selection_fn") == "softmax";
        let weighting = match (softmax, case.flag("norm_topk_prob")) {
            (true, _) => top(top_k(case), Normalization::OverChosen),
            (false, true) => of(ScoredTopK::cohere2(top_k(case))),
            (false, false) => of(ScoredTopK::llama4(top_k(case))),
        };
        vec![(weighting, 1.0)]
    });
}

/// The bias is part of the logits.
#[test]
fn gpt_oss() {
    let mut all = Derivatives::default();
    for case in cases("gpt_oss") {
        let (experts, k) = (case.size("num_experts"), case.size("top_k"));
        let logits = table(case.output("biased_logits"), experts);
        let coeff = table(case.input("coeff"), experts);
        let pairs = chosen(case, k);
        Check::new(top(k, Normalization::OverChosen), &logits, pairs, coeff).run(&mut all, case, k);
    }
    all.finish(10, 0);
}

/// The soft cap of the logits, `c tanh(l / c)`, has the derivative `1 - tanh²(l / c)`.
#[test]
fn laguna() {
    let mut all = Derivatives::default();
    for case in cases("laguna") {
        let (experts, k) = (case.size("num_experts"), case.size("top_k"));
        let capped = table(case.output("capped_logits"), experts);
        let coeff = table(case.input("coeff"), experts);
        let weighting = of(ScoredTopK::laguna(k, []));
        let check = Check::new(weighting, &capped, chosen(case, k), coeff);
        let mut gradient = check.gradient();
        let cap = scale(case, "logit_softcap");
        if cap > 0.0 {
            let slope = |l: f32| 1.0 - (f64::from(l) / cap).tanh().powi(2);
            gradient.zip_mut_with(&case.logits(), |g, &l| *g *= slope(l));
        }
        check.compare(&mut all, case, k, gradient);
        all.report.cases += 1;
    }
    all.finish(6, 0);
}

/// Which experts were chosen is where weights are not zero; a chosen one with weight zero has gradient zero.
#[test]
fn llama4() {
    let mut all = Derivatives::default();
    for case in cases("llama4") {
        let logits = case.logits();
        let dense = table(case.output("dense_weights"), logits.ncols());
        let pairs =
            dense.indexed_iter().filter(|(_, w)| **w != 0.0).map(|((t, e), _)| (t, e, true)).collect();
        let coeff = table(case.input("coeff"), logits.ncols());
        let k = top_k(case);
        Check::new(of(ScoredTopK::llama4(k)), &logits, pairs, coeff).run(&mut all, case, k);
    }
    all.finish(9, 0);
}

/// Pairs and coefficients are listed by expert.
#[test]
fn jetmoe() {
    let mut all = Derivatives::default();
    for case in cases("jetmoe") {
        let (logits, k) = (case.logits(), case.size("top_k"));
        let sizes = indices(case.output("expert_sizes"));
        let experts = sizes.iter().enumerate().flat_map(|(e, &n)| std::iter::repeat_n(e, n));
        let tokens = indices(case.output("sorted_tokens"));
        let mut coeff = Array2::zeros(logits.raw_dim());
        let mut pairs = vec![];
        for ((e, t), c) in experts.zip(tokens).zip(numbers(case.input("coeff_sorted"))) {
            coeff[[t, e]] = c;
            pairs.push((t, e, true));
        }
        Check::new(top(k, Normalization::OverChosen), &logits, pairs, coeff).run(&mut all, case, k);
    }
    all.finish(7, 0);
}

#[test]
fn nllb_top2() {
    let mut all = Derivatives::default();
    for case in cases("nllb_top2") {
        let logits = case.logits();
        let kept = indices(case.output("kept"));
        let pairs = ids(case, 2).into_iter().zip(kept).map(|((t, e), kept)| (t, e, kept == 1)).collect();
        let floor = Normalizer::SumAtLeast { floor: f32::EPSILON };
        let mut weighting = over_all().normalized(floor).unwrap();
        if case.flag("normalize_router_prob_before_dropping") {
            weighting = weighting.over_refused_too();
        }
        let coeff = table(case.input("coeff"), logits.ncols());
        Check::new(weighting, &logits, pairs, coeff).run(&mut all, case, 2);
    }
    all.finish(32, 0);
}

#[test]
fn switch_top1() {
    let mut all = Derivatives::default();
    for case in cases("switch_top1") {
        let logits = case.logits();
        let kept = indices(case.output("kept"));
        let coeff = numbers(case.input("coeff"));
        let coeff = Array2::from_shape_fn(logits.raw_dim(), |(t, _)| coeff[t]);
        for (name, only_kept) in [("sum_coeff_probs", false), ("sum_coeff_kept_probs", true)] {
            let pairs = ids(case, 1).into_iter();
            let pairs = pairs.map(|(t, e)| (t, e, !only_kept || kept[t] == 1)).collect();
            Check { name, ..Check::new(over_all(), &logits, pairs, coeff.clone()) }.run(&mut all, case, 1);
        }
    }
    all.finish(2 * 12, 0);
}

/// SparseMixer at inference: plain derivatives. In training: the reference's own backward.
#[test]
fn phimoe() {
    for (group, count) in [("phimoe_eval", 9), ("phimoe_train", 6)] {
        let mut all = Derivatives::default();
        for case in cases(group) {
            let logits = case.logits();
            let experts = logits.ncols();
            let ids = indices(case.output("ids"));
            let chosen: Vec<[usize; 2]> = ids.chunks(2).map(|c| [c[0], c[1]]).collect();
            let upstream: Vec<[f32; 2]> = if group == "phimoe_train" {
                numbers(case.input("coeff_slots")).chunks(2).map(|c| [c[0], c[1]]).collect()
            } else {
                let coeff = table(case.input("coeff"), experts);
                chosen.iter().enumerate().map(|(t, c)| c.map(|e| coeff[[t, e]])).collect()
            };
            let jitter = scale(case, "jitter_eps") as f32;
            let found = SparseMixer::new(jitter).gradient(logits.view(), &chosen, &upstream).unwrap();
            let greatest = |t: usize| upstream[t].iter().fold(0.0f64, |m, &u| m.max(f64::from(u).abs()));
            all.compare(case, grads(case, "logits"), found.view(), |t| bound(experts, 2) * greatest(t));
            all.report.cases += 1;
        }
        all.finish(count, 0);
    }
}
