//! What can be read and changed between passes: logits, rows and outputs; a layer's router; its gate's weight.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod common;

use std::sync::Arc;

use common::{Best, FirstColumns, Fixed, Linear, bits, forward, layer, matrix, weights};
use moe_core::{
    Error, Gate, LinearGate, MoeLayer, Observer, PerExpert, Routed, Stage, TokenContext, Workspace, combine,
};
use ndarray::{Array2, s};

const DIM: usize = 7;

#[test]
fn logits_rows_and_outputs_are_those_of_the_pass() {
    /// The hidden states and logits that it was shown.
    #[derive(Default)]
    struct Kept(Vec<[Array2<f32>; 2]>);
    impl Observer for Kept {
        fn routed(&mut self, routed: &Routed<'_>) -> moe_core::Result<()> {
            self.0.push([routed.hidden.unwrap().to_owned(), routed.logits.to_owned()]);
            Ok(())
        }
    }
    let (layer, mut workspace, mut kept) = (layer(3, DIM, Best(2)), Workspace::new(), Kept::default());
    assert_eq!((workspace.logits().dim(), workspace.outputs().dim()), ((0, 0), (0, 0)));
    // A smaller pass in the memory of a larger one.
    for tokens in [9, 4, 0] {
        let hidden = matrix(tokens, tokens, DIM);
        let mut y = Array2::zeros(hidden.dim());
        layer.forward(hidden.view(), TokenContext::new(), &mut workspace, &mut kept, y.view_mut()).unwrap();
        let logits = hidden.slice(s![.., ..3]);
        assert_eq!(kept.0.pop().unwrap(), [hidden.to_owned(), logits.to_owned()]);
        assert_eq!((workspace.logits(), workspace.plan().tokens()), (logits, tokens));
        assert_eq!(workspace.outputs().dim(), (2 * tokens, DIM));
        let mut combined = Array2::zeros(hidden.dim());
        combine(workspace.plan(), workspace.outputs(), true, combined.view_mut());
        assert_eq!(bits(&combined), bits(&y));
    }
    // Nothing is left of a pass that fails, nor of the one before.
    let mut y = Array2::zeros((2, DIM));
    let mut run = |hidden: &Array2<f32>| {
        let failed = layer.forward(hidden.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut());
        (failed, workspace.plan().tokens(), workspace.logits().dim(), workspace.outputs().nrows())
    };
    assert!(matches!(run(&matrix(1, 2, DIM)), (Ok(()), 2, (2, 3), 4)));
    // The experts are given a value that no logit shows.
    let mut late = matrix(1, 2, DIM);
    late[[1, DIM - 1]] = f32::INFINITY;
    let mut early = matrix(1, 2, DIM);
    early[[0, 0]] = f32::NAN;
    for (hidden, expected) in [(late, Stage::LayerOutput), (early, Stage::RouterLogits)] {
        let (failed, tokens, logits, rows) = run(&hidden);
        match failed.unwrap_err() {
            Error::NotFinite { stage, .. } => assert_eq!(stage, expected),
            other => panic!("{other}"),
        }
        assert_eq!((tokens, logits, rows), (0, (0, 0), 0));
        assert!(run(&matrix(1, 2, DIM)).0.is_ok());
    }
}

#[test]
fn a_router_in_the_place_of_another() {
    let (mut of_two, hidden) = (layer(3, DIM, Best(2)).with_index(4), matrix(5, 6, DIM));
    let before = bits(&forward(&of_two, hidden.view()).unwrap());
    of_two.replace_router(Box::new(Best(2))).unwrap();
    assert_eq!(bits(&forward(&of_two, hidden.view()).unwrap()), before);
    let own = of_two.replace_router(Box::new(Best(1))).unwrap();
    let of_one = bits(&forward(&layer(3, DIM, Best(1)), hidden.view()).unwrap());
    assert_eq!(bits(&forward(&of_two, hidden.view()).unwrap()), of_one);
    assert_eq!(of_two.index(), 4);
    // One that assigns what there is not is refused, and changes nothing.
    let error = of_two.replace_router(Box::new(Fixed(vec![(0, 1, 1.0)]))).err().unwrap().to_string();
    assert_eq!(error, "router: expected a token below 0, found 0");
    assert_eq!(bits(&forward(&of_two, hidden.view()).unwrap()), of_one);
    of_two.replace_router(own).unwrap();
    assert_eq!(bits(&forward(&of_two, hidden.view()).unwrap()), before);
}

