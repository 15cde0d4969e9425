//! The routing lab: comparisons that come to what single runs come to, files that come back, and traces that route as recorded.

use std::ops::ControlFlow;
use std::sync::Arc;

use mixtral_model::lab::{
    CompareOptions, Comparison, ExpertBytes, LogitsFile, NewTrace, RegretOptions, ablate, against, compare,
    record_trace, regret, save_logits, trace_header,
};
use mixtral_model::{
    Error, LayerRouters, Model, Observed, Observer, Perplexity, PerplexityOptions, SessionOptions, Step,
    Workspace, perplexity,
};
use moe_core::{Locality, Routed};
use moe_kernels::{Backend, Dtype};
use moe_router::RouterSpec;
use moe_router::trace::{Replay, ReplayWeights, TraceDiff, TraceReader, TraceStats};
use ndarray::ArrayView2;

use crate::tiny::Shape;

const SPECS: [&str; 6] = [
    "top-k:k=2",
    "top-k:k=1",
    "0@dense",
    "capped(top-k:k=2):factor=0.5",
    "expert-choice:capacity=1.0",
    "gaussian-noise(top-k:k=2):std=1.0",
];

fn spec(text: &str) -> RouterSpec {
    text.parse().unwrap()
}

fn shape() -> Shape {
    Shape { layers: 3, dtype: Dtype::F32, window: Some(30), ..Shape::plain() }
}

fn routers(model: &Model) -> Vec<(String, LayerRouters)> {
    SPECS.iter().map(|spec| ((*spec).to_owned(), LayerRouters::parse(model, spec).unwrap())).collect()
}

fn measured(model: &Model, ids: &[u32], options: &PerplexityOptions) -> Perplexity {
    let mut session = model.session(SessionOptions::default().with_seed(3)).unwrap();
    let go_on = |_| ControlFlow::Continue(());
    perplexity(model, &mut session, ids, options, &mut Workspace::new(), &mut (), go_on).unwrap()
}

#[test]
fn a_row_is_what_the_model_comes_to_under_its_routers() {
    let shape = shape();
    let model = shape.model(Backend::best());
    let bytes = ExpertBytes::of(&shape.checkpoint(|_, _| ()), model.config()).unwrap();
    assert_eq!((bytes.at(0, 0), bytes.at(2, 4), bytes.at(3, 0)), (3 * 37 * 29 * 4, 3 * 37 * 29 * 4, 0));
    let ids = shape.ids(150);
    for (window, chunk) in [(50, 50), (50, 7), (37, 100)] {
        let windows = PerplexityOptions::new(window).with_chunk(chunk);
        let session = SessionOptions::default().with_seed(3);
        let options = CompareOptions::new(windows).with_session(session);
        let all = routers(&model);
        let go_on = |_, _| ControlFlow::Continue(());
        let found = compare(&model, &ids, &options, &all, &bytes, &mut (), go_on).unwrap();
        assert!(!found.stopped);
        assert_eq!(found.windows, windows.windows(150).count());
        assert_eq!(found.routings.len(), 1 + SPECS.len());
        let own = measured(&model, &ids, &windows);
        assert_eq!(found.routings[0].nll, own.by_window);
        for (routing, spec) in found.routings[1..].iter().zip(SPECS) {
            let mut other = shape.model(Backend::best());
            other.set_routers(&LayerRouters::parse(&other, spec).unwrap()).unwrap();
            let alone = measured(&other, &ids, &windows);
            assert_eq!(routing.nll, alone.by_window, "{spec}");
            let expected = alone.mean() - own.mean();
            assert!((routing.nll_difference.mean() - expected).abs() < 1e-9, "{spec}");
            assert_eq!((routing.locality, &*routing.name), (other.locality(), spec));
            let (kl, same_top) = (routing.kl.mean(), routing.same_top.mean());
            if spec == "top-k:k=2" {
                assert_eq!((kl, same_top, expected), (0.0, 1.0, 0.0), "the model itself");
            } else {
                assert!(kl > 0.0 && same_top < 1.0, "{spec}: {kl} {same_top}");
            }
        }
        let cost = |n: usize| &found.routings[n].cost;
        assert_eq!((cost(0).experts_per_token(), cost(2).experts_per_token()), (2.0, 1.0));
        assert_eq!(cost(3).experts_per_token(), (5.0 + 2.0 + 2.0) / 3.0);
        assert_eq!(cost(1).drop_rate(), 0.0);
        assert!(cost(4).drop_rate() > 0.1, "{}", cost(4).drop_rate());
        assert!(cost(0).load_max_over_mean() >= 1.0 && cost(0).load_cv() >= 0.0);
        assert_eq!(cost(5).load_cv(), 0.0, "expert choice fills every expert alike");
        let pass = cost(0).distinct_experts() * 3.0 * f64::from(3 * 37 * 29 * 4);
        assert!((cost(0).bytes_per_pass() / pass - 1.0).abs() < 1e-12);
        let localities: Vec<_> = found.routings.iter().map(|routing| routing.locality).collect();
        let (token, batch) = (Locality::Token, Locality::Batch);
        assert_eq!(localities, [token, token, token, token, batch, batch, token]);
    }
}

