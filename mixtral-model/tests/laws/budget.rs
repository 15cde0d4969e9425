//! Experts that come from the disk when they are wanted: the same bits whatever the budget, and errors that leave sessions as they were.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use mixtral_model::{
    Access, Checkpoint, Compute, DiskReads, Error, ExpertPrior, Forecast, LayerRouters, Loader, MemoryPlan,
    MemoryUse, Model, ReadAhead, Session, SessionOptions, Step, Wanted, Workspace,
};
use moe_core::expert_cache::{CachePolicy, ExpertCache, ExpertSizes, LayerAccess, simulate};
use moe_kernels::{Activations, Backend, Dtype};
use moe_router::trace::{TokenRoute, TraceReader, TraceWriter};

use crate::tiny::{Shape, bits, read};

const POLICIES: [&str; 5] = ["lru", "lru-per-layer", "lfu", "lfu-per-layer:age=3", "least-stale"];

fn shape() -> Shape {
    Shape { layers: 3, hidden: 64, ffn: 96, ..Shape::plain() }
}

/// The shape's weights in a file.
struct OnDisk {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl OnDisk {
    fn new(shape: &Shape) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, shape.safetensors(&shape.tensors(|_, _| ()))).unwrap();
        Self { _dir: dir, path }
    }

    fn open(&self, access: Access) -> Checkpoint {
        Checkpoint::open_path(&self.path, access).unwrap()
    }
}

/// A plan with so many bytes for experts that stay.
fn plan(shape: &Shape, checkpoint: &Checkpoint, experts: u64, policy: &str) -> MemoryPlan {
    let uses = MemoryUse::default();
    let mut plan = MemoryPlan::new(&shape.config(), checkpoint, &uses, 1 << 40).unwrap();
    assert_eq!((plan.experts, plan.streamed), (plan.all_experts, 0), "all of them fit");
    plan.experts = experts;
    plan.with_policy(policy.parse().unwrap())
}

fn within(shape: &Shape, checkpoint: &Checkpoint, experts: u64, policy: &str, compute: Compute) -> Model {
    ahead(shape, checkpoint, experts, policy, compute, ReadAhead::default())
}

fn ahead(
    shape: &Shape,
    checkpoint: &Checkpoint,
    experts: u64,
    policy: &str,
    compute: Compute,
    read_ahead: ReadAhead,
) -> Model {
    let plan = plan(shape, checkpoint, experts, policy).with_read_ahead(read_ahead);
    Loader::new(shape.config(), checkpoint, compute).within(&plan).unwrap().load().unwrap()
}

#[test]
fn any_budget_gives_the_same_bits() {
    for (dtype, activations) in [
        (Dtype::F32, Activations::F32),
        (Dtype::F16, Activations::F32),
        (Dtype::Bf16, Activations::F32),
        (Dtype::Bf16, Activations::Bf16),
    ] {
        let shape = Shape { dtype, ..shape() };
        let compute = Compute { activations, ..Compute::default() };
        let disk = OnDisk::new(&shape);
        let whole = Model::load(shape.config(), &disk.open(Access::Map), compute).unwrap();
        let ids = shape.ids(60);
        let expected = |pieces: &[usize]| read(&whole, &ids, pieces, SessionOptions::default(), &mut ());
        let decode = [vec![20], vec![1; 40]].concat();
        let (prefilled, decoded) = (expected(&[60]), expected(&decode));
        let one = plan(&shape, &disk.open(Access::Map), 0, "lru").largest_expert;
        for access in [Access::Uncached, Access::Map] {
            for experts in [0, one - 1, one, 2 * one, 5 * one, 11 * one, 15 * one] {
                // Each policy once.
                let policies = if dtype == Dtype::F16 { &POLICIES[..] } else { &POLICIES[4..] };
                for policy in policies {
                    let model = within(&shape, &disk.open(access), experts, policy, compute);
                    let found =
                        |pieces: &[usize]| read(&model, &ids, pieces, SessionOptions::default(), &mut ());
                    assert_eq!(found(&[60]), prefilled, "{dtype} {access:?} {experts} {policy}");
                    let chunk = model.expert_cache().unwrap();
                    assert_eq!((chunk.requests, chunk.reads), (15, 15), "every expert once a chunk");
                    assert_eq!(found(&decode), decoded, "{dtype} {access:?} {experts} {policy}");
                    let found = model.expert_cache().unwrap();
                    assert!(found.peak <= experts && found.resident <= found.peak, "{found:?}");
                    assert_eq!(found.reads, found.requests - found.hits);
                    assert_eq!(found.bytes_read, found.reads * 3 * 64 * 96 * dtype.bytes() as u64);
                    assert!(found.hits <= found.bound.unwrap() || experts == 0, "{found:?}");
                    if experts == 15 * one {
                        assert_eq!(found.reads, 15, "all of them stay");
                    }
                    assert_eq!(model.products(), whole.products());
                }
            }
        }
    }
}

