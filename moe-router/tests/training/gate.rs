//! The gradient of a gate's weight through a whole layer, against differences of what the layer computes.

use moe_core::{Expert, LinearGate, MoeLayer, PerExpert, Result, TokenContext, Workspace};
use moe_router::backward::weight_gradient;
use moe_router::{Normalization, TopK};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

const TOKENS: usize = 11;
const DIM: usize = 5;
const EXPERTS: usize = 4;

/// Half the step of a difference. A loss near 1 in f32 is off by some 2⁻²², its difference by 2⁻²² / 2⁻⁶ = 6e-5; the second order of
/// the step leaves a third derivative times 2⁻¹⁴ / 6.
const STEP: f32 = 1.0 / 128.0;
const BOUND: f32 = 1e-3;

/// `f(x) = W x`.
struct Linear(Array2<f32>);

impl Expert for Linear {
    fn dim(&self) -> usize {
        DIM
    }

    fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
        out.assign(&rows.dot(&self.0.t()));
        Ok(())
    }
}

fn wave(rows: usize, columns: usize, step: f32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(r, c)| ((r * columns + c + 1) as f32 * step).powi(2).sin())
}

fn run(layer: &MoeLayer, x: ArrayView2<'_, f32>, workspace: &mut Workspace) -> Array2<f32> {
    let mut y = Array2::zeros(x.dim());
    layer.forward(x, TokenContext::new(), workspace, &mut (), y.view_mut()).unwrap();
    y
}

#[test]
fn of_a_gate_through_a_layer() {
    let (x, upstream) = (wave(TOKENS, DIM, 0.37), wave(TOKENS, DIM, 0.73));
    for normalization in
        [Normalization::OverChosen, Normalization::OverAll, Normalization::OverAllRenormalized]
    {
        let router = TopK::new(2).unwrap().normalized(normalization);
        let gate = LinearGate::new(wave(EXPERTS, DIM, 1.7));
        let bank = (0..EXPERTS).map(|e| Linear(wave(DIM, DIM, 1.1 + 0.1 * e as f32))).collect();
        let bank = PerExpert::new(bank).unwrap();
        let mut layer = MoeLayer::new(Box::new(gate), Box::new(router), Box::new(bank)).unwrap();
        let mut workspace = Workspace::new();
        run(&layer, x.view(), &mut workspace);
        let (plan, logits) = (workspace.plan(), workspace.logits());
        let of_weights = weight_gradient(plan, workspace.outputs(), upstream.view()).unwrap();
        let of_logits = router.weighting().gradient(logits, plan, &of_weights).unwrap();
        let gradient = of_logits.mapv(|v| v as f32).t().dot(&x);
        let chosen = plan.row_experts().to_vec();
        assert!(gradient.iter().any(|g| g.abs() > 0.1));
        for (at, derivative) in gradient.indexed_iter() {
            let mut moved = |by: f32| {
                layer.gate_mut::<LinearGate>().unwrap().weight_mut()[at] += by;
                // L = ⟨upstream, y⟩
                let loss = (&run(&layer, x.view(), &mut workspace) * &upstream).sum();
                assert_eq!(workspace.plan().row_experts(), chosen, "the gradient is of a choice held fixed");
                loss
            };
            // There and back are exact: the sums of these small numbers are.
            let (up, down) = (moved(STEP), moved(-2.0 * STEP));
            moved(STEP);
            let difference = (up - down) / (2.0 * STEP);
            assert!(
                (difference - derivative).abs() < BOUND,
                "{normalization:?} {at:?}: {difference}, {derivative}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "one output a row of the plan")]
fn outputs_of_another_plan() {
    let plan = moe_core::RoutingPlan::new();
    weight_gradient(&plan, wave(1, DIM, 1.0).view(), Array2::zeros((0, DIM)).view()).unwrap();
}
