//! Auxiliary losses and their gradients: `transformers`, flaxformer, V-MoE.
//!
//! Bounds are those of f32 rounding in the references, in units of 2⁻²⁴: a probability is within 2E + 20 units of exact
//! (`softmax_bound`), a mean over n tokens within n more.

use moe_core::{RouteInput, Routed, RoutingPlan, TokenContext, numerics};
use moe_router::losses::{Importance, Load, LoadBalance, ZLoss};
use ndarray::{Array2, ArrayView2};
use serde_json::Value;

use crate::fixture::{Case, cases, indices, numbers};
use crate::given::{Derivatives, UNIT, grads, ids, plan, table};
use crate::routed::equal_groups;
use crate::tied;

/// Relative distance of a mean probability.
pub(crate) fn mean_bound(tokens: usize, experts: usize) -> f64 {
    (2 * experts + tokens + 20) as f64 * UNIT
}

/// The value of a load-balancing loss is a sum of E positive terms. Its derivative `p[j] (c[j] - Σ c p)`, `c = E f / n`, is off by that of
/// c and of p and by a sum of E terms no greater than c.
fn compare_balance(all: &mut Derivatives, case: Case, expected: [&Value; 2], loss: &LoadBalance<'_>) {
    let groups: Vec<_> = loss.groups().collect();
    let experts = groups[0].f.len();
    let tokens = groups.iter().map(|g| g.tokens).max().unwrap();
    let relative = 2.0 * mean_bound(tokens, experts) + experts as f64 * UNIT;
    all.value(case, expected[0], loss.value(), relative * loss.value());
    let c = |g: &moe_router::losses::Balance| g.f.iter().copied().fold(0.0, f64::max) / g.tokens as f64;
    let steepest = experts as f64 * groups.iter().map(c).fold(0.0, f64::max) / groups.len() as f64;
    let rows: Vec<f64> =
        loss.gradients().unwrap().into_iter().flat_map(|g| g.into_raw_vec_and_offset().0).collect();
    let found = ArrayView2::from_shape((rows.len() / experts, experts), &rows).unwrap();
    all.compare(case, expected[1], found, |_| 2.0 * relative * steepest);
}

/// Rows of all layers together, with an attention mask.
fn over_layers(group: &str, count: usize, of_which_tied: usize) {
    let (mut all, mut tied) = (Derivatives::default(), 0);
    for case in cases(group) {
        let (layers, experts, k) = (case.size("num_layers"), case.size("num_experts"), case.size("top_k"));
        let logits = table(case.input("logits_per_layer"), experts);
        let tokens = logits.nrows() / layers;
        let mask = case.input("attention_mask");
        let padding: Option<Vec<bool>> =
            (!mask.is_null()).then(|| numbers(mask).iter().map(|&m| m == 0.0).collect());
        // Where the choice is not recorded it is made anew; what ties leave in doubt, the gradient tells.
        let ids: Vec<usize> = match case.0["outputs"].get("ids_per_layer") {
            Some(ids) => indices(ids),
            None if has_ties(case) => {
                tied += 1;
                let is_padding = |row: usize| padding.as_ref().is_some_and(|p| p[row % tokens]);
                let gradient = numbers(grads(case, "logits_per_layer"));
                tied::choices(&logits, is_padding, k, &gradient).into_iter().map(|(_, e)| e).collect()
            }
            None => best_scores(&logits, k).into_iter().map(|(_, e)| e).collect(),
        };
        let mut context = TokenContext::new();
        context.padding = padding.as_deref();
        let of_layer =
            |ids: &[usize]| plan(tokens, experts, ids.iter().enumerate().map(|(i, &e)| (i / k, e, true)));
        let plans: Vec<RoutingPlan> = ids.chunks(tokens * k).map(of_layer).collect();
        let chunks = logits.axis_chunks_iter(ndarray::Axis(0), tokens);
        let routed: Vec<Routed<'_>> =
            chunks.zip(&plans).map(|(l, plan)| Routed::new(l, plan, context).unwrap()).collect();
        let loss = LoadBalance::over_all(&routed);
        compare_balance(&mut all, case, [case.output("loss"), grads(case, "logits_per_layer")], &loss);
        all.report.cases += 1;
    }
    assert_eq!(tied, of_which_tied, "cases whose choice is known by its gradient");
    all.finish(count, 0);
}