#[test]
fn what_was_finished_is_there_when_it_is_stopped() {
    let shape = shape();
    let model = shape.model(Backend::best());
    let bytes = ExpertBytes::of(&shape.checkpoint(|_, _| ()), model.config()).unwrap();
    let ids = shape.ids(100);
    let options = CompareOptions::new(PerplexityOptions::new(25));
    let all = routers(&model);
    let run = |observer: &mut dyn Observer, ends: usize| {
        let mut calls = 0;
        let done = |_, _| {
            calls += 1;
            if calls == ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        compare(&model, &ids, &options, &all, &bytes, observer, done).unwrap()
    };
    let figures = |found: &Comparison<'_>| {
        let of = |r: &mixtral_model::lab::Routing<'_>| {
            (r.nll.clone(), r.kl.clone(), r.cost.load().to_vec(), r.tokens)
        };
        found.routings.iter().map(of).collect::<Vec<_>>()
    };
    let rows = 1 + SPECS.len();
    let two = run(&mut (), 2 * rows);
    assert_eq!((two.windows, two.stopped), (2, true));
    // In the midst of the third window: that is as if it had not begun.
    let more = run(&mut (), 2 * rows + 3);
    assert_eq!((more.windows, more.stopped), (2, true));
    assert_eq!(figures(&more), figures(&two));
    let whole = run(&mut (), 4 * rows);
    assert_eq!((whole.windows, whole.stopped), (4, false), "the last of all leaves nothing out");

    struct StopAfter(usize);
    impl Observer for StopAfter {
        fn layer_done(&mut self, _: usize, _: ArrayView2<'_, f32>) -> Observed<ControlFlow<()>> {
            self.0 -= 1;
            Ok(if self.0 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        }
    }
    let stopped = run(&mut StopAfter(3 * (2 * rows + 1) + 2), usize::MAX);
    assert_eq!((stopped.windows, stopped.stopped), (2, true));
    assert_eq!(figures(&stopped), figures(&two));
}

