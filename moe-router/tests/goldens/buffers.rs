//! The whole way of V-MoE: route, gather, experts, combine, through a layer.

use moe_core::{Expert, Gate, MoeLayer, PerExpert, Result, Scratch, TokenContext, Workspace};
use moe_router::{Capacity, Capped, Normalization, TopK};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use crate::fixture::{Report, cases, numbers, softmax_bound, units};
use crate::routed::equal_groups;

/// A gate whose answer is known.
struct Given(Array2<f32>, usize);

impl Gate for Given {
    fn experts(&self) -> usize {
        self.0.ncols()
    }

    fn dim(&self) -> usize {
        self.1
    }

    fn logits(
        &self,
        _: ArrayView2<'_, f32>,
        _: &TokenContext<'_>,
        _: &mut Scratch,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        out.assign(&self.0);
        Ok(())
    }
}

/// Multiplies element by element.
struct Multiply(Array1<f32>);

impl Expert for Multiply {
    fn dim(&self) -> usize {
        self.0.len()
    }

    fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
        out.assign(&(&rows * &self.0));
        Ok(())
    }
}

/// Rows in an order of their own.
fn sorted(mut rows: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    rows
}

#[test]
fn vmoe_dispatch_combine() {
    let mut report = Report::default();
    for case in cases("vmoe_dispatch_combine") {
        let [groups, tokens, experts, k, places, dim] =
            ["num_groups", "tokens_per_group", "num_experts", "num_selected_experts", "capacity", "hidden"]
                .map(|n| case.size(n));
        let data = Array2::from_shape_vec((groups * tokens, dim), numbers(case.input("data"))).unwrap();
        let multiplier = numbers(case.input("expert_multiplier"));
        let bank = multiplier.chunks(dim).map(|m| Multiply(Array1::from(m.to_vec()))).collect();
        let top = TopK::new(k).unwrap().normalized(Normalization::OverAll);
        let capped = Capped::new(top, Capacity::absolute(places)).unwrap();
        let capped = if case.flag("batch_priority") { capped.by_score() } else { capped };
        let gate = Given(case.logits(), dim);
        let layer =
            MoeLayer::new(Box::new(gate), Box::new(capped), Box::new(PerExpert::new(bank).unwrap())).unwrap();
        let offsets = equal_groups(groups, tokens);
        let context = TokenContext::new().with_sequences(&offsets);
        let (mut workspace, mut y) = (Workspace::new(), Array2::zeros(data.dim()));
        layer.forward(data.view(), context, &mut workspace, &mut (), y.view_mut()).unwrap();
        let plan = workspace.plan();

        // The rows of an expert and group are those of its buffer but for the empty places, which are zero.
        let buffers = numbers(case.output("buffers"));
        for e in 0..experts {
            for g in 0..groups {
                let block = if groups.is_multiple_of(experts) {
                    let q = groups / experts;
                    (g % q) * experts + g / q
                } else {
                    g
                };
                let at = (e * groups + block) * places * dim;
                let buffer = buffers[at..at + places * dim].chunks(dim).map(<[f32]>::to_vec);
                let expected = sorted(buffer.filter(|row| row.iter().any(|v| *v != 0.0)).collect());
                let of_group = plan.row_tokens()[plan.expert_rows(e)].iter().map(|&t| t as usize);
                let of_group = of_group.filter(|t| t / tokens == g);
                let found = sorted(of_group.map(|t| data.row(t).to_vec()).collect());
                report.check(found == expected, || {
                    format!("{}: expert {e}, group {g}: expected {expected:?}, found {found:?}", case.name())
                });
            }
        }

        // Each term is off by its weight's distance and two products, and the sums of k terms by an addition each, theirs in
        // another order: relative to the sum of the terms' magnitudes.
        let relative = softmax_bound(experts) + units(2.0 * 2.0 + 2.0 * k as f64);
        let combined = numbers(case.output("combined"));
        for ((t, d), &found) in y.indexed_iter() {
            let terms = plan
                .choices(t)
                .map(|c| f64::from((c.weight * multiplier[c.expert * dim + d] * data[[t, d]]).abs()));
            let bound = terms.sum::<f64>() * relative;
            let expected = combined[t * dim + d];
            report.weights += 1;
            report.check(f64::from((found - expected).abs()) <= bound, || {
                format!("{}: token {t}, {d}: expected {expected}, found {found}, bound {bound}", case.name())
            });
        }
        report.cases += 1;
    }
    report.finish(12);
}