fn has_ties(case: Case) -> bool {
    let flags = ["exact_tie_tokens_per_layer", "near_tie_tokens_per_layer"];
    flags.into_iter().any(|name| !numbers(&case.0[name]).is_empty())
}

#[test]
fn load_balancing_loss_mixtral() {
    over_layers("load_balancing_loss_mixtral", 24, 0);
}

#[test]
fn load_balancing_loss_nllb() {
    over_layers("load_balancing_loss_nllb", 8, 2);
}

/// The distance of a z-loss from exact: `z = max + ln Σ` is off by its two parts' rounding, z² by twice that.
pub(crate) fn compare_z(
    all: &mut Derivatives,
    case: Case,
    expected: [&Value; 2],
    logits: &Array2<f32>,
    context: TokenContext<'_>,
) {
    let (tokens, experts) = logits.dim();
    let loss = ZLoss::of(&RouteInput::new(logits.view(), context).unwrap());
    let size = |t: usize| {
        let greatest = logits.row(t).iter().fold(0.0f64, |m, &l| m.max(f64::from(l).abs()));
        greatest + (experts as f64).ln() + 1.0
    };
    let greatest = (0..tokens).map(size).fold(0.0, f64::max);
    // Flaxformer keeps padding as rows of zeros.
    let n = (0..tokens).filter(|&t| !context.is_padding(t)).count() as f64;
    let all_tokens = tokens as f64;
    let of_zeros = (all_tokens - n) * (experts as f64).ln().powi(2);
    let value = (n * loss.value() + of_zeros) / all_tokens;
    let relative = 2.0 * (experts + 10) as f64 * UNIT;
    all.value(case, expected[0], value, (relative + all_tokens * UNIT) * greatest.powi(2));
    let gradient = loss.gradient().unwrap() * (n / all_tokens);
    // The reference's probabilities are exp(l - z), with z rounded to f32.
    let of_row = |t: usize| 2.0 * size(t) / all_tokens * (2.0 * relative + 2.0 * size(t) * UNIT);
    all.compare(case, expected[1], gradient.view(), of_row);
}

#[test]
fn router_z_loss_switch() {
    let mut all = Derivatives::default();
    for case in cases("router_z_loss_switch") {
        let expected = [case.output("loss"), grads(case, "logits")];
        compare_z(&mut all, case, expected, &case.logits(), TokenContext::new());
        all.report.cases += 1;
    }
    all.finish(8, 0);
}

/// Sequences of equal length, choices as given; a repeated one counts once and -1 not at all.
pub(crate) fn compare_per_sequence(
    all: &mut Derivatives,
    case: Case,
    expected: [&Value; 2],
    groups: usize,
    pairs: &[(usize, usize)],
) {
    let logits = case.logits();
    let (tokens, experts) = logits.dim();
    let offsets = equal_groups(groups, tokens / groups);
    let plan = plan(tokens, experts, pairs.iter().map(|&(t, e)| (t, e, true)));
    let context = TokenContext::new().with_sequences(&offsets);
    let routed = Routed::new(logits.view(), &plan, context).unwrap();
    compare_balance(all, case, expected, &LoadBalance::per_sequence(&routed));
}

#[test]
fn load_balancing_loss_switch() {
    let mut all = Derivatives::default();
    for case in cases("load_balancing_loss_switch") {
        let k = case.size("top_k");
        let given = indices(case.input("ids")).into_iter().enumerate().map(|(i, e)| (i / k, e));
        let expected = [case.output("loss"), grads(case, "logits")];
        compare_per_sequence(&mut all, case, expected, case.size("batch"), &given.collect::<Vec<_>>());
        all.report.cases += 1;
    }
    all.finish(8, 0);
}

#[test]
fn switch_top1() {
    let mut all = Derivatives::default();
    for case in cases("switch_top1") {
        let balance = [case.output("load_balancing_loss"), grads(case, "load_balancing_loss")];
        compare_per_sequence(&mut all, case, balance, case.size("batch"), &ids(case, 1));
        let z = [case.output("router_z_loss"), grads(case, "router_z_loss")];
        compare_z(&mut all, case, z, &case.logits(), TokenContext::new());
        all.report.cases += 1;
    }
    all.finish(12, 0);
}

