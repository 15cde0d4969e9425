//! What a layer says when something does not fit.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod common;

use common::{Best, FirstColumns, Fixed, Linear, forward, layer, matrix};
use moe_core::{
    Assignments, Dispatch, Error, Expert, Experts, LinearGate, MoeLayer, PerExpert, Result, RouteInput,
    Router, Scratch, Stage, TokenContext, TokenRows, Workspace,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

fn message<T>(result: Result<T>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn shapes() {
    let bank = |n| PerExpert::new((0..n).map(|e| Linear(matrix(e, 4, 4))).collect()).unwrap();
    let gate = LinearGate::new(Array2::zeros((3, 4)));
    let built = MoeLayer::new(Box::new(gate), Box::new(Best(1)), Box::new(bank(2)));
    assert_eq!(message(built), "gate weight: expected shape [2, 4], found [3, 4]");
    let gate = LinearGate::new(Array2::zeros((3, 4)));
    assert_eq!(message(gate.with_bias([0.0; 4])), "gate bias: expected shape [3], found [4]");
    assert!(message(PerExpert::<Linear>::new(vec![])).contains("bank of experts"));
    let uneven = PerExpert::new(vec![Linear(matrix(0, 4, 4)), Linear(matrix(0, 5, 5))]);
    assert_eq!(message(uneven), "expert width: expected shape [4], found [5]");

    let layer = layer(2, 4, Best(1));
    assert_eq!(
        message(forward(&layer, matrix(0, 3, 5).view())),
        "layer input: expected shape [3, 4], found [3, 5]"
    );
    let mut y = Array2::zeros((2, 4));
    let mut run = |context: TokenContext<'_>, hidden: ArrayView2<'_, f32>| {
        message(layer.forward(hidden, context, &mut Workspace::new(), &mut (), y.view_mut()))
    };
    let found = run(TokenContext::new(), matrix(0, 3, 4).view());
    assert_eq!(found, "layer output: expected shape [3, 4], found [2, 4]");
    let found = run(TokenContext::new().with_positions(&[0]), matrix(0, 2, 4).view());
    assert_eq!(found, "positions: expected 2 entries, found 1");
    // Whether or not the router looks at them.
    let noise_logits = TokenContext::new().with_noise_logits(TokenRows::new(&[0.0; 6], 3).unwrap());
    let found = run(noise_logits, matrix(0, 2, 4).view());
    assert_eq!(found, "noise logits: expected shape [2, 2], found [2, 3]");
    let found = run(TokenContext::new().with_sequences(&[0, 1]), matrix(0, 2, 4).view());
    assert_eq!(found, "sequence offsets: expected an ascending list from 0 to 2, found [0, 1]");
}

#[test]
fn values_that_are_not_finite_name_layer_stage_and_token() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut hidden = matrix(1, 3, 4);
        hidden[[1, 0]] = bad;
        let error = forward(&layer(2, 4, Best(1)).with_index(5), hidden.view()).unwrap_err();
        let Error::NotFinite { layer: 5, stage: Stage::RouterLogits, token: 1, .. } = error else {
            panic!("{error}")
        };
        assert!(error.to_string().starts_with("layer 5, router logits: token 1: expected finite values"));

        // Beyond the columns that the gate looks at.
        let mut hidden = matrix(1, 3, 4);
        hidden[[2, 3]] = bad;
        let error = forward(&layer(2, 4, Best(1)).with_index(5), hidden.view()).unwrap_err();
        let Error::NotFinite { layer: 5, stage: Stage::LayerOutput, token: 2, .. } = error else {
            panic!("{error}")
        };
    }
}

#[test]
fn assignments_that_cannot_be_trusted() {
    let cases = [
        (vec![(3, 0, 1.0)], "router: expected a token below 3, found 3"),
        (vec![(2, 2, 1.0)], "router: token 2: expected an expert below 2, found 2"),
        (
            vec![(1, 1, 0.5), (0, 1, 0.5), (1, 1, 0.5)],
            "router: token 1: expected distinct experts, found expert 1 twice",
        ),
        (vec![(0, 1, f32::NEG_INFINITY)], "router: token 0, expert 1: expected a finite weight, found -inf"),
    ];
    for (pairs, expected) in cases {
        let hidden = matrix(2, 3, 4);
        assert_eq!(message(forward(&layer(2, 4, Fixed(pairs)), hidden.view())), expected);
    }
    let mut out = Assignments::new();
    assert_eq!(
        message(out.reset(usize::MAX, 1)),
        format!("tokens: expected less than 4294967295, found {}", usize::MAX)
    );
    assert!(message(out.reset(1, u32::MAX as usize)).starts_with("experts: expected less than"));
}

#[test]
fn what_an_expert_reports_comes_through() {
    struct Broken;
    impl Expert for Broken {
        fn dim(&self) -> usize {
            4
        }

        fn forward(&self, _: ArrayView2<'_, f32>, _: ArrayViewMut2<'_, f32>) -> Result<()> {
            Err(Error::experts(std::io::Error::other("disk gone")))
        }
    }
    let gate = FirstColumns { experts: 1, dim: 4 };
    let bank = PerExpert::new(vec![Broken]).unwrap();
    let layer = MoeLayer::new(Box::new(gate), Box::new(Best(1)), Box::new(bank)).unwrap();
    let error = forward(&layer, matrix(0, 1, 4).view()).unwrap_err();
    assert_eq!(error.to_string(), "experts: disk gone");
    assert!(std::error::Error::source(&error).is_some());
    // An expert without rows is not called.
    assert!(forward(&layer, matrix(0, 0, 4).view()).is_ok());
}

/// More experts than there is memory for their logits.
#[test]
fn memory_that_is_not_to_be_had() {
    struct Many;
    impl Experts for Many {
        fn experts(&self) -> usize {
            u32::MAX as usize - 1
        }

        fn dim(&self) -> usize {
            1
        }

        fn forward(&self, _: Dispatch<'_>, _: &mut Scratch, _: ArrayViewMut2<'_, f32>) -> Result<()> {
            Ok(())
        }
    }
    let gate = FirstColumns { experts: u32::MAX as usize - 1, dim: 1 };
    let layer = MoeLayer::new(Box::new(gate), Box::new(Best(1)), Box::new(Many)).unwrap();
    // Beyond what a processor of today can address.
    let error = forward(&layer, Array2::zeros((20_000, 1)).view()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("router logits: no memory for {} bytes", 80_000 * (u64::from(u32::MAX) - 1))
    );
}

#[test]
fn a_router_that_begins_another_batch() {
    struct Elsewhere;
    impl Router for Elsewhere {
        fn route(&self, _: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
            out.reset(7, 2)
        }
    }
    let found = message(forward(&layer(2, 4, Elsewhere), matrix(0, 3, 4).view()));
    assert_eq!(found, "routing plan: expected shape [3, 2], found [7, 2]");
}