/// What is read before the router has spoken changes neither bits nor hits, and some of it is wanted.
#[test]
fn reading_ahead_changes_nothing() {
    let shape = shape();
    let disk = OnDisk::new(&shape);
    let whole = shape.model(Backend::best());
    let (ids, pieces) = (shape.ids(150), [vec![30], vec![1; 80], vec![3; 12], vec![4]].concat());
    let expected = read(&whole, &ids, &pieces, SessionOptions::default(), &mut ());
    let one = plan(&shape, &disk.open(Access::Uncached), 0, "lru").largest_expert;
    for access in [Access::Uncached, Access::Map] {
        for experts in [0, 1, 3, 6, 9, 14, 15] {
            let [on, measured, off] =
                [ReadAhead::On, ReadAhead::Measured, ReadAhead::Off].map(|read_ahead| {
                    let (compute, policy) = (Compute::default(), POLICIES[experts as usize % 5]);
                    let model = ahead(&shape, &disk.open(access), experts * one, policy, compute, read_ahead);
                    let found = read(&model, &ids, &pieces, SessionOptions::default(), &mut ());
                    assert_eq!(found, expected, "{access:?} {experts} {read_ahead:?}");
                    model.expert_cache().unwrap()
                });
            for with in [&on, &measured] {
                assert_eq!((with.requests, with.hits), (off.requests, off.hits), "{experts}");
                assert_eq!((with.reads, with.bytes_read), (off.reads, off.bytes_read), "{experts}");
                assert!(with.ahead_wanted <= with.ahead && with.disk_bytes >= with.bytes_read, "{with:?}");
            }
            assert_eq!((off.ahead, off.ahead_wanted, off.ahead_pays), (0, 0, None));
            assert!(on.ahead_wanted > 0 && on.ahead_pays.is_none(), "{experts}: {on:?}");
            let less = measured.ahead < on.ahead || experts >= 14;
            assert!(measured.ahead_pays.is_some() && less, "{measured:?} {on:?}");
        }
    }
}

/// The simulator, given what was routed, foretells every hit.
#[test]
fn the_engine_hits_what_the_simulator_says() {
    let shape = shape();
    let disk = OnDisk::new(&shape);
    let checkpoint = disk.open(Access::Uncached);
    let one = plan(&shape, &checkpoint, 0, "lru").largest_expert;
    let (ids, pieces) = (shape.ids(80), [vec![7, 13], vec![1; 60]].concat());
    for policy in POLICIES {
        for kept in [1, 3, 6, 10] {
            let model = within(&shape, &checkpoint, kept * one, policy, Compute::default());
            let header = mixtral_model::lab::trace_header(&model);
            let mut recorder =
                mixtral_model::lab::TraceRecorder::new(TraceWriter::new(Vec::new(), &header).unwrap());
            read(&model, &ids, &pieces, SessionOptions::default(), &mut recorder);
            let trace = recorder.into_inner().finish().unwrap();
            let mut reader = TraceReader::new(&trace[..]).unwrap();
            let (mut uses, mut route) = (Vec::<(u64, usize, Vec<u32>)>::new(), TokenRoute::default());
            while reader.next(&mut route).unwrap() {
                let place = (u64::from(route.step), usize::from(route.layer));
                if uses.last().map(|(step, layer, _)| (*step, *layer)) != Some(place) {
                    uses.push((place.0, place.1, vec![]));
                }
                uses.last_mut().unwrap().2.extend(route.experts().map(|expert| expert as u32));
            }
            for (_, _, experts) in &mut uses {
                experts.sort_unstable();
                experts.dedup();
            }
            let sizes = ExpertSizes::equal(3, 5, one).unwrap();
            let policy: CachePolicy = policy.parse().unwrap();
            let mut cache = ExpertCache::new(sizes, kept * one, policy).unwrap();
            let accesses =
                uses.iter().map(|(step, layer, experts)| LayerAccess { step: *step, layer: *layer, experts });
            let total = simulate(&mut cache, accesses).unwrap().total();
            let found = model.expert_cache().unwrap();
            assert_eq!((found.requests, found.hits), (total.requests, total.hits), "{policy} {kept}");
            assert!(found.hits > 0 || kept < 10, "{policy} {kept}");

            // What is foretold of the trace is what happened.
            let path = disk.path.with_file_name("it.trace");
            std::fs::write(&path, &trace).unwrap();
            let plan = plan(&shape, &checkpoint, kept * one, &policy.to_string());
            let forecast = Forecast::new(&shape.config(), &checkpoint, &MemoryUse::default(), plan).unwrap();
            let foretold = forecast.with_trace(&shape.config(), &checkpoint, &path).unwrap().trace.unwrap();
            assert_eq!((foretold.requests, foretold.hits), (found.requests, found.hits));
            assert_eq!((foretold.bytes_read, foretold.tokens, foretold.passes), (found.bytes_read, 80, 62));
        }
    }
}

