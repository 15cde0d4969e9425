//! Routers of one's own: one layer's replaced, one with a memory, and what a gate is trained with.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use mixtral_model::{Error, Loader, Model, Observed, Observer, SessionOptions, Step, Wanted, Workspace};
use moe_core::{Assignments, Gate, LinearGate, MoeLayer, RouteInput, Routed, Router, TokenContext};
use moe_kernels::Backend;
use moe_router::{Dense, TopK};
use ndarray::{Array2, ArrayView2};

use crate::tiny::{Shape, bits, read};

/// What each layer handed on, and what its router and experts were given.
#[derive(Default)]
struct Seen {
    done: Vec<Vec<u32>>,
    logits: Vec<Array2<f32>>,
    hidden: Vec<Array2<f32>>,
    rows: Vec<usize>,
}

impl Observer for Seen {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        self.logits.push(routed.logits.to_owned());
        self.hidden.push(routed.hidden.unwrap().to_owned());
        self.rows.push(routed.plan.tokens());
        Ok(())
    }

    fn layer_done(&mut self, _: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.done.push(bits(&hidden.to_owned()));
        Ok(ControlFlow::Continue(()))
    }
}

fn seen(model: &Model, ids: &[u32]) -> (Vec<u32>, Seen) {
    let mut seen = Seen::default();
    let logits = read(model, ids, &[ids.len()], SessionOptions::default(), &mut seen);
    (logits, seen)
}

fn top(k: usize) -> Box<dyn Router> {
    Box::new(TopK::new(k).unwrap())
}

#[test]
fn the_router_of_one_layer_in_place_of_its_own() {
    let shape = Shape { layers: 4, ..Shape::plain() };
    let (mut model, ids) = (shape.model(Backend::best()), shape.ids(9));
    let (logits, own) = seen(&model, &ids);
    for layer in 0..4 {
        model.replace_router(layer, top(2)).unwrap();
        let (same, found) = seen(&model, &ids);
        assert_eq!((same, found.done), (logits.clone(), own.done.clone()), "layer {layer}");

        let before = model.replace_router(layer, Box::new(Dense::new())).unwrap();
        let (other, found) = seen(&model, &ids);
        assert_eq!(found.done[..layer], own.done[..layer], "layer {layer}");
        for n in layer..4 {
            assert_ne!(found.done[n], own.done[n], "layer {n} after another router at {layer}");
        }
        assert_ne!(other, logits);
        model.replace_router(layer, before).unwrap();
    }
    assert_eq!(seen(&model, &ids).0, logits);

    let refused = |found: mixtral_model::Result<Box<dyn Router>>| found.err().unwrap();
    for layer in [4, usize::MAX] {
        let error = refused(model.replace_router(layer, top(2)));
        assert_eq!(error.to_string(), format!("layer: expected a number below 4, found {layer}"));
    }
    let error = refused(model.replace_router(3, top(6)));
    assert!(matches!(error, Error::Layer { layer: 3, .. }), "{error}");
    assert_eq!(seen(&model, &ids).0, logits, "what was refused changed nothing");
}

#[test]
fn logits_and_rows_of_every_layer_are_those_of_its_gate() {
    let shape = Shape { layers: 3, ..Shape::plain() };
    let weight = |n: usize| {
        Array2::from_shape_fn((shape.experts, shape.hidden), |(e, d)| ((7 * e + 3 * d + n) as f32).sin())
    };
    let checkpoint = shape.checkpoint(|_, _| ());
    let layer = |parts: &mixtral_model::MoeParts<'_>| {
        let gate = LinearGate::new(weight(parts.index()));
        let layer = MoeLayer::new(Box::new(gate), Box::new(parts.router()?), Box::new(parts.bank()?));
        Ok(layer.unwrap())
    };
    let mut model =
        Loader::new(shape.config(), &checkpoint, Backend::best()).moe_layers(layer).load().unwrap();
    let ids = shape.ids(7);
    let checked = |model: &Model, weights: [Array2<f32>; 3]| {
        let (all, seen) = seen(model, &ids);
        assert_eq!(seen.rows, [7; 3]);
        for ((weight, hidden), logits) in weights.into_iter().zip(&seen.hidden).zip(&seen.logits) {
            let mut expected = Array2::zeros(logits.dim());
            let mut scratch = moe_core::Scratch::default();
            let gate = LinearGate::new(weight);
            gate.logits(hidden.view(), &TokenContext::new(), &mut scratch, expected.view_mut()).unwrap();
            assert_eq!(bits(&expected), bits(logits));
        }
        all
    };
    let before = checked(&model, [0, 1, 2].map(weight));
    // A step of training: the weight changes where it is.
    model.gate_mut::<LinearGate>(1).unwrap().weight_mut().scaled_add(-0.5, &weight(5));
    let after = checked(&model, [weight(0), weight(1) - &(weight(5) * 0.5), weight(2)]);
    assert_ne!(before, after);
    assert!(model.gate_mut::<LinearGate>(3).is_none());
    assert!(shape.model(Backend::best()).gate_mut::<LinearGate>(0).is_none(), "it lies in the file");
}

