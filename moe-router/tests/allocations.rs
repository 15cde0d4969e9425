//! Routing allocates nothing once its buffers have grown.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use moe_core::{Assignments, Gate, PerSequence, RouteInput, Router, RoutingPlan, Scratch, TokenContext};
use moe_router::{
    AdaptiveK, Base, Capacity, Capped, CappedExpertChoice, CosineGate, Dense, ExpertChoice, ExpertGroups,
    ExpertScales, ExpertThreshold, GumbelSecond, Hash, MappedLogits, Normalization, Perturbed, RandomChoice,
    RandomSecond, Relu, Renormalized, ScoredHash, ScoredTopK, Sinkhorn, SkipLight, SoftCapped, SparseMixer,
    TopK, TopP, WithoutNulls,
};
use ndarray::Array2;

struct Counting;

thread_local! {
    /// Allocations of this thread; constant and without destructor, so that counting allocates nothing itself.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes on to `System` as it came; counting touches no memory of the allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_second_call_allocates_nothing() {
    let (tokens, experts) = (64, 16);
    let logits = Array2::from_shape_fn((tokens, experts), |(t, e)| ((t * 37 + e * 11) % 53) as f32 * 0.1);
    let offsets = [0, 20, 64];
    let padding: Vec<bool> = (0..tokens).map(|t| t % 9 == 8).collect();
    let context = TokenContext::new().with_sequences(&offsets).with_padding(&padding);
    let input = RouteInput::new(logits.view(), context).unwrap();

    let top = TopK::new(4).unwrap();
    let capacity = Capacity::factor_of_choices(0.5);
    let capped = Capped::new(top, capacity).unwrap();
    let groups = ExpertGroups::by_two_best(4, 2).unwrap();
    let scored = ScoredTopK::deepseek_v3(4, [0.1; 16], groups, 2.5).unwrap();
    let routers: [&dyn Router; 10] = [
        &top,
        &top.normalized(Normalization::OverAllRenormalized),
        &TopK::new(experts).unwrap(),
        &capped,
        &capped.by_score(),
        &Renormalized::new(capped.token_by_token()),
        &ExpertChoice::new(capacity).unwrap(),
        &scored,
        &Capped::new(&scored, capacity).unwrap().by_score(),
        &ScoredTopK::dbrx(4, Some(3.0)).unwrap(),
    ];
    for (i, router) in routers.into_iter().enumerate() {
        let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
        let mut before = 0;
        for _ in 0..2 {
            before = COUNT.get();
            out.reset(tokens, experts).unwrap();
            router.route(&input, &mut out).unwrap();
            plan.seal(&out).unwrap();
        }
        assert_eq!(COUNT.get() - before, 0, "router {i}");
        assert!(plan.rows() > 0);
    }
}

#[test]
fn nor_do_the_other_routers_and_stacks_of_decorators() {
    let (tokens, experts) = (64, 16);
    let logits =
        Array2::from_shape_fn((tokens, experts), |(t, e)| ((t * 37 + e * 11) % 53) as f32 * 0.1 - 2.0);
    let offsets = [0, 20, 64];
    let words: Vec<u32> = (0..tokens as u32).collect();
    let context = TokenContext::new().with_sequences(&offsets).with_token_ids(&words);
    let input = RouteInput::new(logits.view(), context).unwrap();

    let top = TopK::new(4).unwrap();
    let capped = Capped::new(top, Capacity::factor_of_choices(0.5)).unwrap();
    let noisy = Perturbed::gaussian(Perturbed::jitter(top, 0.1).unwrap(), 1.0).unwrap();
    let each: [&dyn Router; 2] = [&noisy, &Base::new()];
    let routers: [&dyn Router; 25] = [
        &MappedLogits::soft_capped(MappedLogits::scaled(top, 0.5).unwrap(), 3.0).unwrap(),
        &MappedLogits::steered(top, [3], [5]).unwrap(),
        &ExpertScales::new(top, [0.5; 16]).unwrap(),
        &Perturbed::gaussian(Perturbed::jitter(top, 0.1).unwrap(), 1.0).unwrap(),
        &Perturbed::gaussian(Renormalized::new(SkipLight::by_ratio(top, 0.5).unwrap()), 1.0).unwrap(),
        &RandomSecond::new(top),
        &WithoutNulls::new(top, 8),
        &SparseMixer::new(0.1).unwrap(),
        &SparseMixer::new(0.1).unwrap().sampling(),
        &TopP::new(0.6).unwrap(),
        &Relu::new(),
        &Dense::new(),
        &ExpertThreshold::new(vec![0.6; 16]).unwrap(),
        &Hash::new(1),
        &AdaptiveK::new([1, 2, 4], [0.6, 1.2]).unwrap(),
        &GumbelSecond::new(),
        &ScoredHash::deepseek_v4(3, 1.5).unwrap(),
        &RandomChoice::new(2).unwrap(),
        &capped.rerouting(),
        &Sinkhorn::new(1).unwrap(),
        &CappedExpertChoice::new(Capacity::factor_of_tokens(1.0), 2).unwrap(),
        &Base::new(),
        &Capped::new(noisy, Capacity::factor_of_choices(0.5)).unwrap().by_score(),
        &Capped::new(noisy, Capacity::factor_of_choices(0.5)).unwrap().by_score().rerouting(),
        &PerSequence::of(&each),
    ];
    for (i, router) in routers.into_iter().enumerate() {
        let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
        let mut before = 0;
        for _ in 0..2 {
            before = COUNT.get();
            out.reset(tokens, experts).unwrap();
            router.route(&input, &mut out).unwrap();
            plan.seal(&out).unwrap();
        }
        assert_eq!(COUNT.get() - before, 0, "router {i}");
        assert!(plan.rows() > 0, "router {i}");
    }
}

#[test]
fn a_gate_allocates_nothing_the_second_time() {
    let wave =
        |rows, columns| Array2::from_shape_fn((rows, columns), |(r, c)| (r * 5 + c * 3) as f32 % 7.0 - 3.0);
    let gate = CosineGate::new(wave(8, 32), wave(4, 8), 0.07).unwrap();
    let gate = SoftCapped::new(gate, 30.0).unwrap();
    let (hidden, mut logits, mut scratch) = (wave(9, 32), Array2::zeros((9, 4)), Scratch::default());
    let mut before = 0;
    for _ in 0..2 {
        before = COUNT.get();
        gate.logits(hidden.view(), &TokenContext::new(), &mut scratch, logits.view_mut()).unwrap();
    }
    assert_eq!(COUNT.get() - before, 0);
}
