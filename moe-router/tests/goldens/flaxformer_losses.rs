//! The losses of flaxformer, alone and in its routers.

use moe_core::{Assignments, RouteInput, Routed, Router, RoutingPlan, TokenContext};
use moe_router::backward::Weighting;
use moe_router::losses::LoadBalance;
use moe_router::{Dense, Score};
use ndarray::{Array2, ArrayView2};

use crate::fixture::{Case, cases, numbers};
use crate::given::{Derivatives, UNIT, grads, ids, plan};
use crate::losses::{best_scores, compare_per_sequence, compare_z, mean_bound};
use crate::routed::equal_groups;
use crate::tied;

#[test]
fn flaxformer_losses() {
    let mut all = Derivatives::default();
    for case in cases("flaxformer_losses") {
        let k = case.size("num_selected_experts");
        let given = numbers(case.input("ids")).into_iter().enumerate().filter(|(_, e)| *e >= 0.0);
        let mut pairs: Vec<_> = given.map(|(i, e)| (i / k, e as usize)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        let balance = [case.output("load_balancing_loss"), grads(case, "load_balancing_loss")];
        compare_per_sequence(&mut all, case, balance, case.size("num_groups"), &pairs);
        let z = [case.output("router_z_loss"), grads(case, "router_z_loss")];
        compare_z(&mut all, case, z, &case.logits(), TokenContext::new());
        all.report.cases += 1;
    }
    all.finish(8, 0);
}

/// Cases of the masked router, whose choice is not recorded, with so many near ties that the gradient has to tell it.
const NEARLY_TIED: [&str; 2] =
    ["flax_masked_5_tiny_G1_T15_E16_k3_cap1_bpr0", "flax_masked_17_tiny_G1_T12_E8_k2_cap1_bpr1"];

/// The losses of flaxformer's routers. Expert choice has no balance loss: its auxiliary loss is 0.
#[test]
fn flaxformer_routers() {
    let mut all = Derivatives::default();
    let [mut without_balance, mut nearly_tied, mut with_padding] = [0; 3];
    for group in
        ["flaxformer_tokens_choose_scatter", "flaxformer_tokens_choose_masked", "flaxformer_experts_choose"]
    {
        for case in cases(group) {
            let (logits, groups) = (case.logits(), case.size("num_groups"));
            let tokens = logits.nrows();
            let mask = case.input("non_padding");
            let padding: Vec<bool> = if mask.is_null() {
                vec![false; tokens]
            } else {
                numbers(mask).iter().map(|&m| m == 0.0).collect()
            };
            let offsets = equal_groups(groups, tokens / groups);
            let context = TokenContext::new().with_sequences(&offsets).with_padding(&padding);
            let z = [case.output("router_z_loss"), grads(case, "router_z_loss")];
            compare_z(&mut all, case, z, &logits, context);
            all.report.cases += 1;
            if group.ends_with("experts_choose") {
                assert_eq!(numbers(case.output("auxiliary_loss")), [0.0], "{}", case.name());
                without_balance += 1;
                continue;
            }

            let k = case.size("num_selected_experts");
            let scatter = group.ends_with("scatter");
            let pairs = if scatter {
                ids(case, k)
            } else if NEARLY_TIED.contains(&case.name()) {
                nearly_tied += 1;
                tied::choices(&logits, |_| false, k, &numbers(grads(case, "load_balancing_loss")))
            } else {
                best_scores(&logits, k)
            };
            with_padding += usize::from(padding.contains(&true));
            compare_flaxformer_balance(&mut all, case, &logits, context, pairs, scatter);
        }
    }
    assert_eq!([without_balance, nearly_tied, with_padding], [13, 2, 7 + 7]);
    all.finish(24 + 24 + 13, 0);
}

/// Flaxformer's `E Σ f P` of a group has both divided by all of the group's tokens, padding too. P sums the probabilities of tokens that
/// are not padding. f counts their choices, and in the scatter router, where `padding_chooses`, those of padding as well.
fn compare_flaxformer_balance(
    all: &mut Derivatives,
    case: Case,
    logits: &Array2<f32>,
    context: TokenContext<'_>,
    pairs: Vec<(usize, usize)>,
    padding_chooses: bool,
) {
    let (tokens, experts) = logits.dim();
    let of_pairs = plan(tokens, experts, pairs.into_iter().map(|(t, e)| (t, e, true)));
    let balance =
        |context| LoadBalance::per_sequence(&Routed::new(logits.view(), &of_pairs, context).unwrap());
    let mut without_padding = context;
    without_padding.padding = None;
    let (real, whole) = (balance(context), balance(without_padding));
    let [of_real, of_whole] = [&real, &whole].map(|loss| loss.groups().collect::<Vec<_>>());
    let groups = of_real.len();
    let per_group = tokens / groups;
    let share = |g: usize| of_real[g].tokens as f64 / per_group as f64;
    // f and P over all tokens of the group.
    let f = |g: usize, e: usize| {
        if padding_chooses { of_whole[g].f[e] } else { of_real[g].f[e] * share(g) }
    };
    let p = |g: usize, e: usize| of_real[g].p[e] * share(g);
    let terms = (0..groups).flat_map(|g| (0..experts).map(move |e| (g, e)));
    let value = experts as f64 / groups as f64 * terms.map(|(g, e)| f(g, e) * p(g, e)).sum::<f64>();
    let relative = 2.0 * mean_bound(per_group, experts) + experts as f64 * UNIT;
    all.value(case, case.output("load_balancing_loss"), value, relative * value);

    // ∂L/∂p[t, e] = E f / T, the same for all tokens of a group that are not padding.
    let dense = dense(logits.view());
    let at = dense.row_tokens().iter().zip(dense.row_experts()).map(|(&t, &e)| (t as usize, e as usize));
    let by_probability = |(t, e)| {
        let slope = experts as f64 * f(t / per_group, e) / tokens as f64;
        if context.is_padding(t) { 0.0 } else { slope as f32 }
    };
    let upstream: Vec<f32> = at.map(by_probability).collect();
    let gradient = Weighting::new(Score::Softmax).gradient(logits.view(), &dense, &upstream).unwrap();
    let steepest = experts as f64 / tokens as f64;
    let expected = grads(case, "load_balancing_loss");
    all.compare(case, expected, gradient.view(), |_| 2.0 * relative * steepest);
    // Without padding that is the loss as it comes.
    if padding_chooses && context.padding.is_none_or(|mask| !mask.contains(&true)) {
        all.compare(case, expected, real.gradient().unwrap().view(), |_| 2.0 * relative * steepest);
    }
}

/// A plan of every token and every expert.
fn dense(logits: ArrayView2<'_, f32>) -> RoutingPlan {
    let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    Dense::new().route(&RouteInput::new(logits, TokenContext::new()).unwrap(), &mut out).unwrap();
    plan.seal(&out).unwrap();
    plan
}