/// The k best by f32 softmax values as XLA has them: subnormal ones are zeros, ties go to the lower expert.
pub(crate) fn best_scores(logits: &Array2<f32>, k: usize) -> Vec<(usize, usize)> {
    let mut pairs = vec![];
    for (t, row) in logits.rows().into_iter().enumerate() {
        let mut scores = row.to_vec();
        numerics::softmax(&mut scores);
        scores.iter_mut().filter(|s| s.is_subnormal()).for_each(|s| *s = 0.0);
        let mut experts: Vec<usize> = (0..scores.len()).collect();
        experts.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        pairs.extend(experts[..k].iter().map(|&e| (t, e)));
    }
    pairs
}

/// Distance of a squared coefficient of variation of E means, each within `delta` relatively: `2 √(v (1 + v)) δ + (1 + v) δ²`,
/// and the rounding of v itself.
fn variation_bound(v: f64, experts: usize, delta: f64) -> f64 {
    2.0 * (v * (1.0 + v)).sqrt() * delta + (1.0 + v) * delta * delta + v * (experts + 10) as f64 * UNIT
}

/// Distance of its derivative by one of the means m̄: `2 / (E m̄) · ((x - m̄)/m̄ - v)`, where `|x - m̄| / m̄ ≤ √(E v)`.
fn slope_bound(v: f64, experts: usize, mean: f64, delta: f64) -> f64 {
    let e = experts as f64;
    2.0 / (e * mean) * 2.0 * delta * (1.0 + (e * v).sqrt() + v)
}

/// Values by group and gradient (of the sum over groups) of the three losses of V-MoE, each as bound and number.
struct Vmoe {
    values: [Vec<(f64, f64)>; 3],
    gradients: [Array2<f64>; 3],
    bounds: [f64; 3],
    noisy: Array2<f64>,
}

const LOSSES: [&str; 3] = ["gshard_loss", "importance_loss", "load_loss"];

fn vmoe(clean: &Array2<f32>, noisy: &Array2<f32>, groups: usize, k: usize, sigma: f64) -> Vmoe {
    let (tokens, experts) = clean.dim();
    let n = tokens / groups;
    let delta = mean_bound(n, experts);
    let offsets = equal_groups(groups, n);
    let context = TokenContext::new().with_sequences(&offsets);
    let input = RouteInput::new(clean.view(), context).unwrap();

    let pairs = best_scores(noisy, k);
    let plan = plan(tokens, experts, pairs.into_iter().map(|(t, e)| (t, e, true)));
    let routed = Routed::new(noisy.view(), &plan, context).unwrap();
    let gshard = LoadBalance::of_first_choices(&routed);
    let importance = Importance::of(&input);
    let load = Load::of(&input, noisy.view(), k, sigma).unwrap();
    let [of_importance, of_loads]: [Vec<f64>; 2] =
        [importance.per_sequence().collect(), load.per_sequence().collect()];
    let bounded = |bound: &dyn Fn(f64, usize) -> f64, values: &[f64]| {
        values.iter().enumerate().map(|(g, &v)| (v, bound(v, g))).collect::<Vec<_>>()
    };
    let balance: Vec<f64> = gshard.groups().map(|b| b.value()).collect();
    let relative = 2.0 * delta + experts as f64 * UNIT;
    // A chance 1 - Φ is off by some units of 1; over the mean chance that is a relative distance.
    let mean_chance = |g: usize| load.chances().row(g).sum() / experts as f64;
    let of_load = |g: usize| delta / mean_chance(g).min(1.0);
    let importance_slope =
        |v: &f64| 2.0 / n as f64 * slope_bound(*v, experts, 1.0 / experts as f64, delta) / 2.0;
    let load_slope = |(g, v): (usize, &f64)| {
        // φ ≤ 0.4; the threshold's derivative has E terms.
        let slope = slope_bound(*v, experts, mean_chance(g), of_load(g));
        0.4 * experts as f64 * slope / (n as f64 * sigma)
    };
    let gradient = load.gradient().unwrap();
    let greatest = |list: &mut dyn Iterator<Item = f64>| list.fold(0.0, f64::max);
    Vmoe {
        values: [
            bounded(&|v, _| relative * v, &balance),
            bounded(&|v, _| variation_bound(v, experts, delta), &of_importance),
            bounded(&|v, g| variation_bound(v, experts, of_load(g)), &of_loads),
        ],
        bounds: [
            2.0 * relative * experts as f64 / n as f64,
            greatest(&mut of_importance.iter().map(importance_slope)),
            greatest(&mut of_loads.iter().enumerate().map(load_slope)),
        ],
        gradients: [gshard.gradient().unwrap(), importance.gradient().unwrap(), gradient.logits]
            .map(|g| g * groups as f64),
        noisy: gradient.noisy * groups as f64,
    }
}

