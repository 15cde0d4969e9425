//! What is wanted decides how much the last layer computes, and not a bit of it.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use mixtral_model::{
    Error, GenerateOptions, Generation, Model, Observed, Observer, Sampling, Session, SessionOptions, Step,
    Wanted, Workspace,
};
use moe_core::{Assignments, Locality, RouteInput, Routed, Router};
use moe_kernels::{Backend, Dtype};
use moe_router::TopK;
use ndarray::ArrayView2;
use proptest::prelude::*;

use crate::circumstances::shapes;
use crate::tiny::{Shape, bits};

/// Notes how many rows each layer works on.
#[derive(Default)]
struct Rows {
    all: bool,
    routed: Vec<usize>,
    done: Vec<usize>,
}

impl Observer for Rows {
    fn wants_all_rows(&self) -> bool {
        self.all
    }

    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        self.routed.push(routed.plan.tokens());
        Ok(())
    }

    fn layer_done(&mut self, _: usize, hidden: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
        self.done.push(hidden.nrows());
        Ok(ControlFlow::Continue(()))
    }
}

/// The logits of passes of several sessions, as bits, and what the observer noted of the last pass. A pass has, for each
/// session, how many tokens it reads and what is wanted of them.
fn run(model: &Model, shape: &Shape, passes: &[Vec<(usize, Wanted)>], all: bool) -> (Vec<Vec<u32>>, Rows) {
    let count = passes[0].len();
    let total = |s: usize| passes.iter().map(|pass| pass[s].0).sum();
    let text = |s: usize| Shape { seed: shape.seed ^ s as u64, ..shape.clone() }.ids(total(s));
    let texts: Vec<_> = (0..count).map(text).collect();
    let options = SessionOptions::default().with_kv_dtype(Dtype::Bf16);
    let mut sessions: Vec<_> = (0..count).map(|_| model.session(options).unwrap()).collect();
    let mut workspace = Workspace::new();
    let (mut logits, mut rows) = (Vec::new(), Rows::default());
    for pass in passes {
        let steps = sessions.iter_mut().zip(&texts).zip(pass);
        let mut steps: Vec<_> = steps
            .filter(|(_, (tokens, _))| *tokens > 0)
            .map(|((session, text), (tokens, wanted))| {
                let read = session.position();
                Step::new(session, &text[read..read + tokens]).wanted(*wanted)
            })
            .collect();
        rows = Rows { all, ..Rows::default() };
        logits.push(bits(&model.forward(&mut steps, &mut workspace, &mut rows).unwrap().to_owned()));
    }
    (logits, rows)
}

