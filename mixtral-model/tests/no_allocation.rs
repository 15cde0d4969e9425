//! Decoding allocates nothing in steady state, on any thread.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mixtral_model::{
    Checkpoint, Config, Length, LengthDecay, Model, Sampler, Sampling, SessionOptions, Span, Step, Wanted,
    Workspace,
};
use moe_kernels::Backend;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are allocated and not freed.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Bytes that threads of the pool may allocate for themselves meanwhile.
const OF_THE_POOL: usize = 4096;

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract, and all memory is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn decoding_two_sessions() {
    let dir = Path::new("demo");
    let config = Config::from_json(include_bytes!("../cli/demo/config.json"), dir).unwrap();
    let weights = Bytes::from_static(include_bytes!("../cli/demo/model.safetensors"));
    let model = Model::load(config, &Checkpoint::from_bytes(dir, weights).unwrap(), Backend::best()).unwrap();
    let threads = 3;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    // Counted inside the pool: entering it from outside allocates a block of its queue now and then.
    pool.install(|| {
        let mut workspace = Workspace::new();
        let [mut a, mut b] = [(); 2].map(|()| model.session(SessionOptions::default()).unwrap());
        a.reserve(200).unwrap();
        b.reserve(200).unwrap();
        let mut allocations = |tokens: &[u32]| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let mut steps = [
                Step::new(&mut a, tokens).wanted(Wanted::Last),
                Step::new(&mut b, tokens).wanted(Wanted::Last),
            ];
            model.forward(&mut steps, &mut workspace, &mut ()).unwrap();
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        assert!(allocations(&[1; 50]) > 0, "the counter counts");
        // A first pass may grow what depends on how tokens fall on experts; a thread of the pool allocates once, when it first
        // takes work from another.
        let passes = (0..100u32).filter(|i| allocations(&[17 * i % 2048]) > 0).count();
        assert!(passes <= threads + 1, "{passes} of 100 passes allocate");
        says_what_it_holds(&model);
        choosing_with_every_rule();
    });
}

/// What a workspace says it holds is what a pass allocates and does not free.
fn says_what_it_holds(model: &Model) {
    let [mut a, mut b] = [(); 2].map(|()| model.session(SessionOptions::default()).unwrap());
    a.reserve(60).unwrap();
    b.reserve(30).unwrap();
    let before = LIVE.load(Ordering::Relaxed);
    let mut workspace = Workspace::new();
    let mut steps = [Step::new(&mut a, &[1; 60]), Step::new(&mut b, &[2; 30])];
    model.forward(&mut steps, &mut workspace, &mut ()).unwrap();
    let held = LIVE.load(Ordering::Relaxed).wrapping_sub(before);
    assert!(held.abs_diff(workspace.bytes()) < OF_THE_POOL, "{held} and {}", workspace.bytes());
}

/// A sampler has all its memory after its first choice.
fn choosing_with_every_rule() {
    let mut sampling = Sampling::default().with_logit_bias([(3, 2.0), (4, -2.0)]);
    (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) = (0.9, Some(500), 0.99, 0.001);
    (sampling.typical_p, sampling.epsilon_cutoff, sampling.eta_cutoff) = (0.9, 1e-4, 1e-4);
    sampling.repetition_penalty = 1.1;
    let rules = &mut sampling.rules;
    rules.biases.insert(vec![1, 2], 3.0);
    (rules.no_repeat_ngram, rules.bad_words, rules.suppressed) = (3, vec![vec![5, 6]], vec![7]);
    (rules.min_length, rules.forced_last) = (Length::New(9), vec![8]);
    (rules.length_decay, rules.suppressed_first) = (Some(LengthDecay { after: 2, factor: 1.1 }), vec![9]);
    let span = Span { begin: 2, end: Some(90), stop: vec![0] };
    let mut sampler = Sampler::new(sampling).unwrap().with_span(span);
    let logits: Vec<f32> = (0..2000).map(|i| (i as f32).sin()).collect();
    let before: Vec<u32> = (0..100).map(|i| i % 13).collect();
    sampler.sample(&logits, &before[..2], 2).unwrap();
    let counted = ALLOCATIONS.load(Ordering::Relaxed);
    for position in 3..100 {
        sampler.sample(&logits, &before[..position], position).unwrap();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), counted);
}
