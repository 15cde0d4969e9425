//! Threads, backends, chunks, company: none of them changes a bit.

use mixtral_model::{Compute, Model, SessionOptions, Step, Wanted, Workspace};
use moe_kernels::{Activations, Backend, Dtype};
use proptest::prelude::*;

use crate::tiny::{Shape, bits, read};

pub(crate) fn shapes() -> impl Strategy<Value = Shape> {
    let dtypes = prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)];
    let windows = prop_oneof![Just(None), (1usize..90).prop_map(Some)];
    let sizes = (1usize..90, 1usize..70, 1usize..4, 1usize..4, 1usize..5, 1usize..14);
    (any::<u64>(), dtypes, sizes, 1usize..9, 1usize..4, 2usize..80, windows, any::<bool>()).prop_map(
        |(
            seed,
            dtype,
            (hidden, ffn, layers, kv_heads, group, half_head),
            experts,
            chosen,
            vocabulary,
            window,
            tied,
        )| Shape {
            seed,
            dtype,
            hidden,
            ffn,
            layers,
            kv_heads,
            group,
            half_head,
            experts,
            chosen,
            vocabulary,
            window,
            tied,
        },
    )
}

/// `total` cut at random into pieces of at least one.
fn cut(total: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<bool>(), total - 1).prop_map(|cuts| {
        let mut pieces = vec![1];
        for cut in cuts {
            if cut { pieces.push(1) } else { *pieces.last_mut().unwrap() += 1 }
        }
        pieces
    })
}

fn kv_dtypes() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::Bf16)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn chunking_backend_and_threads(
        shape in shapes(),
        (total, pieces) in (1usize..150).prop_flat_map(|n| (Just(n), cut(n))),
        kv_dtype in kv_dtypes(),
        threads in 1usize..5,
    ) {
        let options = SessionOptions::default().with_kv_dtype(kv_dtype);
        let ids = shape.ids(total);
        let expected = read(&shape.model(Backend::best()), &ids, &[total], options, &mut ());
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for backend in Backend::available() {
            let model = shape.model(backend);
            let found = pool.install(|| read(&model, &ids, &pieces, options, &mut ()));
            prop_assert!(found == expected, "{} {:?}", backend, pieces);
        }
        let one_by_one = read(&shape.model(Backend::best()), &ids, &vec![1; total], options, &mut ());
        prop_assert!(one_by_one == expected, "one by one");
    }

    #[test]
    fn sessions_together_are_sessions_alone(
        shape in shapes(),
        lengths in prop::collection::vec((1usize..40, 0usize..9), 1..6),
    ) {
        let model = shape.model(Backend::best());
        let texts: Vec<Vec<u32>> =
            lengths.iter().enumerate().map(|(i, (n, more))| Shape { seed: shape.seed ^ i as u64, ..shape.clone() }.ids(n + more)).collect();
        let mut sessions: Vec<_> = texts.iter().map(|_| model.session(SessionOptions::default()).unwrap()).collect();
        let mut found = vec![Vec::new(); texts.len()];
        let mut workspace = Workspace::new();
        // Prompts in one pass, then whoever has tokens left goes on by one.
        for round in 0..10 {
            let mut who = Vec::new();
            let mut steps = Vec::new();
            for (i, session) in sessions.iter_mut().enumerate() {
                let (n, more) = lengths[i];
                let tokens = match round {
                    0 => &texts[i][..n],
                    r if r <= more => &texts[i][n + r - 1..n + r],
                    _ => continue,
                };
                who.push((i, tokens.len()));
                steps.push(Step::new(session, tokens).wanted(Wanted::All));
            }
            let logits = bits(&model.forward(&mut steps, &mut workspace, &mut ()).unwrap().to_owned());
            let mut rows = logits.chunks(shape.vocabulary);
            for (i, n) in who {
                rows.by_ref().take(n).for_each(|row| found[i].extend_from_slice(row));
            }
        }
        for (text, found) in texts.iter().zip(found) {
            let alone = read(&model, text, &[text.len()], SessionOptions::default(), &mut ());
            prop_assert!(alone == found);
        }
    }
}

/// Chunks as long as the window, one less and one more, whose keys take the places of those that their first query still sees.
#[test]
fn chunks_as_long_as_the_window() {
    let shape = Shape { window: Some(70), ..Shape::plain() };
    let model = shape.model(Backend::best());
    let ids = shape.ids(69 + 3 * 70 + 71);
    let options = SessionOptions::default();
    let expected = read(&model, &ids, &vec![1; ids.len()], options, &mut ());
    for pieces in [&[69, 70, 70, 70, 71][..], &[70, 70, 70, 70, 70], &[71, 69, 70, 71, 69], &[350]] {
        assert!(read(&model, &ids, pieces, options, &mut ()) == expected, "{pieces:?}");
    }
}

#[test]
fn wanted_rows_are_rows_of_all() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let ids = shape.ids(9);
    let all = read(&model, &ids, &[9], SessionOptions::default(), &mut ());
    let mut workspace = Workspace::new();
    let mut forward = |wanted| {
        let mut session = model.session(SessionOptions::default()).unwrap();
        let step = Step::new(&mut session, &ids).wanted(wanted);
        bits(&model.forward(&mut [step], &mut workspace, &mut ()).unwrap().to_owned())
    };
    assert_eq!(forward(Wanted::Last), all[8 * shape.vocabulary..]);
    assert!(forward(Wanted::None).is_empty());
}

#[test]
fn many_threads_share_a_model() {
    let shape = Shape { window: Some(6), ..Shape::plain() };
    let model = shape.model(Backend::best());
    let expected: Vec<_> = (0..4)
        .map(|i| {
            read(
                &model,
                &Shape { seed: i, ..shape.clone() }.ids(30),
                &[30],
                SessionOptions::default(),
                &mut (),
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for (i, expected) in expected.iter().enumerate() {
            let (model, shape) = (&model, Shape { seed: i as u64, ..shape.clone() });
            scope.spawn(move || {
                let found = read(model, &shape.ids(30), &[1, 20, 9], SessionOptions::default(), &mut ());
                assert_eq!(&found, expected);
            });
        }
    });
}

/// Several callers at once ask for the first time whether weights allow bf16 activations, of matrices that are looked through
/// in pieces.
#[test]
fn many_threads_use_a_model_with_bf16_activations_first() {
    let shape = Shape { hidden: 96, ffn: 500, ..Shape::plain() };
    let checkpoint = shape.checkpoint(|_, _| ());
    let compute = Compute { activations: Activations::Bf16, ..Compute::default() };
    let fresh = || Model::load(shape.config(), &checkpoint, compute).unwrap();
    let ids = shape.ids(20);
    let expected = read(&fresh(), &ids, &[20], SessionOptions::default(), &mut ());
    for _ in 0..20 {
        let model = fresh();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let found = read(&model, &ids, &[13, 7], SessionOptions::default(), &mut ());
                    assert_eq!(found, expected);
                });
            }
        });
    }
}