fn passes() -> impl Strategy<Value = Vec<Vec<(usize, Wanted)>>> {
    let wanted = prop_oneof![Just(Wanted::None), Just(Wanted::Last), Just(Wanted::All)];
    let of_session = (0usize..30, wanted);
    (1usize..5, 1usize..4).prop_flat_map(move |(sessions, passes)| {
        let pass = prop::collection::vec(of_session.clone(), sessions);
        (prop::collection::vec(pass, passes), prop::collection::vec(1usize..9, sessions)).prop_map(
            |(mut passes, lasts)| {
                // What the cache holds by now is seen by the last.
                passes.push(lasts.into_iter().map(|tokens| (tokens, Wanted::All)).collect());
                passes
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn rows_that_nobody_wants_change_no_others(shape in shapes(), passes in passes(), threads in 1usize..4) {
        let expected = run(&shape.model(Backend::best()), &shape, &passes, true).0;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for backend in Backend::available() {
            let found = pool.install(|| run(&shape.model(backend), &shape, &passes, false).0);
            prop_assert!(found == expected, "{} {:?}", backend, passes);
        }
    }
}

const MIXED: [(usize, Wanted); 4] =
    [(3, Wanted::None), (5, Wanted::Last), (2, Wanted::All), (4, Wanted::Last)];

#[test]
fn the_last_layer_works_on_what_is_wanted() {
    let shape = Shape { layers: 3, ..Shape::plain() };
    let model = shape.model(Backend::best());
    for (pass, wanted) in [
        (vec![(5, Wanted::None)], 0),
        (vec![(5, Wanted::Last)], 1),
        (vec![(5, Wanted::All)], 5),
        (MIXED.to_vec(), 4),
    ] {
        let all = pass.iter().map(|(tokens, _)| tokens).sum();
        for (all_rows, last) in [(true, all), (false, wanted)] {
            let (logits, rows) = run(&model, &shape, std::slice::from_ref(&pass), all_rows);
            assert_eq!(logits[0].len(), wanted * shape.vocabulary);
            assert_eq!((rows.routed, rows.done), (vec![all, all, last], vec![all, all, last]), "{pass:?}");
        }
    }
}

#[test]
fn who_wants_all_rows() {
    struct Unsaid;
    impl Observer for Unsaid {}
    fn asked(mut observer: impl Observer) -> bool {
        let through: &mut dyn Observer = &mut &mut observer;
        through.wants_all_rows()
    }
    let no = Rows::default;
    assert!(Unsaid.wants_all_rows() && Some(Unsaid).wants_all_rows() && asked(&mut Unsaid));
    assert!((no(), Unsaid).wants_all_rows() && ((), (Unsaid, no())).wants_all_rows());
    assert!(!().wants_all_rows() && !None::<Unsaid>.wants_all_rows() && !Some(no()).wants_all_rows());
    assert!(!(no(), ()).wants_all_rows() && !asked(&mut no()));
}

/// What a router sees of each call: sequence boundaries, positions, ids.
type Seen = Arc<Mutex<Vec<(Vec<usize>, Vec<usize>, Vec<u32>)>>>;

/// Mixtral's router under another name, which notes what it sees.
struct Noting {
    locality: Locality,
    seen: Seen,
}

impl Router for Noting {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> moe_core::Result<()> {
        let context = &input.context;
        let ids = context.token_ids.unwrap_or_default().to_vec();
        self.seen.lock().unwrap().push((context.offsets.to_vec(), context.positions.to_vec(), ids));
        TopK::new(2)?.route(input, out)
    }

    fn locality(&self) -> Locality {
        self.locality
    }
}

#[test]
fn routers_see_the_tokens_they_may_look_at() {
    let shape = Shape { layers: 2, ..Shape::plain() };
    let passes =
        [vec![(2, Wanted::Last), (1, Wanted::Last), (3, Wanted::None), (0, Wanted::Last)], MIXED.to_vec()];
    let expected = run(&shape.model(Backend::best()), &shape, &passes, true).0;
    for locality in [Locality::Token, Locality::Causal, Locality::Batch] {
        let seen = Seen::default();
        let model = shape.model(Backend::best());
        let model = model.with_routers(|_| Box::new(Noting { locality, seen: seen.clone() }));
        assert_eq!(run(&model, &shape, &passes, false).0, expected);
        let (first, last) = {
            let seen = seen.lock().unwrap();
            (seen[2].clone(), seen[3].clone())
        };
        assert_eq!(first.0, [0, 3, 8, 10, 14]);
        assert_eq!(first.1, [2, 3, 4, 1, 2, 3, 4, 5, 3, 4, 0, 1, 2, 3]);
        let of = |rows: &[usize]| -> (Vec<usize>, Vec<u32>) {
            rows.iter().map(|&row| (first.1[row], first.2[row])).unzip()
        };
        if locality == Locality::Token {
            assert_eq!(last.0, [0, 0, 1, 3, 4]);
            assert_eq!((last.1, last.2), of(&[7, 8, 9, 13]));
        } else {
            assert_eq!(last, first, "{locality:?}");
        }
    }
}

#[test]
fn errors_name_the_step_and_its_token() {
    let shape = Shape { dtype: Dtype::F32, tied: false, ..Shape::plain() };
    for tensor in [
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.norm.weight",
    ] {
        let spoil = |name: &str, values: &mut [f32]| {
            if name == tensor {
                values[0] = f32::NAN;
            }
        };
        let model = Model::load(shape.config(), &shape.checkpoint(spoil), Backend::best()).unwrap();
        let [mut a, mut b] = [(); 2].map(|()| model.session(SessionOptions::default()).unwrap());
        let steps = &mut [Step::new(&mut a, &[1, 2, 3]).wanted(Wanted::None), Step::new(&mut b, &[4, 5, 6])];
        match model.forward(steps, &mut Workspace::new(), &mut ()).unwrap_err() {
            Error::Step { step: 1, source } if matches!(*source, Error::NotFinite { token: 2, .. }) => {}
            other => panic!("{tensor}: {other}"),
        }
        assert_eq!((a.position(), b.position()), (0, 0));
    }
}

/// Asking for the logits of a prompt gives those of a pass over all of it, however it is cut, and changes nothing of what is drawn.
#[test]
fn the_logits_of_a_prompt_are_those_of_one_pass() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let ids = shape.ids(23);
    let session = || model.session(SessionOptions::default()).unwrap();
    let whole = {
        let (mut session, mut workspace) = (session(), Workspace::new());
        let step = Step::new(&mut session, &ids).wanted(Wanted::All);
        bits(&model.forward(&mut [step], &mut workspace, &mut ()).unwrap().to_owned())
    };
    let sampling = Sampling::greedy().with_temperature(1.0).unwrap().with_seed(3);
    for (chunk, max_tokens) in [(1, 4), (7, 4), (23, 4), (100, 0), (5, 0)] {
        let options =
            GenerateOptions::new(&model, max_tokens).with_sampling(sampling.clone()).with_stop(vec![]);
        let options = options.with_chunk(chunk);
        let run = |mut generation: Generation<Session>| {
            let (mut workspace, mut seen) = (Workspace::new(), Vec::new());
            while let Some(step) = generation.step() {
                let reads = step.wanted == Wanted::All;
                let logits = model.forward(&mut [step], &mut workspace, &mut ()).unwrap();
                generation.take(logits.as_slice().unwrap()).unwrap();
                if reads {
                    seen.extend(logits.iter().map(|v| v.to_bits()));
                }
            }
            (seen, generation.into_parts().1)
        };
        let generation = || Generation::new(&model, session(), &ids, &options).unwrap();
        let (none, text) = run(generation());
        let (all, same) = run(generation().with_prompt_logits());
        assert_eq!((none.len(), text.len()), (0, max_tokens));
        assert_eq!(text, same, "chunk {chunk}");
        assert_eq!(all, whole, "chunk {chunk}");
    }
}