fn one_token(model: &Model, session: &mut Session, id: u32) -> Result<Vec<u32>, Error> {
    let mut workspace = Workspace::new();
    let step = Step::new(session, std::slice::from_ref(&id)).wanted(Wanted::All);
    Ok(bits(&model.forward(&mut [step], &mut workspace, &mut ())?.to_owned()))
}

/// A file that shrinks is an error that names it, and whoever makes it whole again goes on as if nothing had been.
#[test]
fn a_file_that_shrinks() {
    let shape = shape();
    let disk = OnDisk::new(&shape);
    let whole = shape.model(Backend::best());
    let model = within(&shape, &disk.open(Access::Uncached), 0, "lru", Compute::default());
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut other = whole.session(SessionOptions::default()).unwrap();
    let bytes = std::fs::read(&disk.path).unwrap();
    for id in shape.ids(12) {
        let expected = one_token(&whole, &mut other, id).unwrap();
        OpenOptions::new().write(true).open(&disk.path).unwrap().set_len(bytes.len() as u64 / 3).unwrap();
        let position = session.position();
        let error = one_token(&model, &mut session, id).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains("expected at offset"), "{error}");
        assert_eq!(session.position(), position);
        std::fs::write(&disk.path, &bytes).unwrap();
        assert_eq!(one_token(&model, &mut session, id).unwrap(), expected);
    }
}

/// Sessions on many threads take turns, and get what each would get alone.
#[test]
fn sessions_on_many_threads() {
    let shape = shape();
    let disk = OnDisk::new(&shape);
    let whole = shape.model(Backend::best());
    let one = plan(&shape, &disk.open(Access::Map), 0, "lru").largest_expert;
    let model =
        Arc::new(within(&shape, &disk.open(Access::Uncached), 4 * one, "least-stale", Compute::default()));
    let texts: Vec<Vec<u32>> = (0..8 * 16).map(|n| shape.ids(30)[n % 15..n % 15 + 10].to_vec()).collect();
    let expected: Vec<_> = texts
        .iter()
        .map(|ids| read(&whole, ids, &[4, 1, 1, 4], SessionOptions::default(), &mut ()))
        .collect();
    thread::scope(|scope| {
        for (texts, expected) in texts.chunks(16).zip(expected.chunks(16)) {
            let model = model.clone();
            scope.spawn(move || {
                for (ids, expected) in texts.iter().zip(expected) {
                    assert_eq!(
                        &read(&model, ids, &[4, 1, 1, 4], SessionOptions::default(), &mut ()),
                        expected
                    );
                }
            });
        }
    });
    let found = model.expert_cache().unwrap();
    assert!(found.peak <= 4 * one, "{found:?}");
}

