//! What a bank is given, and how it may be held.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Best, FirstColumns, Fixed, Linear, bits, forward, layer, matrix, weights};
use moe_core::{
    ApplyWeights, Assignments, Dispatch, Error, Expected, Experts, Gate, MoeLayer, NullExpert, NullExperts,
    PerExpert, Result, Routed, Router, RoutingPlan, RowWork, Scratch, Stage, TokenContext, Workspace,
};
use ndarray::{Array2, ArrayViewMut2, Axis, s};

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

/// A bank that cuts rows into stretches of its own choice, and notes what it hears.
struct Recording {
    bank: PerExpert<Linear>,
    stretch: usize,
    heard: Mutex<Vec<(usize, Vec<Expected>)>>,
}

impl Recording {
    fn new(stretch: usize) -> Self {
        Self { bank: bank(3), stretch, heard: Mutex::default() }
    }
}

impl Experts for Recording {
    fn experts(&self) -> usize {
        self.bank.experts()
    }

    fn dim(&self) -> usize {
        self.bank.dim()
    }

    fn forward(&self, x: Dispatch<'_>, scratch: &mut Scratch, out: ArrayViewMut2<'_, f32>) -> Result<()> {
        self.bank.forward(x, scratch, out)
    }

    fn expect(&self, layer: usize, experts: &[Expected]) {
        self.heard.lock().unwrap().push((layer, experts.to_vec()));
    }

    fn over_rows(&self, mut rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> Result<()> {
        let starts: Vec<usize> = (0..rows.nrows()).step_by(self.stretch).collect();
        let stretches = rows.axis_chunks_iter_mut(Axis(0), self.stretch);
        // Backwards: the order is the bank's.
        let mut results: Vec<_> =
            starts.into_iter().zip(stretches).rev().map(|(first, rows)| work(first, rows)).collect();
        results.reverse();
        results.into_iter().collect()
    }
}

#[test]
fn outputs_combine_in_any_stretches() {
    let hidden = matrix(2, 17, DIM);
    let expected = bits(&forward(&layer(3, DIM, Best(2)), hidden.view()).unwrap());
    for stretch in [1, 2, 5, 17, 40] {
        let gate = FirstColumns { experts: 3, dim: DIM };
        let bank = NullExperts::new(Recording::new(stretch), vec![]).unwrap();
        let layer = MoeLayer::new(Box::new(gate), Box::new(Best(2)), Box::new(bank)).unwrap();
        assert_eq!(bits(&forward(&layer, hidden.view()).unwrap()), expected);
        // What is not finite is found in the stretch that it is in, and the first is named.
        let mut hidden = hidden.clone();
        hidden[[9, DIM - 1]] = f32::NAN;
        hidden[[14, DIM - 1]] = f32::INFINITY;
        let error = forward(&layer, hidden.view()).unwrap_err();
        assert!(matches!(error, Error::NotFinite { stage: Stage::LayerOutput, token: 9, .. }), "{error}");
    }
}

#[test]
fn a_bank_hears_which_experts_are_wanted() {
    let bank = Arc::new(NullExperts::new(Recording::new(1), vec![NullExpert::Zero; 2]).unwrap());
    let gate = FirstColumns { experts: 5, dim: DIM };
    let router = Fixed(vec![(0, 2, 1.0), (1, 4, 1.0), (1, 0, 0.5), (2, 2, 0.5)]);
    let layer =
        MoeLayer::new(Box::new(gate), Box::new(router), Box::new(bank.clone())).unwrap().with_index(8);
    layer.expect(
        &[(4, 0.25), (1, 0.5), (3, 0.75), (2, 0.5)].map(|(expert, certainty)| Expected { expert, certainty }),
    );
    let hidden = matrix(2, 3, DIM);
    // The bank hears before the observer.
    let mut heard = vec![];
    let mut observer = |_: &Routed<'_>| heard = bank.bank().heard.lock().unwrap().clone();
    let mut y = Array2::zeros(hidden.dim());
    let mut workspace = Workspace::new();
    layer.forward(hidden.view(), TokenContext::new(), &mut workspace, &mut observer, y.view_mut()).unwrap();
    let list = |experts: &[(usize, f32)]| {
        (8, experts.iter().map(|&(expert, certainty)| Expected { expert, certainty }).collect::<Vec<_>>())
    };
    // Null experts need no weights; those that do are told in the order given.
    assert_eq!(heard, [list(&[(1, 0.5)]), list(&[(2, 0.5)]), list(&[(0, 1.0), (2, 1.0)])]);
}