#[test]
fn vmoe_losses() {
    let mut all = Derivatives::default();
    for case in cases("vmoe_losses") {
        let (k, sigma) = (case.size("num_selected_experts"), case.setting("noise_std").as_f64().unwrap());
        let (clean, noisy) = (case.logits(), table(case.input("logits_noisy"), case.size("num_experts")));
        // Here the gshard loss is given the clean logits.
        let of_clean = vmoe(&clean, &clean, 1, k, sigma);
        let found = vmoe(&clean, &noisy, 1, k, sigma);
        for (i, name) in LOSSES.into_iter().enumerate() {
            let found = if i == 0 { &of_clean } else { &found };
            let (value, bound) = found.values[i][0];
            all.value(case, case.output(name), value, bound + f64::MIN_POSITIVE);
            let gradient = if i == 2 { "load_loss_wrt_logits" } else { name };
            all.compare(case, grads(case, gradient), found.gradients[i].view(), |_| found.bounds[i]);
        }
        let wrt_noisy = grads(case, "load_loss_wrt_logits_noisy");
        all.compare(case, wrt_noisy, found.noisy.view(), |_| found.bounds[2]);
        all.report.cases += 1;
    }
    // At zeros: three gradients of 6 tokens and 16 experts.
    all.finish(10, 3 * 6 * 16);
}

/// The metrics of V-MoE's router, by group, and the gradients of their sums; the auxiliary loss is their weighted sum.
#[test]
fn vmoe_top_experts_per_item() {
    let mut all = Derivatives::default();
    for case in cases("vmoe_top_experts_per_item") {
        let (groups, experts) = (case.size("num_groups"), case.size("num_experts"));
        let noisy = case.logits();
        let clean = table(case.input("logits"), experts);
        let sigma = case.setting("noise_std").as_f64().unwrap() / experts as f64;
        let found = vmoe(&clean, &noisy, groups, case.size("num_selected_experts"), sigma);
        let metrics = case.output("metrics");
        let mut auxiliary = vec![(0.0, 0.0); groups];
        let mut gradient = Array2::zeros(clean.raw_dim());
        let mut bound = 0.0;
        for (i, name) in LOSSES.into_iter().enumerate() {
            if metrics.get(name).is_none() {
                assert!(i == 2 && case.flag("deterministic"));
                continue;
            }
            let weight = case.setting(&format!("{name}_weight")).as_f64().unwrap();
            let mut of_loss = found.gradients[i].clone();
            if i == 2 {
                of_loss += &found.noisy;
            }
            for (g, (value, off)) in found.values[i].iter().enumerate() {
                all.value(case, &metrics[name][g], *value, *off + f64::MIN_POSITIVE);
                auxiliary[g].0 += weight * value;
                auxiliary[g].1 += weight * (off + 3.0 * UNIT * value);
            }
            let of_sum = grads(case, &format!("{name}_sum"));
            all.compare(case, of_sum, of_loss.view(), |_| 2.0 * found.bounds[i]);
            gradient += &(of_loss * weight);
            bound += 2.0 * weight * found.bounds[i];
        }
        for (g, (value, off)) in auxiliary.into_iter().enumerate() {
            all.value(case, &metrics["auxiliary_loss"][g], value, off + f64::MIN_POSITIVE);
        }
        all.compare(case, grads(case, "auxiliary_loss_sum"), gradient.view(), |_| bound * (1.0 + 4.0 * UNIT));
        all.report.cases += 1;
    }
    all.finish(44, 616);
}
