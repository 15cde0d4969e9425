//! A layer asks its parts for what they are there for, and a pointer to one is as good as the part itself.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod common;

use std::sync::{Arc, Mutex};

use common::{Best, Linear, bits, forward, layer, matrix, weights};
use moe_core::{
    ApplyWeights, Assignments, Dispatch, Error, Expected, Expert, Experts, Gate, LinearGate, Locality,
    MoeLayer, PerExpert, PerSequence, Reserve, Result, RouteInput, Router, RowWork, Scratch, Stage,
    TokenContext, TokenRows, Workspace, numerics,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, array};

const DIM: usize = 5;

/// A bank that notes what it is asked for.
struct Noting {
    bank: PerExpert<Linear>,
    asked: Mutex<Vec<String>>,
}

impl Noting {
    fn new() -> Self {
        let bank = PerExpert::new(weights(3, DIM).into_iter().map(Linear).collect()).unwrap();
        Self { bank, asked: Mutex::default() }
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Experts for Noting {
    fn experts(&self) -> usize {
        self.bank.experts()
    }

    fn dim(&self) -> usize {
        self.bank.dim()
    }

    fn forward(
        &self,
        dispatch: Dispatch<'_>,
        scratch: &mut Scratch,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        self.note(format!("forward {}", dispatch.rows()));
        self.bank.forward(dispatch, scratch, out)
    }

    fn expect(&self, layer: usize, experts: &[Expected]) {
        self.note(format!("expect {layer} {:?}", experts.iter().map(|e| e.expert).collect::<Vec<_>>()));
    }

    fn reserve(&self, request: &Reserve, _: &mut Scratch) -> Result<()> {
        self.note(format!("reserve {} {} {}", request.layer, request.tokens, request.may_wait));
        if request.may_wait { Ok(()) } else { Err(Error::Busy { what: "nothing" }) }
    }

    fn release(&self, _: &mut Scratch) {
        self.note("release".to_owned());
    }

    fn over_rows(&self, rows: ArrayViewMut2<'_, f32>, work: &RowWork<'_>) -> Result<()> {
        self.note(format!("over {} rows", rows.nrows()));
        work(0, rows)
    }
}

#[test]
fn a_bank_is_asked_through_pointers_too() {
    let bank = Arc::new(Noting::new());
    let pointers: [Box<dyn Experts>; 2] = [Box::new(bank.clone()), Box::new(Box::new(bank.clone()))];
    for pointer in pointers {
        let gate = LinearGate::new(matrix(1, 3, DIM));
        let layer = MoeLayer::new(Box::new(gate), Box::new(Best(1)), pointer).unwrap().with_index(6);
        assert_eq!((layer.experts(), layer.dim(), layer.bank().experts()), (3, DIM, 3));
        let mut workspace = Workspace::new();
        layer.reserve(4, true, &mut workspace).unwrap();
        assert!(matches!(layer.reserve(5, false, &mut workspace), Err(Error::Busy { .. })));
        layer.release(&mut workspace);
        assert_eq!(bank.asked(), ["reserve 6 4 true", "reserve 6 5 false", "release"]);

        let (hidden, mut y) = (Array2::ones((2, DIM)), Array2::zeros((2, DIM)));
        let context = TokenContext::new();
        layer.forward(hidden.view(), context, &mut workspace, &mut (), y.view_mut()).unwrap();
        let [chosen] = workspace.plan().active_experts().collect::<Vec<_>>()[..] else {
            panic!("equal tokens choose alike");
        };
        assert_eq!(bank.asked(), [format!("expect 6 [{chosen}]"), "forward 2".into(), "over 2 rows".into()]);
    }
}

/// A router that leaves nothing at its default, and routes nothing.
struct Odd;
impl Router for Odd {
    fn route(&self, _: &RouteInput<'_>, _: &mut Assignments) -> Result<()> {
        Err(Error::router("odd"))
    }

    fn locality(&self) -> Locality {
        Locality::Causal
    }

    fn perturb(&self, _: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) -> Result<()> {
        logits.fill(3.0);
        Ok(())
    }

    fn scores(&self, _: &TokenContext<'_>, mut logits: ArrayViewMut2<'_, f32>) {
        logits.fill(4.0);
    }
}

#[test]
fn a_gate_and_a_router_are_asked_through_pointers_too() {
    let pointers: [Box<dyn Router>; 3] = [Box::new(Odd), Box::new(Box::new(Odd)), Box::new(Arc::new(Odd))];
    for router in pointers {
        let (context, mut logits) = (TokenContext::new(), Array2::zeros((1, 2)));
        assert_eq!(router.locality(), Locality::Causal);
        router.perturb(&context, logits.view_mut()).unwrap();
        assert_eq!(logits, array![[3.0, 3.0]]);
        router.scores(&context, logits.view_mut());
        assert_eq!(logits, array![[4.0, 4.0]]);
        let input = RouteInput::new(logits.view(), context).unwrap();
        assert!(router.route(&input, &mut Assignments::new()).is_err());
    }
    let linear = || LinearGate::new(array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
    let pointers: [Box<dyn Gate>; 2] = [Box::new(Box::new(linear())), Box::new(Arc::new(linear()))];
    for gate in pointers {
        let (x, mut out) = (array![[1.0, 10.0]], Array2::zeros((1, 3)));
        assert_eq!((gate.experts(), gate.dim()), (3, 2));
        gate.logits(x.view(), &TokenContext::new(), &mut Scratch::default(), out.view_mut()).unwrap();
        assert_eq!(out, array![[21.0, 43.0, 65.0]]);
    }
}

#[test]
fn a_bias_is_added_to_the_logits() {
    let gate = LinearGate::new(array![[1.0, 2.0], [3.0, 4.0]]).with_bias([0.5, -8.0]).unwrap();
    let mut out = Array2::zeros((2, 2));
    let x = array![[1.0, 10.0], [0.0, 1.0]];
    gate.logits(x.view(), &TokenContext::new(), &mut Scratch::default(), out.view_mut()).unwrap();
    assert_eq!(out, array![[21.5, 35.0], [2.5, -4.0]]);
}

#[test]
fn a_layer_with_another_router_uses_it() {
    let hidden = matrix(3, 6, DIM);
    let of = |layer: &MoeLayer| bits(&forward(layer, hidden.view()).unwrap());
    let changed = layer(3, DIM, Best(2)).with_index(2).with_router(Box::new(Best(1)));
    assert_eq!(of(&changed), of(&layer(3, DIM, Best(1))));
    assert_ne!(of(&changed), of(&layer(3, DIM, Best(2))));
    assert_eq!(changed.index(), 2);
}

#[test]
fn weights_are_applied_where_the_layer_says() {
    /// `f(x) = x²`, in which a weight inside is another than outside.
    struct Square;
    impl Expert for Square {
        fn dim(&self) -> usize {
            2
        }

        fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
            out.assign(&(&rows * &rows));
            Ok(())
        }
    }
    let of = |apply| {
        let gate = Box::new(LinearGate::new(array![[0.0, 0.0], [0.0, 0.0]]));
        let bank = PerExpert::new(vec![Square, Square]).unwrap();
        let layer = MoeLayer::new(gate, Box::new(Best(2)), Box::new(bank)).unwrap();
        // Through another bank, and a router, it stays so.
        let layer = layer.applying_weights(apply).map_bank(|bank| bank).unwrap();
        forward(&layer.with_router(Box::new(Best(2))), array![[2.0, 4.0]].view()).unwrap()
    };
    // Both experts have weight 1/2.
    assert_eq!(of(ApplyWeights::Output), array![[4.0, 16.0]]);
    assert_eq!(of(ApplyWeights::Input), array![[2.0, 8.0]]);
}

#[test]
fn padding_may_hold_anything_and_others_may_not() {
    /// Every token that is not padding goes to expert 0.
    struct First;
    impl Router for First {
        fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
            input.present().for_each(|t| out.assign(t, 0, 1.0));
            Ok(())
        }
    }
    let layer = layer(2, DIM, First);
    let run = |bad: &[usize]| {
        let mut hidden = matrix(3, 4, DIM);
        bad.iter().for_each(|&t| hidden[[t, 1]] = f32::NAN);
        let mut y = Array2::zeros((4, DIM));
        let context = TokenContext::new().with_padding(&[false, true, false, true]);
        layer.forward(hidden.view(), context, &mut Workspace::new(), &mut (), y.view_mut()).map(|()| y)
    };
    let clean = run(&[]).unwrap();
    assert_eq!(bits(&run(&[1, 3]).unwrap()), bits(&clean));
    for (bad, at) in [(&[1, 2][..], 2), (&[0, 3], 0), (&[0, 2], 0)] {
        match run(bad).unwrap_err() {
            Error::NotFinite { stage: Stage::RouterLogits, token, .. } => assert_eq!(token, at),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn scores_are_probabilities_unless_a_router_says_otherwise() {
    let (logits, context) = (array![[0.0, 1.0, -1.0], [2.0, 2.0, f32::NEG_INFINITY]], TokenContext::new());
    let mut expected = logits.clone();
    expected.rows_mut().into_iter().for_each(|mut row| numerics::softmax(row.as_slice_mut().unwrap()));
    assert_eq!(expected.row(1), array![0.5, 0.5, 0.0]);
    let mut scores = logits.clone();
    Best(1).scores(&context, scores.view_mut());
    assert_eq!(scores, expected);
    // Rows that are no slices, too; and by default nothing is drawn.
    let mut columns = logits.t().as_standard_layout().into_owned();
    Best(1).perturb(&context, columns.view_mut().reversed_axes()).unwrap();
    assert_eq!(columns.t(), logits);
    Best(1).scores(&context, columns.view_mut().reversed_axes());
    assert_eq!(columns.t(), expected);
}

#[test]
fn each_sequence_has_the_scores_of_its_router() {
    let routers: [&dyn Router; 3] = [&Odd, &Best(1), &Odd];
    let (router, context) = (PerSequence::of(&routers), TokenContext::new().with_sequences(&[0, 1, 3, 3]));
    let mut logits = Array2::zeros((3, 2));
    router.perturb(&context, logits.view_mut()).unwrap();
    assert_eq!(logits, array![[3.0, 3.0], [0.0, 0.0], [0.0, 0.0]]);
    router.scores(&context, logits.view_mut());
    assert_eq!(logits, array![[4.0, 4.0], [0.5, 0.5], [0.5, 0.5]]);
}

#[test]
fn what_lies_in_a_workspace_is_there_the_next_time() {
    #[derive(Default)]
    struct Count(usize);
    impl moe_core::ScratchValue for Count {
        fn bytes(&self) -> usize {
            0
        }
    }
    let mut workspace = Workspace::new();
    for before in 0..3 {
        let count: &mut Count = workspace.scratch().of();
        assert_eq!(count.0, before);
        count.0 += 1;
    }
}

#[test]
fn a_stretch_of_an_input_has_what_belongs_to_its_tokens() {
    let (logits, noise) = (matrix(1, 3, 2), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let context = TokenContext::new()
        .with_seed(77)
        .with_token_ids(&[10, 11, 12])
        .with_padding(&[false, true, false])
        .with_noise(TokenRows::new(&noise, 2).unwrap());
    let whole = RouteInput::new(logits.view(), context).unwrap();
    let part = whole.slice(1..3);
    assert_eq!((part.tokens(), part.experts(), part.context.seed), (2, 2, 77));
    assert_eq!(whole.slice(0..0).experts(), 2);
    assert_eq!(part.context.token_ids, Some(&[11, 12][..]));
    assert_eq!(part.present().collect::<Vec<_>>(), [1]);
    let noise = part.context.noise.unwrap();
    assert_eq!((noise.tokens(), noise.row(0), noise.row(1)), (2, &[2.0, 3.0][..], &[4.0, 5.0][..]));
    // One boundary is no sequence.
    assert!(TokenContext::new().with_sequences(&[0]).check(0).is_err());
}

#[test]
fn a_dispatch_of_ones_own_has_the_weights_and_the_layer_it_was_given() {
    let hidden = matrix(1, 2, DIM);
    let dispatch = Dispatch::new(hidden.view(), &[1, 0, 1], &[0, 1, 3]).unwrap();
    assert_eq!((dispatch.layer(), dispatch.input_weights()), (0, None));
    let dispatch = dispatch.with_input_weights(&[0.5, 2.0, 3.0]).unwrap().at_layer(4);
    assert_eq!((dispatch.layer(), dispatch.input_weights()), (4, Some(&[0.5, 2.0, 3.0][..])));
    let mut row = Array2::zeros((1, DIM));
    dispatch.copy_row(1, row.row_mut(0));
    assert_eq!(row.row(0), &hidden.row(0) * 2.0);
}

#[test]
fn masked_is_negative_infinity_and_nothing_else() {
    let logits = array![[f32::NEG_INFINITY, 0.0], [f32::INFINITY, f32::NAN]];
    let input = RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    let masked = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(t, e)| input.is_masked(t, e));
    assert_eq!(masked, [true, false, false, false]);
}
