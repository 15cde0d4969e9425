//! What a bank is given, and how it may be held.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod common;

use std::sync::Arc;

use common::{Best, FirstColumns, Linear, bits, forward, layer, matrix, weights};
use moe_core::{
    ApplyWeights, Assignments, Dispatch, Experts, Gate, MoeLayer, NullExpert, NullExperts, PerExpert, Router,
    RoutingPlan, Scratch,
};
use ndarray::{Array2, Axis, s};

const DIM: usize = 11;

fn bank(experts: usize) -> PerExpert<Linear> {
    PerExpert::new(weights(experts, DIM).into_iter().map(Linear).collect()).unwrap()
}

/// Tokens 3, 0, 2 to experts 1, 1, 3, and token 2 to expert 0.
fn plan() -> RoutingPlan {
    let mut out = Assignments::new();
    out.reset(4, 4).unwrap();
    for (token, expert, weight) in [(3, 1, 0.3), (0, 1, -0.7), (2, 3, 1.1), (2, 0, 0.9)] {
        out.assign(token, expert, weight);
    }
    let mut plan = RoutingPlan::new();
    plan.seal(&out).unwrap();
    plan
}

fn run(bank: &impl Experts, dispatch: Dispatch<'_>) -> Vec<u32> {
    let mut out = Array2::from_elem((dispatch.rows(), DIM), f32::NAN);
    bank.forward(dispatch, &mut Scratch::default(), out.view_mut()).unwrap();
    bits(&out)
}

#[test]
fn rows_are_tokens_by_index_times_their_weights() {
    let (plan, hidden) = (plan(), matrix(1, 4, DIM));
    let dispatch = Dispatch::of(&plan, hidden.view(), ApplyWeights::Output, 6);
    assert_eq!((dispatch.layer(), dispatch.experts(), dispatch.rows(), dispatch.dim()), (6, 4, 4, DIM));
    assert_eq!((0..4).map(|e| dispatch.rows_of(e)).collect::<Vec<_>>(), [0..1, 1..3, 3..3, 3..4]);
    assert_eq!((dispatch.row_tokens(), dispatch.input_weights()), (&[2, 0, 3, 2][..], None));
    let side_by_side = hidden.select(Axis(0), &[2, 0, 3, 2]);
    let mut gathered = Array2::from_elem((4, DIM), f32::NAN);
    dispatch.gather(0..4, gathered.view_mut());
    assert_eq!(gathered, side_by_side);

    let weighted = Dispatch::of(&plan, hidden.view(), ApplyWeights::Input, 0);
    let products = &side_by_side * &Array2::from_shape_fn((4, 1), |(r, _)| plan.row_weights()[r]);
    weighted.gather(1..3, gathered.slice_mut(s![1..3, ..]));
    assert_eq!(gathered.slice(s![1..3, ..]), products.slice(s![1..3, ..]));
    // A bank cannot tell weights from products.
    let offsets = [0, 1, 3, 3, 4];
    let copied = Dispatch::new(products.view(), &[0, 1, 2, 3], &offsets).unwrap();
    let nulls = vec![
        NullExpert::Zero,
        NullExpert::Copy,
        NullExpert::Constant {
            vector: vec![0.5; DIM],
            mixing: matrix(7, 2, DIM).into_raw_vec_and_offset().0,
        },
    ];
    assert_eq!(run(&bank(4), weighted), run(&bank(4), copied));
    let nulls = NullExperts::new(bank(1), nulls).unwrap();
    assert_eq!(run(&nulls, weighted), run(&nulls, copied));
}

#[test]
fn some_of_the_experts_are_a_dispatch() {
    let (plan, hidden) = (plan(), matrix(1, 4, DIM));
    let whole = Dispatch::of(&plan, hidden.view(), ApplyWeights::Input, 0);
    let some = whole.of_experts(1..4);
    assert_eq!((some.experts(), some.rows(), some.row_tokens()), (3, 3, &[0, 3, 2][..]));
    assert_eq!((0..3).map(|e| some.rows_of(e)).collect::<Vec<_>>(), [0..2, 2..2, 2..3]);
    assert_eq!(some.input_weights(), Some(&[-0.7, 0.3, 1.1][..]));
    let last = some.of_experts(2..3);
    assert_eq!((last.rows_of(0), last.row_tokens()), (0..1, &[2][..]));
    assert_eq!(some.of_experts(1..2).rows(), 0);
    let weights = weights(4, DIM).split_off(1);
    let ranks = PerExpert::new(weights.into_iter().map(Linear).collect()).unwrap();
    assert_eq!(run(&ranks, some), run(&bank(4), whole)[DIM..]);
}

#[test]
fn lists_that_do_not_fit() {
    let hidden = Array2::zeros((3, 2));
    let error = |tokens: &[u32], offsets: &[usize]| {
        Dispatch::new(hidden.view(), tokens, offsets).map(|_| ()).unwrap_err().to_string()
    };
    for offsets in [&[][..], &[0], &[1, 2], &[0, 1], &[0, 3], &[0, 2, 1, 2]] {
        assert_eq!(
            error(&[0, 2], offsets),
            format!(
                "dispatch, boundaries of the groups: expected an ascending list from 0 to 2, found {offsets:?}"
            )
        );
    }
    assert_eq!(error(&[2, 3], &[0, 2]), "dispatch, tokens of the rows: expected tokens below 3, found 3");
    let fits = Dispatch::new(hidden.view(), &[2, 2], &[0, 1, 2]).unwrap();
    assert!(fits.with_input_weights(&[1.0]).is_err());
    let mut out = Array2::zeros((2, 2));
    let error = bank(2).forward(fits, &mut Scratch::default(), out.view_mut()).unwrap_err();
    assert_eq!(error.to_string(), "dispatch: expected shape [2, 11], found [2, 2]");
}

#[test]
fn pointers_fill_the_slots() {
    let hidden = matrix(2, 6, DIM);
    let expected = bits(&forward(&layer(3, DIM, Best(2)), hidden.view()).unwrap());
    let gate = || FirstColumns { experts: 3, dim: DIM };
    let layers = [
        MoeLayer::new(
            Box::new(Arc::new(gate()) as Arc<dyn Gate>),
            Box::new(Arc::new(Best(2)) as Arc<dyn Router>),
            Box::new(Arc::new(bank(3)) as Arc<dyn Experts>),
        ),
        MoeLayer::new(
            Box::new(Box::new(gate()) as Box<dyn Gate>),
            Box::new(Box::new(Best(2)) as Box<dyn Router>),
            Box::new(Box::new(bank(3)) as Box<dyn Experts>),
        ),
        MoeLayer::new(
            Box::new(&FirstColumns { experts: 3, dim: DIM }),
            Box::new(&Best(2)),
            // Another bank may hold one that is not owned.
            Box::new(NullExperts::new(Arc::new(bank(3)) as Arc<dyn Experts>, vec![]).unwrap()),
        ),
    ];
    for layer in layers {
        let layer = layer.unwrap();
        assert_eq!((layer.gate().dim(), layer.bank().experts()), (DIM, 3));
        assert_eq!(bits(&forward(&layer, hidden.view()).unwrap()), expected);
    }
    // A reference to a bank is a bank.
    let (plan, bank) = (plan(), bank(4));
    let dispatch = Dispatch::of(&plan, hidden.slice(s![..4, ..]), ApplyWeights::Output, 0);
    assert_eq!(run(&&bank, dispatch), run(&bank, dispatch));
}
