//! The gradient of combination weights in flaxformer and V-MoE.

use ndarray::{Array2, Axis};

use crate::fixture::{Case, cases, indices, numbers};
use crate::given::{Derivatives, ids, table};
use crate::gradients::{Check, over_all};

/// The kept pairs of a JAX router, without those of padding, whose probabilities are constant zeros.
fn kept(case: Case, tokens: usize) -> Vec<(usize, usize, bool)> {
    let padding = |t: usize| {
        let mask = case.0["inputs"].get("non_padding").filter(|m| !m.is_null());
        mask.is_some_and(|m| numbers(m)[t] == 0.0)
    };
    let all: Vec<(usize, usize)> = if let Some(entries) = case.0["outputs"].get("entries") {
        let entry = |e: &serde_json::Value| {
            let at = indices(e);
            (at[0] * tokens + at[1], at[2])
        };
        entries.as_array().unwrap().iter().map(entry).collect()
    } else if let Some(chosen) = case.0["outputs"].get("chosen_tokens") {
        let experts = case.size("num_experts");
        let list = indices(chosen);
        let places = list.len() / experts / case.size("num_groups");
        let at = |(i, t): (usize, usize)| (i / places / experts * tokens + t, i / places % experts);
        list.into_iter().enumerate().map(at).collect()
    } else {
        let kept = indices(case.output("kept"));
        let ids = ids(case, case.size("num_selected_experts")).into_iter();
        ids.zip(kept).filter(|(_, kept)| *kept == 1).map(|(id, _)| id).collect()
    };
    all.into_iter().filter(|&(t, _)| !padding(t)).map(|(t, e)| (t, e, true)).collect()
}

/// Softmax over all, chosen by whomever.
fn jax(group: &str, comparisons: usize) {
    let mut all = Derivatives::default();
    for case in cases(group) {
        let logits = case.logits();
        let pairs = kept(case, case.size("tokens_per_group"));
        let coeff = table(case.input("coeff"), logits.ncols());
        Check::new(over_all(), &logits, pairs, coeff).run(&mut all, case, logits.ncols());
    }
    all.finish(comparisons, 0);
}

#[test]
fn flaxformer_tokens_choose_scatter() {
    jax("flaxformer_tokens_choose_scatter", 24);
}

#[test]
fn flaxformer_tokens_choose_masked() {
    jax("flaxformer_tokens_choose_masked", 24);
}

#[test]
fn flaxformer_experts_choose() {
    jax("flaxformer_experts_choose", 13);
}

#[test]
fn vmoe_top_experts_per_item() {
    jax("vmoe_top_experts_per_item", 44);
}

#[test]
fn vmoe_top_items_per_expert() {
    jax("vmoe_top_items_per_expert", 12);
}

/// Weights reach the result through the experts' outputs: `∂L/∂weight = Σ coeff · data · multiplier` over the hidden axis.
#[test]
fn vmoe_dispatch_combine() {
    let mut all = Derivatives::default();
    for case in cases("vmoe_dispatch_combine") {
        let (logits, hidden) = (case.logits(), case.size("hidden"));
        let data = table(case.input("data"), hidden);
        let multiplier = table(case.input("expert_multiplier"), hidden);
        let coeff = table(case.input("coeff"), hidden);
        let coeff = (&coeff * &data).dot(&multiplier.t());
        // The choice is not in the data; an expert's place that holds a token's data has it.
        let pairs = pairs_in_buffers(case, &data);
        Check::new(over_all(), &logits, pairs, coeff).run(&mut all, case, hidden);
    }
    all.finish(12, 0);
}

fn pairs_in_buffers(case: Case, data: &Array2<f32>) -> Vec<(usize, usize, bool)> {
    let (experts, hidden) = (case.size("num_experts"), case.size("hidden"));
    let buffers = table(case.output("buffers"), hidden);
    let places = buffers.nrows() / experts;
    let token = |row: &ndarray::ArrayView1<'_, f32>| data.axis_iter(Axis(0)).position(|d| d == row);
    let place = |(i, row): (usize, ndarray::ArrayView1<'_, f32>)| token(&row).map(|t| (t, i / places, true));
    buffers.axis_iter(Axis(0)).enumerate().filter_map(place).collect()
}