/// Two models over the same experts, one of them routed otherwise, have one cache between them, from several threads at once.
#[test]
fn models_that_share_experts() {
    let shape = shape();
    let disk = OnDisk::new(&shape);
    let checkpoint = disk.open(Access::Uncached);
    let one = plan(&shape, &checkpoint, 0, "lru").largest_expert;
    let first = within(&shape, &checkpoint, 4 * one, "lfu-per-layer", Compute::default());
    let sharing = |checkpoint: &Checkpoint, model: &Model, compute: Compute| {
        Loader::new(shape.config(), checkpoint, compute).sharing_experts(model)?.load()
    };
    let mut second = sharing(&disk.open(Access::Uncached), &first, Compute::default()).unwrap();
    let routers = |model: &Model| LayerRouters::parse(model, "top-k:k=3").unwrap();
    second.set_routers(&routers(&second)).unwrap();
    let whole = shape.model(Backend::best());
    let mut routed = shape.model(Backend::best());
    routed.set_routers(&routers(&routed)).unwrap();
    let (ids, pieces) = (shape.ids(40), [vec![8], vec![1; 32]].concat());
    let run = |model: &Model| read(model, &ids, &pieces, SessionOptions::default(), &mut ());
    let expected = [run(&whole), run(&routed)];
    assert_ne!(expected[0], expected[1]);
    thread::scope(|scope| {
        for n in 0..8 {
            let (model, expected, run) = ([&first, &second][n % 2], &expected[n % 2], &run);
            scope.spawn(move || assert_eq!(&run(model), expected, "{n}"));
        }
    });
    let [found, same] = [&first, &second].map(|model| model.expert_cache().unwrap());
    assert_eq!(found, same);
    assert!(found.peak <= 4 * one && found.requests > 8 * 33 * 3, "{found:?}");

    // Other files, other products, or no cache at all cannot be shared.
    let other = OnDisk::new(&shape);
    for refused in [
        sharing(&other.open(Access::Uncached), &first, Compute::default()),
        sharing(&checkpoint, &whole, Compute::default()),
        sharing(&checkpoint, &first, Compute { activations: Activations::Bf16, ..Compute::default() }),
    ] {
        assert!(matches!(refused, Err(Error::Setting { setting: "shared experts", .. })));
    }
}

/// A prior has experts in memory from the start, those that were wanted most; bits are the same, and of the files all ways to read them.
#[test]
fn a_prior_and_ways_to_read() {
    let shape = shape();
    let disk = OnDisk::new(&shape);
    let checkpoint = disk.open(Access::Uncached);
    let whole = shape.model(Backend::best());
    let (ids, pieces) = (shape.ids(60), [vec![8], vec![1; 52]].concat());
    let run = |model: &Model| read(model, &ids, &pieces, SessionOptions::default(), &mut ());
    let expected = run(&whole);
    let one = plan(&shape, &checkpoint, 0, "lru").largest_expert;
    let load = |plan: &MemoryPlan| {
        Loader::new(shape.config(), &checkpoint, Compute::default()).within(plan).unwrap().load().unwrap()
    };
    let header = mixtral_model::lab::trace_header(&whole);
    let trace = disk.path.with_file_name("it.trace");
    let writer = TraceWriter::new(std::fs::File::create(&trace).unwrap(), &header).unwrap();
    let mut recorder = mixtral_model::lab::TraceRecorder::new(writer);
    read(&whole, &ids, &pieces, SessionOptions::default(), &mut recorder);
    recorder.into_inner().finish().unwrap();
    let prior = ExpertPrior::read(&trace, &shape.config()).unwrap();
    for policy in POLICIES {
        let plan = plan(&shape, &checkpoint, 6 * one, policy);
        let (cold, warm) = (load(&plan), load(&plan.clone().with_prior(prior.clone())));
        let begin = warm.expert_cache().unwrap();
        assert_eq!((begin.resident, begin.requests, begin.reads), (6 * one, 0, 0), "{policy}");
        assert_eq!((run(&cold), run(&warm)), (expected.clone(), expected.clone()), "{policy}");
        let [cold, warm] = [cold, warm].map(|model| model.expert_cache().unwrap());
        assert!(warm.hits > cold.hits, "{policy}: {warm:?} {cold:?}");
        assert!(warm.hits <= warm.bound.unwrap() && warm.peak <= 6 * one, "{warm:?}");
    }
    let plan = plan(&shape, &checkpoint, 6 * one, "lru");
    for (reads, direct) in
        [(DiskReads::Direct, None), (DiskReads::Cached, Some(false)), (DiskReads::Measured, None)]
    {
        let model = load(&plan.clone().with_disk_reads(reads));
        assert_eq!(run(&model), expected, "{reads:?}");
        let found = model.expert_cache().unwrap().direct;
        // Whether a file system can do it is its own matter.
        assert!(found.is_some() && (direct.is_none() || found == direct), "{reads:?} {found:?}");
    }
    for wrong in [vec![vec![1; 5]; 2], vec![vec![1; 4]; 3], vec![]] {
        assert!(matches!(ExpertPrior::new(wrong, &shape.config()), Err(Error::Setting { .. })));
    }
    assert!(matches!(ExpertPrior::read(&disk.path, &shape.config()), Err(Error::Trace { .. })));
}

