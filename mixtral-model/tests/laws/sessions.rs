//! Sessions as values: taken back, branched, kept in files, and of one model alone.

use std::fs;
use std::sync::Arc;

use mixtral_model::{
    Compute, Digest, Error, GenerateOptions, Generation, LayerRouters, Model, Sampling, Session,
    SessionOptions, Step, Wanted, Workspace, generate,
};
use moe_core::Locality;
use moe_kernels::{Activations, Backend, Dtype};
use moe_router::RouterSpec;
use proptest::prelude::*;

use crate::circumstances::shapes;
use crate::tiny::{Shape, bits, read};

/// The logits of what a session reads next, as bits.
fn next(model: &Model, session: &mut Session, ids: &[u32]) -> Vec<u32> {
    let step = Step::new(session, ids).wanted(Wanted::All);
    bits(&model.forward(&mut [step], &mut Workspace::new(), &mut ()).unwrap().to_owned())
}

fn digest(shape: &Shape) -> Digest {
    shape.checkpoint(|_, _| ()).digest().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    /// Whatever a session is taken back to, branched at or restored from, it goes on as one that read the same from the start.
    #[test]
    fn taken_back_branched_and_restored(
        shape in shapes(), length in 2usize..140, chunk in 1usize..50, cut in 0.0f64..1.0, dtype in 0usize..3,
    ) {
        let model = shape.model(Backend::best());
        let (ids, digest) = (shape.ids(length), digest(&shape));
        let options = SessionOptions::default().with_kv_dtype([Dtype::F32, Dtype::F16, Dtype::Bf16][dtype]);
        let mut session = model.session(options).unwrap();
        for chunk in ids.chunks(chunk) {
            next(&model, &mut session, chunk);
        }
        // What was read before does not matter: one has read something else meanwhile, one goes on from a failed pass.
        let more = Shape { seed: shape.seed ^ 1, ..shape.clone() }.ids(30);
        let expected = |kept: usize| {
            let text = [&ids[..kept], &more].concat();
            let all = read(&model, &text, &[kept, 30].into_iter().filter(|n| *n > 0).collect::<Vec<_>>(), options, &mut ());
            all[kept * shape.vocabulary..].to_vec()
        };
        prop_assert_eq!(next(&model, &mut session.try_clone().unwrap(), &more), expected(length));

        let at = (cut * length as f64) as usize;
        let earliest = session.earliest();
        prop_assert!(earliest == 0 || shape.window.is_some());
        let fork = session.fork(at);
        prop_assert_eq!(fork.is_ok(), at == 0 || at >= earliest, "{} of {}", at, earliest);
        if let Ok(mut fork) = fork {
            let saved = tempfile::tempdir().unwrap();
            let path = saved.path().join("session");
            fork.save(&model, &digest, &path).unwrap();
            let mut restored = model.restore(&digest, &path).unwrap();
            prop_assert_eq!(restored.tokens(), &ids[..at]);
            prop_assert_eq!(restored.kv_dtype(), options.kv_dtype);
            prop_assert_eq!(next(&model, &mut restored, &more), expected(at));
            prop_assert_eq!(next(&model, &mut fork, &more), expected(at));
            // The session itself is as it was.
            let mut same = session.try_clone().unwrap();
            prop_assert_eq!(next(&model, &mut same, &more), expected(length));
            session.truncate(at).unwrap();
            prop_assert_eq!(next(&model, &mut session, &more), expected(at));
        } else {
            let before = session.position();
            let refused = matches!(session.truncate(at), Err(Error::Setting { setting: "position", .. }));
            prop_assert!(refused && session.position() == before);
        }
        prop_assert!(session.truncate(session.position() + 1).is_err());
    }
}

#[test]
fn a_session_of_another_model_is_refused_though_it_has_the_same_shape() {
    let shape = Shape::plain();
    let (model, same) = (shape.model(Backend::best()), shape.model(Backend::best()));
    let other = Shape { seed: 2, ..shape.clone() }.model(Backend::best());
    let mut session = model.session(SessionOptions::default()).unwrap();
    next(&model, &mut session, &[1, 2, 3]);
    for stranger in [&same, &other] {
        let mut workspace = Workspace::new();
        let step = Step::new(&mut session, &[4]);
        let refused = stranger.forward(&mut [step], &mut workspace, &mut ()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "session: expected one that this model made, found one of another model"
        );
        let options = GenerateOptions::new(stranger, 3);
        assert!(Generation::new(stranger, &mut session, &[4], &options).is_err());
    }
    assert_eq!(session.position(), 3);
    // Other routers make no other model.
    let model = model.with_routers(|_| RouterSpec::build(&"dense".parse().unwrap()).unwrap());
    next(&model, &mut session, &[4]);
}