#[test]
fn weights_of_a_gate_change_in_place() {
    let (first, second) = (matrix(1, 3, DIM), matrix(2, 3, DIM));
    let bank = || PerExpert::new(weights(3, DIM).into_iter().map(Linear).collect()).unwrap();
    let of = |gate: Box<dyn Gate>| MoeLayer::new(gate, Box::new(Best(2)), Box::new(bank())).unwrap();
    let mut layer = of(Box::new(LinearGate::new(first.clone())));
    let hidden = matrix(5, 6, DIM);
    let output = |layer: &MoeLayer| bits(&forward(layer, hidden.view()).unwrap());
    let fresh = |weight: &Array2<f32>| output(&of(Box::new(LinearGate::new(weight.clone()))));

    let gate: &mut LinearGate = layer.gate_mut().unwrap();
    // Whatever the order of the numbers in memory.
    gate.set_weight(second.t().as_standard_layout().t()).unwrap();
    assert_eq!(gate.weight(), second);
    assert_eq!(output(&layer), fresh(&second));
    let gate: &mut LinearGate = layer.gate_mut().unwrap();
    gate.weight_mut().scaled_add(0.5, &first);
    assert_eq!(output(&layer), fresh(&(&second + &(&first * 0.5))));

    let gate: &mut LinearGate = layer.gate_mut().unwrap();
    gate.set_weight(first.view()).unwrap();
    gate.set_bias(&[0.0, 9.0, -9.0]).unwrap();
    let biased = LinearGate::new(first.clone()).with_bias([0.0, 9.0, -9.0]).unwrap();
    assert_eq!(output(&layer), output(&of(Box::new(biased))));
    let gate: &mut LinearGate = layer.gate_mut().unwrap();
    let mut bad = first.clone();
    bad[[2, 1]] = f32::NEG_INFINITY;
    let refused = [
        (gate.set_weight(matrix(1, DIM, 3).view()), "gate weight: expected shape [3, 7], found [7, 3]"),
        (gate.set_weight(bad.view()), "gate: weight: expected finite numbers, found -inf"),
        (gate.set_bias(&[1.0]), "gate bias: expected shape [3], found [1]"),
        (gate.set_bias(&[1.0, f32::NAN, 0.0]), "gate: bias: expected finite numbers, found NaN"),
    ];
    for (result, message) in refused {
        assert_eq!(result.unwrap_err().to_string(), message);
    }
    assert_eq!((gate.weight(), gate.bias()), (first.view(), &[0.0, 9.0, -9.0][..]));
    gate.bias_mut().fill(1.0);
    assert_eq!(gate.bias(), [1.0; 3]);
    gate.set_bias(&[]).unwrap();
    assert_eq!(output(&layer), fresh(&first));

    // What cannot be checked in place is found by the next pass.
    layer.gate_mut::<LinearGate>().unwrap().weight_mut()[[0, 0]] = f32::NAN;
    let found = forward(&layer, hidden.view()).unwrap_err();
    assert!(matches!(found, Error::NotFinite { stage: Stage::RouterLogits, .. }), "{found}");
    *layer.gate_mut().unwrap() = LinearGate::new(matrix(1, 4, DIM));
    let found = forward(&layer, hidden.view()).unwrap_err().to_string();
    assert_eq!(found, "gate output: expected shape [6, 4], found [6, 3]");
}

#[test]
fn which_gates_let_themselves_be_changed() {
    let bank = || PerExpert::new(weights(3, DIM).into_iter().map(Linear).collect()).unwrap();
    let lets = |gate: Box<dyn Gate>| {
        let mut layer = MoeLayer::new(gate, Box::new(Best(2)), Box::new(bank())).unwrap();
        layer.gate_mut::<LinearGate>().is_some()
    };
    let linear = LinearGate::new(matrix(1, 3, DIM));
    assert!(lets(Box::new(linear.clone())) && lets(Box::new(Box::new(linear.clone()))));
    assert!(!lets(Box::new(Arc::new(linear))), "it is shared");
    assert!(!lets(Box::new(FirstColumns { experts: 3, dim: DIM })), "it does not say so");
}