/// What the expert of a sequence's last token was, by layer and sequence, with the position after it.
type Memory = HashMap<(u64, u64), (u64, usize)>;

/// One expert a token, in turn, from where the sequence stood: the token before has had the one before.
///
/// What is remembered counts only for the position that it was left for.
#[derive(Clone, Default)]
struct InTurn(Arc<Mutex<Memory>>);

impl Router for InTurn {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> moe_core::Result<()> {
        let mut memory = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for token in input.present() {
            let [layer, sequence, position] = input.context.place(token);
            let left = memory.get(&(layer, sequence)).filter(|(at, _)| *at == position);
            let expert = left.map_or(0, |(_, expert)| (expert + 1) % input.experts());
            memory.insert((layer, sequence), (position + 1, expert));
            out.assign(token, expert, 1.0);
        }
        Ok(())
    }
    // Its locality is the default: it promises nothing.
}

/// The experts of the tokens of each pass, in the last layer.
#[derive(Default)]
struct Experts(Vec<Vec<u32>>);

impl Observer for Experts {
    fn wants_all_rows(&self) -> bool {
        false
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        if routed.layer == 1 {
            let choices = (0..routed.plan.tokens()).flat_map(|t| routed.plan.choices(t));
            self.0.push(choices.map(|choice| choice.expert as u32).collect());
        }
        Ok(())
    }
}

#[test]
fn a_router_remembers_over_the_steps_of_sessions() {
    let shape = Shape { layers: 2, experts: 5, ..Shape::plain() };
    let router = InTurn::default();
    let model = shape.model(Backend::best()).with_routers(|_| Box::new(router.clone()));
    let session = |id| model.session(SessionOptions::default().with_sequence_id(id)).unwrap();
    let (mut a, mut b) = (session(8), session(9));
    assert_eq!((a.sequence_id(), b.sequence_id()), (8, 9));
    let ids = shape.ids(12);
    let (mut workspace, mut experts) = (Workspace::new(), Experts::default());
    // Though one row's logits alone are wanted, the last layer routes all: what it remembers would be wrong otherwise.
    model.forward(&mut [Step::new(&mut a, &ids[..4])], &mut workspace, &mut experts).unwrap();
    for n in 4..6 {
        // Two sessions decoded together, in either order.
        let mut steps = [Step::new(&mut b, &ids[n..=n]), Step::new(&mut a, &ids[n..=n])];
        model.forward(&mut steps, &mut workspace, &mut experts).unwrap();
    }
    model
        .forward(&mut [Step::new(&mut a, &ids[6..8]).wanted(Wanted::None)], &mut workspace, &mut experts)
        .unwrap();
    assert_eq!(experts.0, [vec![0, 1, 2, 3], vec![0, 4], vec![1, 0], vec![1, 2]]);

    // A pass that is stopped leaves the session as it was, but not the memory, which is then of another position: the next pass
    // begins anew, and differs from one that nothing came before.
    struct Stop;
    impl Observer for Stop {
        fn layer_done(&mut self, layer: usize, _: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
            Ok(if layer == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        }
    }
    let stopped = model.forward(&mut [Step::new(&mut a, &ids[8..10])], &mut workspace, &mut Stop);
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert_eq!(a.position(), 8);
    experts.0.clear();
    model.forward(&mut [Step::new(&mut a, &ids[8..10])], &mut workspace, &mut experts).unwrap();
    assert_eq!(experts.0, [[0, 1]]);

    // A session that is cleared, and one more of the same identity, begin at position 0: nothing is remembered for that.
    a.clear();
    let mut again = session(8);
    for session in [&mut a, &mut again] {
        experts.0.clear();
        model.forward(&mut [Step::new(session, &ids[..2])], &mut workspace, &mut experts).unwrap();
        assert_eq!(experts.0, [[0, 1]]);
    }
}

#[test]
fn nothing_is_promised_of_a_router_that_remembers() {
    /// As above, but for the position: it goes on from wherever the last call of its layer ended.
    #[derive(Default)]
    struct GoesOn(Mutex<HashMap<u64, usize>>);
    impl Router for GoesOn {
        fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> moe_core::Result<()> {
            let mut next = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let next = next.entry(input.context.layer as u64).or_default();
            for token in input.present() {
                out.assign(token, *next, 1.0);
                *next = (*next + 1) % input.experts();
            }
            Ok(())
        }
    }
    let shape = Shape { layers: 2, experts: 5, ..Shape::plain() };
    let router = Arc::new(GoesOn::default());
    let model = shape.model(Backend::best()).with_routers(|_| Box::new(router.clone()));
    assert_eq!(router.locality(), moe_core::Locality::Batch);
    let ids = shape.ids(7);
    let mut passes = [(); 2].map(|()| {
        let mut experts = Experts::default();
        let logits = read(&model, &ids, &[3, 4], SessionOptions::default(), &mut experts);
        (experts.0.concat(), logits)
    });
    assert_eq!(passes[0].0, [0, 1, 2, 3, 4, 0, 1]);
    assert_eq!(passes[1].0, [2, 3, 4, 0, 1, 2, 3], "the same text, and other experts");
    let [first, second] = &mut passes;
    assert_ne!(first.1, second.1);
}