#[test]
fn only_a_whole_file_of_this_model_is_restored() {
    let shape = Shape { window: Some(9), ..Shape::plain() };
    let model = shape.model(Backend::best());
    let digest = digest(&shape);
    let options = SessionOptions::default().with_sequence_id(u64::MAX).with_seed(77).with_context(123);
    let mut session = model.session(options).unwrap();
    next(&model, &mut session, &shape.ids(40));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.safetensors");
    session.save(&model, &digest, &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let restored = model.restore(&digest, &path).unwrap();
    assert_eq!((restored.sequence_id(), restored.seed(), restored.context()), (u64::MAX, 77, 123));
    assert_eq!(restored.earliest(), 40);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("tokens").unwrap().shape(), [40]);
    assert_eq!(file.tensor("values.1").unwrap().shape(), [2, 8, 10], "what a window of nine still shows");

    let said = |model: &Model, digest: &Digest| model.restore(digest, &path).unwrap_err().to_string();
    let other = Shape { seed: 5, ..shape.clone() };
    let of_other = other.checkpoint(|_, _| ()).digest().unwrap();
    assert!(said(&model, &of_other).contains(&format!("expected checkpoint {of_other}, found {digest}")));
    let mut config = shape.config();
    config.rope_theta = 1e5;
    let checkpoint = shape.checkpoint(|_, _| ());
    assert!(
        said(&Model::load(config, &checkpoint, Backend::best()).unwrap(), &digest)
            .contains("expected config ")
    );
    let compute = Compute { activations: Activations::Bf16, ..Compute::default() };
    let rounded = Model::load(shape.config(), &checkpoint, compute).unwrap();
    assert!(said(&rounded, &digest).ends_with("expected activations bf16, found f32"));

    for at in (0..bytes.len()).step_by(61).chain([bytes.len() - 1]) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        match model.restore(&digest, &path) {
            Err(_) => {}
            // The number of a setting is as good as another.
            Ok(found) => assert_eq!(found.tokens(), session.tokens(), "byte {at}"),
        }
        fs::write(&path, &bytes[..at]).unwrap();
        assert!(model.restore(&digest, &path).is_err(), "{at} bytes");
    }
    assert!(matches!(model.restore(&digest, dir.path()), Err(Error::Checkpoint { .. })));
    assert!(matches!(model.restore(&digest, &dir.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn an_error_names_its_step() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let mut sessions = [(); 3].map(|()| model.session(SessionOptions::default().with_context(8)).unwrap());
    let mut workspace = Workspace::new();
    let too_few = Arc::new(LayerRouters::new(&model));
    for (tokens, said) in [
        (&[][..], "step 1: prompt: expected at least one token, found none"),
        (&[99], "step 1: token id 99: expected less than 61"),
        (&[1; 9], "step 1: context: expected at most 8 positions, found 9"),
    ] {
        let [a, b, c] = &mut sessions;
        let mut steps =
            [Step::new(a, &[1, 2]), Step::new(b, tokens), Step::new(c, &[3]).with_routers(&too_few)];
        let error = model.forward(&mut steps, &mut workspace, &mut ()).unwrap_err();
        assert_eq!(error.to_string(), said);
        assert!(matches!(error, Error::Step { step: 1, .. }));
    }
    // A value that is not finite is of the token of that step.
    let spoil = |name: &str, values: &mut [f32]| {
        if name == "model.embed_tokens.weight" {
            values[7 * 37] = f32::NAN;
        }
    };
    let bad = Model::load(shape.config(), &shape.checkpoint(spoil), Backend::best()).unwrap();
    let mut sessions = [(); 3].map(|()| bad.session(SessionOptions::default()).unwrap());
    let [a, b, c] = &mut sessions;
    let mut steps = [Step::new(a, &[1, 2]), Step::new(b, &[3, 7, 4]), Step::new(c, &[3])];
    let error = bad.forward(&mut steps, &mut workspace, &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "step 1: layer 0, attention: token 1: expected finite values, found NaN");
    // One alone is not numbered.
    let error = bad.forward(&mut [Step::new(b, &[3, 7, 4])], &mut workspace, &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "layer 0, attention: token 1: expected finite values, found NaN");
}

/// Sessions under routers of their own, together and alone, on any threads: the same bits, whatever the routers' locality.
#[test]
fn routers_of_sessions() {
    let shape = Shape { layers: 3, window: Some(40), ..Shape::plain() };
    let model = shape.model(Backend::best());
    let parse = |text: &str| Arc::new(LayerRouters::parse(&model, text).unwrap());
    let texts = [
        "top-k:k=2",
        "0-1@top-k:k=1;2@dense",
        "expert-choice:capacity=1.0",
        "gaussian-noise(top-k:k=2):std=1.0",
        "1@capped(top-k:k=2):factor=0.5",
    ];
    let routers = texts.map(parse);
    let localities = routers.each_ref().map(|routers| routers.locality(&model));
    let (token, batch) = (Locality::Token, Locality::Batch);
    assert_eq!(localities, [token, token, batch, token, batch]);
    let session = |n: usize| {
        let options = SessionOptions::default().with_seed(n as u64 + 5).with_sequence_id(n as u64);
        model.session(options).unwrap()
    };
    let ids = |n: usize| Shape { seed: n as u64, ..shape.clone() }.ids(20 + 3 * n);
    let alone: Vec<_> = (0..texts.len())
        .map(|n| {
            let (mut session, ids) = (session(n), ids(n));
            let step = Step::new(&mut session, &ids).wanted(Wanted::All).with_routers(&routers[n]);
            bits(&model.forward(&mut [step], &mut Workspace::new(), &mut ()).unwrap().to_owned())
        })
        .collect();
    // The first is the model itself; the others are not.
    assert_eq!(alone[0], read(&model, &ids(0), &[20], SessionOptions::default(), &mut ()));
    for n in 1..texts.len() {
        let length = ids(n).len();
        assert_ne!(alone[n], read(&model, &ids(n), &[length], SessionOptions::default(), &mut ()), "{n}");
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let all: Vec<_> = (0..texts.len()).map(ids).collect();
        let mut sessions: Vec<_> = (0..texts.len()).map(session).collect();
        let steps = sessions.iter_mut().zip(&all).zip(&routers);
        let mut steps: Vec<_> = steps
            .map(|((session, ids), routers)| {
                Step::new(session, ids).wanted(Wanted::All).with_routers(routers)
            })
            .collect();
        let together = pool
            .install(|| bits(&model.forward(&mut steps, &mut Workspace::new(), &mut ()).unwrap().to_owned()));
        assert_eq!(together, alone.concat(), "{threads} threads");
    }
    // Those of token locality do not mind chunks and company either, noise included: it is drawn for positions.
    for n in [0, 1, 3] {
        let (mut session, ids, mut found) = (session(n), ids(n), Vec::new());
        let mut other = model.session(SessionOptions::default()).unwrap();
        for chunk in ids.chunks(7) {
            let mut steps = [
                Step::new(&mut other, &[1, 2]).wanted(Wanted::None),
                Step::new(&mut session, chunk).wanted(Wanted::All).with_routers(&routers[n]),
            ];
            found
                .extend(bits(&model.forward(&mut steps, &mut Workspace::new(), &mut ()).unwrap().to_owned()));
        }
        assert_eq!(found, alone[n], "{}", texts[n]);
    }
}

#[test]
fn seeds_and_identities_of_sessions_reach_drawing_routers() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let noisy = LayerRouters::parse(&model, "gaussian-noise(top-k:k=2):std=2.0").unwrap();
    let ids = shape.ids(30);
    let found = |seed, id| {
        let options = SessionOptions::default().with_seed(seed).with_sequence_id(id);
        let mut session = model.session(options).unwrap();
        let step = Step::new(&mut session, &ids).wanted(Wanted::All).with_routers(&noisy);
        bits(&model.forward(&mut [step], &mut Workspace::new(), &mut ()).unwrap().to_owned())
    };
    assert_eq!(found(1, 1), found(1, 1));
    assert_ne!(found(1, 1), found(2, 1));
    assert_ne!(found(1, 1), found(1, 2));
}

#[test]
fn texts_of_routers() {
    let shape = Shape { layers: 4, ..Shape::plain() };
    let model = shape.model(Backend::best());
    for (text, layers) in [
        ("top-k:k=1", &[0, 1, 2, 3][..]),
        ("3@dense", &[3]),
        ("0-1,3@dense", &[0, 1, 3]),
        (" 1 - 2 @dense;0@top-k:k=1", &[0, 1, 2]),
    ] {
        let routers = LayerRouters::parse(&model, text).unwrap();
        let found: Vec<_> = (0..5).filter(|&layer| routers.at(layer).is_some()).collect();
        assert_eq!(found, layers, "{text}");
    }
    for (text, said) in [
        ("4@dense", "layer: expected a number below 4, found 4"),
        ("1-9@dense", "layer: expected a number below 4, found 9"),
        ("2-1@dense", "router: expected a layer, or the first and the last"),
        ("@dense", "router: expected a layer"),
        ("dense;1@dense", "router: expected LAYERS@SPEC"),
        ("1@dense;1@top-k:k=1", "found layer 1 twice"),
        ("1@dense;", "router: expected LAYERS@SPEC"),
        ("no-such", "router"),
        ("", "router"),
        ("top-k:k=6", "layer 0, router"),
    ] {
        let error = LayerRouters::parse(&model, text).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

/// Several generations, each joining and leaving the passes of the others, are those that run alone.
#[test]
fn generations_share_passes() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let routers = Arc::new(LayerRouters::parse(&model, "0@top-k:k=1").unwrap());
    let options = |n: usize| {
        let sampling = Sampling::greedy().with_temperature(1.5).unwrap().with_seed(n as u64);
        GenerateOptions::new(&model, 3 + 4 * n).with_sampling(sampling).with_chunk(1 + n)
    };
    let begin = |n: usize| {
        let session = model.session(SessionOptions::default()).unwrap();
        let generation = Generation::new(&model, session, &shape.ids(2 + n), &options(n)).unwrap();
        if n % 2 == 1 { generation.with_routers(&model, routers.clone()) } else { generation }
    };
    let mut workspace = Workspace::new();
    let alone: Vec<_> = (0..5)
        .map(|n| {
            let mut generation = begin(n);
            while let Some(step) = generation.step() {
                let logits = model.forward(&mut [step], &mut workspace, &mut ()).unwrap();
                generation.take(logits.as_slice().unwrap()).unwrap();
            }
            (generation.ended(), generation.into_parts().1)
        })
        .collect();
    let mut session = model.session(SessionOptions::default()).unwrap();
    let go_on = |_| Ok::<_, Error>(std::ops::ControlFlow::Continue(()));
    let zero = generate(&model, &mut session, &shape.ids(2), &options(0), &mut workspace, &mut (), go_on);
    assert_eq!(zero.unwrap().tokens, alone[0].1);

    let mut generations: Vec<_> = (0..5).map(begin).collect();
    for round in 0.. {
        let mut who = Vec::new();
        let mut steps = Vec::new();
        for (n, generation) in generations.iter_mut().enumerate().take(1 + round) {
            if let Some(step) = generation.step() {
                who.push((n, step.wanted));
                steps.push(step);
            }
        }
        if steps.is_empty() {
            break;
        }
        let logits = model.forward(&mut steps, &mut workspace, &mut ()).unwrap();
        let mut rows = logits.rows().into_iter();
        for (n, wanted) in who {
            let row = if wanted == Wanted::Last { rows.next().unwrap().to_vec() } else { Vec::new() };
            generations[n].take(&row).unwrap();
        }
    }
    let together: Vec<_> =
        generations.into_iter().map(|generation| (generation.ended(), generation.into_parts().1)).collect();
    assert_eq!(together, alone);
    assert!(alone.iter().enumerate().all(|(n, (_, tokens))| tokens.len() == 3 + 4 * n));
}

#[test]
fn a_prompt_under_routers_that_look_around_is_one_step() {
    let shape = Shape::plain();
    let model = shape.model(Backend::best());
    let options = GenerateOptions::new(&model, 2).with_chunk(3);
    let session = || model.session(SessionOptions::default()).unwrap();
    let choice = Arc::new(LayerRouters::parse(&model, "1@expert-choice:capacity=1.0").unwrap());
    let ids = shape.ids(10);
    let mut generation = Generation::new(&model, session(), &ids, &options).unwrap();
    assert_eq!((generation.is_alone(), generation.step().unwrap().tokens.len()), (false, 3));
    let mut generation = generation.with_routers(&model, choice);
    assert_eq!((generation.is_alone(), generation.step().unwrap().tokens.len()), (true, 10));
    let build = |_| RouterSpec::build(&"expert-choice:capacity=1.0".parse().unwrap()).unwrap();
    let own = shape.model(Backend::best()).with_routers(build);
    assert_eq!(own.locality(), Locality::Batch);
    let session = own.session(SessionOptions::default()).unwrap();
    let mut generation = Generation::new(&own, session, &ids, &options).unwrap();
    assert_eq!((generation.is_alone(), generation.step().unwrap().tokens.len()), (true, 10));
}