fn using(tokens: usize, logits: usize, context: usize) -> MemoryUse {
    let mut uses = MemoryUse::default();
    (uses.tokens, uses.logits, uses.context) = (tokens, logits, Some(context));
    uses
}

#[test]
fn what_a_plan_says() {
    let shape = shape();
    let disk = OnDisk::new(&shape);
    let (config, checkpoint) = (shape.config(), disk.open(Access::Uncached));
    let uses = MemoryUse::default();
    let least = MemoryPlan::unchecked(&config, &checkpoint, &uses, 0).unwrap().least;
    let error = MemoryPlan::new(&config, &checkpoint, &uses, least / 2).unwrap_err();
    assert!(matches!(error, Error::Budget { .. }));
    assert!(error.to_string().starts_with("memory: expected at least "), "{error}");
    // The program's own memory is what it is at that moment.
    let plan = MemoryPlan::new(&config, &checkpoint, &uses, least + (64 << 20)).unwrap();
    assert!(plan.planned() <= plan.budget);
    let kv = |context| {
        let uses = using(1, 1, context);
        MemoryPlan::unchecked(&config, &checkpoint, &uses, 0).unwrap().kv_cache
    };
    assert!(kv(200) > kv(100));
    assert!(matches!(
        MemoryPlan::new(&config, &Checkpoint::open_path(&disk.path, Access::Read).unwrap(), &uses, 1 << 40),
        Err(Error::Setting { setting: "access", .. })
    ));
    let plain = Loader::new(config, &checkpoint, Backend::best()).map_weights(|_, weight| Ok(weight));
    assert!(matches!(plain.within(&plan).unwrap().load(), Err(Error::Setting { .. })));
    assert!(shape.model(Backend::best()).expert_cache().is_none());
}

/// What is planned for buffers and keys is more than they take, but for the lists: whatever is read, and however it is routed.
#[test]
fn buffers_and_keys_are_planned_for() {
    const SLACK: u64 = 8 << 20;
    let shape = Shape { hidden: 256, ffn: 512, half_head: 16, vocabulary: 1000, ..Shape::plain() };
    let disk = OnDisk::new(&shape);
    let (config, checkpoint) = (shape.config(), disk.open(Access::Uncached));
    let all = plan(&shape, &checkpoint, 0, "lru").all_experts;
    for (experts, activations) in [(0, Activations::F32), (all, Activations::F32), (all, Activations::Bf16)] {
        for router in ["top-k:k=2", "dense"] {
            let compute = Compute { activations, ..Compute::default() };
            let mut model = within(&shape, &checkpoint, experts, "lru", compute);
            model.set_routers(&LayerRouters::parse(&model, router).unwrap()).unwrap();
            for (tokens, logits) in [(17, 1), (40, 40), (300, 1), (300, 300)] {
                let mut uses = using(tokens, logits, 300);
                uses.choices = (router == "dense").then_some(usize::MAX);
                let plan = MemoryPlan::unchecked(&config, &checkpoint, &uses, 0).unwrap();
                let (ids, mut workspace) = (shape.ids(tokens), Workspace::new());
                let mut session = model.session(SessionOptions::default().with_context(300)).unwrap();
                let wanted = if logits == tokens { Wanted::All } else { Wanted::Last };
                let step = Step::new(&mut session, &ids).wanted(wanted);
                model.forward(&mut [step], &mut workspace, &mut ()).unwrap();
                let (taken, keys) = (workspace.bytes() as u64, session.cache_bytes() as u64);
                let planned = plan.workspace - SLACK;
                assert!(
                    taken <= planned && planned < 3 * taken + (2 << 20),
                    "{router} {tokens} {logits}: {taken} {planned}"
                );
                assert!(keys <= plan.kv_cache, "{keys} {plan:?}");
            }
        }
    }
    // Numbers that only a hostile config has are too much, and no panic.
    let mut hostile = config;
    (hostile.max_positions, hostile.sliding_window) = (usize::MAX, Some(usize::MAX));
    let uses = MemoryUse::default();
    assert!(matches!(MemoryPlan::new(&hostile, &checkpoint, &uses, 1 << 60), Err(Error::Budget { .. })));
    let mut uses = using(usize::MAX, usize::MAX, 300);
    uses.besides = u64::MAX;
    assert_eq!(MemoryPlan::unchecked(&shape.config(), &checkpoint, &uses, 0).unwrap().least, u64::MAX);
}