#[test]
fn predictions_kept_in_a_file() {
    let shape = shape();
    let (model, ids) = (shape.model(Backend::best()), shape.ids(170));
    let mut other = shape.model(Backend::best());
    other.set_routers(&LayerRouters::parse(&other, "top-k:k=1").unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logits");
    let session = || model.session(SessionOptions::default()).unwrap();
    let options = PerplexityOptions::llama_cpp(40, None).with_chunk(9);
    let mut workspace = Workspace::new();
    let saved = save_logits(&model, &mut session(), &ids, &options, &path, &mut workspace, &mut ()).unwrap();
    // Four windows of forty, of each the tokens 21 to 39.
    assert_eq!((saved.predicted, saved.stopped), (4 * 19, false));
    assert_eq!(saved, measured(&model, &ids, &options));
    let file = LogitsFile::open(&path).unwrap();
    assert_eq!((file.window(), file.vocabulary(), file.tokens()), (40, 61, &ids[..160]));

    let run = |model: &Model| {
        let (mut session, mut file) =
            (model.session(SessionOptions::default()).unwrap(), LogitsFile::open(&path).unwrap());
        against(model, &mut session, &mut file, &mut Workspace::new(), &mut ()).unwrap()
    };
    let (found, itself) = run(&model);
    assert_eq!(found, saved);
    assert!(itself.kl().mean.abs() < 1e-4, "{:?}", itself.kl());
    assert!((itself.baseline_nll().mean - saved.mean()).abs() < 1e-3);
    let (_, differs) = run(&other);
    assert_eq!(differs.count(), 76);
    // The same by comparing in memory.
    let bytes = ExpertBytes::of(&shape.checkpoint(|_, _| ()), model.config()).unwrap();
    let one = [("top-k:k=1".to_owned(), LayerRouters::parse(&model, "top-k:k=1").unwrap())];
    let in_memory = compare(&model, &ids, &CompareOptions::new(options), &one, &bytes, &mut (), |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let kl = in_memory.routings[1].kl.mean();
    assert!((differs.kl().mean / kl - 1.0).abs() < 2e-3, "{:?} {kl}", differs.kl());
    assert!((differs.same_top().mean - in_memory.routings[1].same_top.mean()).abs() < 1e-12);

    // What is no file of this kind, or of another model.
    let small = Shape { vocabulary: 60, ..shape.clone() }.model(Backend::best());
    let mut session = small.session(SessionOptions::default()).unwrap();
    let mut file = LogitsFile::open(&path).unwrap();
    let refused = against(&small, &mut session, &mut file, &mut workspace, &mut ()).unwrap_err().to_string();
    assert!(refused.ends_with("expected a vocabulary of 60, found 61"), "{refused}");
    assert!(matches!(LogitsFile::open(dir.path()), Err(Error::Checkpoint { .. })));
}

/// Of every routing: its layer, and the pairs with the bits of their weights.
#[derive(Default)]
struct Seen(Vec<(usize, Vec<[u32; 3]>)>);

impl Observer for Seen {
    fn routed(&mut self, routed: &Routed<'_>) -> Observed {
        let plan = routed.plan;
        let pairs = plan.row_tokens().iter().zip(plan.row_experts()).zip(plan.row_weights());
        let pairs = pairs.map(|((&token, &expert), weight)| [token, expert, weight.to_bits()]).collect();
        self.0.push((routed.layer, pairs));
        Ok(())
    }
}

#[test]
fn a_recorded_run_is_replayed_to_the_bit() {
    let shape = shape();
    let ids = shape.ids(120);
    let dir = tempfile::tempdir().unwrap();
    for (n, spec) in SPECS.iter().enumerate() {
        let mut model = shape.model(Backend::best());
        model.set_routers(&LayerRouters::parse(&model, spec).unwrap()).unwrap();
        // One at a time is decoding; expert choice reads windows at once.
        for chunk in [40, 1] {
            let options = PerplexityOptions::new(40).with_chunk(chunk);
            let path = dir.path().join(format!("{n}-{chunk}"));
            let mut session = model.session(SessionOptions::default().with_seed(3)).unwrap();
            let (mut workspace, mut seen) = (Workspace::new(), Seen::default());
            let header = trace_header(&model);
            let recorded = record_trace(
                &model,
                &mut session,
                &ids,
                &options,
                NewTrace { path: &path, header: &header },
                &mut workspace,
                &mut seen,
            )
            .unwrap();
            assert_eq!(recorded, measured(&model, &ids, &options), "recording changes nothing");

            let file = std::fs::read(&path).unwrap();
            let replay = Arc::new(Replay::read(&file[..], ReplayWeights::Recorded).unwrap());
            let mut again = shape.model(Backend::best());
            again.set_routers(&LayerRouters::all(&again, replay).unwrap()).unwrap();
            let other = dir.path().join("again");
            let mut session = again.session(SessionOptions::default()).unwrap();
            let mut replayed = Seen::default();
            let header = trace_header(&again);
            let found = record_trace(
                &again,
                &mut session,
                &ids,
                &options,
                NewTrace { path: &other, header: &header },
                &mut workspace,
                &mut replayed,
            )
            .unwrap();
            // Expert choice too, which is of the tokens alone once it is recorded: what it gave a window, decoding gives.
            assert_eq!(found, recorded, "{spec}");
            if chunk == 40 || model.locality() == Locality::Token {
                assert_eq!(replayed.0, seen.0, "{spec}");
            }
            let mut open =
                [&path, &other].map(|path| TraceReader::new(std::fs::File::open(path).unwrap()).unwrap());
            let [one, two] = &mut open;
            if chunk == 40 {
                let diff = TraceDiff::read(one, two).unwrap();
                assert_eq!(diff.first_difference, None, "{spec}");
                assert!(
                    diff.layers.iter().all(|layer| (layer.choices.tokens(), layer.same_pairs) == (117, 117))
                );
            }
            let stats = TraceStats::read(&mut TraceReader::new(&file[..]).unwrap()).unwrap();
            let alone = chunk == 1 && model.locality() == Locality::Token;
            assert_eq!((stats.tokens, stats.prefill_tokens), (117, if alone { 0 } else { 117 }), "{spec}");
            assert_eq!(stats.steps, if alone { 117 } else { 3 });
        }
    }
    // What an observer cannot write ends the work, and leaves nothing.
    struct Broken;
    impl Observer for Broken {
        fn routed(&mut self, routed: &Routed<'_>) -> Observed {
            if routed.layer == 1 { Err("no room".into()) } else { Ok(()) }
        }
    }
    let model = shape.model(Backend::best());
    let path = dir.path().join("broken");
    let mut session = model.session(SessionOptions::default()).unwrap();
    let (options, header) = (PerplexityOptions::new(40), trace_header(&model));
    let mut workspace = Workspace::new();
    let failed = record_trace(
        &model,
        &mut session,
        &ids,
        &options,
        NewTrace { path: &path, header: &header },
        &mut workspace,
        &mut Broken,
    )
    .unwrap_err();
    assert!(matches!(&failed, Error::Observer { .. }), "{failed:?}");
    assert_eq!((failed.to_string(), path.exists(), session.position()), ("no room".to_owned(), false, 0));
}

#[test]
fn a_model_without_one_expert() {
    let shape = Shape { layers: 2, experts: 4, ..shape() };
    let model = shape.model(Backend::best());
    let bytes = ExpertBytes::of(&shape.checkpoint(|_, _| ()), model.config()).unwrap();
    let (ids, windows) = (shape.ids(60), PerplexityOptions::new(30));
    let go_on = |_, _| ControlFlow::Continue(());
    let options = CompareOptions::new(windows);
    let found = ablate(&model, &ids, &options, &spec("top-k:k=2"), &bytes, &mut (), go_on).unwrap();
    assert_eq!((found.experts.len(), found.windows, found.stopped), (8, 2, false));
    let own = measured(&model, &ids, &windows);
    assert_eq!(found.nll, own.by_window);
    for (n, without) in found.experts.iter().enumerate() {
        assert_eq!((without.layer, without.expert), (n / 4, n % 4));
        struct Without(usize);
        impl moe_core::Router for Without {
            fn route(
                &self,
                input: &moe_core::RouteInput<'_>,
                out: &mut moe_core::Assignments,
            ) -> moe_core::Result<()> {
                let mut logits = input.logits.to_owned();
                logits.column_mut(self.0).fill(f32::NEG_INFINITY);
                let masked = moe_core::RouteInput::new(logits.view(), input.context)?;
                moe_router::TopK::new(2)?.route(&masked, out)
            }

            fn locality(&self) -> Locality {
                Locality::Token
            }
        }
        let mut other = shape.model(Backend::best());
        other.replace_router(n / 4, Box::new(Without(n % 4))).unwrap();
        let alone = measured(&other, &ids, &windows);
        assert!((without.nll_difference.mean() - (alone.mean() - own.mean())).abs() < 1e-9, "{n}");
        assert!(without.kl.mean() > 0.0 && without.same_top.mean() <= 1.0);
    }
}

#[test]
fn what_a_router_could_have_done() {
    for window in [None, Some(9)] {
        let shape = Shape { layers: 2, experts: 4, window, ..shape() };
        let model = shape.model(Backend::best());
        let ids = shape.ids(41);
        // The losses of the model itself, token by token.
        let mut session = model.session(SessionOptions::default()).unwrap();
        let mut losses = Vec::new();
        let each = |scored: mixtral_model::Scored| {
            losses.push(scored.nll);
            ControlFlow::Continue(())
        };
        let options = PerplexityOptions::new(41);
        perplexity(&model, &mut session, &ids, &options, &mut Workspace::new(), &mut (), each).unwrap();
        for layer in 0..2 {
            let mut found = Vec::new();
            regret(&model, &ids, &RegretOptions::new(layer, spec("top-k:k=2")).every(4), &mut (), |one| {
                found.push(one);
                true
            })
            .unwrap();
            assert_eq!(
                found.iter().map(|one| one.position).collect::<Vec<_>>(),
                [3, 7, 11, 15, 19, 23, 27, 31, 35, 39]
            );
            for one in &found {
                assert_eq!((one.token, one.next), (ids[one.position], ids[one.position + 1]));
                assert!((one.own.nll - losses[one.position]).abs() < 1e-12);
                let sets: Vec<_> = one.all.iter().map(|tried| &*tried.experts).collect();
                assert_eq!(sets, [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]);
                let same = one.all.iter().find(|tried| tried.experts == one.own.experts).unwrap();
                assert_eq!(same, &one.own, "the router's choice by force is the router's choice");
                assert!(one.regret() >= 0.0 && one.all.iter().all(|tried| tried.nll >= one.best().nll));
                assert_eq!(one.rank() == 0, one.regret() == 0.0);
            }
            // Of one set in six, the first two by force: the loss of a model that routes this token so.
            let one = &found[0];
            let mut session = model.session(SessionOptions::default()).unwrap();
            let mut workspace = Workspace::new();
            let before = &ids[..one.position];
            model.forward(&mut [Step::new(&mut session, before)], &mut workspace, &mut ()).unwrap();
            let forced =
                LayerRouters::parse(&model, &format!("{layer}@steered(top-k:k=2):off=[2,3]")).unwrap();
            let token = [ids[one.position]];
            let step = Step::new(&mut session, &token).with_routers(&forced);
            let logits = model.forward(&mut [step], &mut workspace, &mut ()).unwrap().row(0).to_vec();
            let top = logits.iter().copied().fold(f32::MIN, f32::max) as f64;
            let sum: f64 = logits.iter().map(|&l| (f64::from(l) - top).exp()).sum();
            let nll = top + sum.ln() - f64::from(logits[one.next as usize]);
            assert!((one.all[0].nll - nll).abs() < 1e-9);
        }
        let refused = |layer, router: &str, every| {
            let found =
                regret(&model, &ids, &RegretOptions::new(layer, spec(router)).every(every), &mut (), |_| {
                    true
                });
            found.unwrap_err().to_string()
        };
        assert_eq!(refused(2, "top-k:k=2", 1), "layer: expected a number below 2, found 2");
        assert_eq!(refused(0, "top-k:k=2", 0), "every: expected 1 or more, found 0");
        assert!(
            refused(0, "top-p:p=0.5", 1)
                .starts_with("router: expected one that takes all experts of as many")
        );
        assert!(
            refused(0, "expert-choice:capacity=1.0", 1)
                .starts_with("router: expected routing of each token by itself")
        );
    }
}
