//! A forward pass allocates nothing once its buffers have grown.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Best, layer, matrix};
use moe_core::expert_cache::{Answer, CachePolicy, ExpertCache, ExpertSizes};
use moe_core::{TokenContext, Workspace};
use ndarray::Array2;

struct Counting;

thread_local! {
    /// Allocations of this thread; constant and without destructor, so that counting allocates nothing itself.
    static COUNT: Cell<usize> = const { Cell::new(0) };
    /// Bytes that it has allocated and not freed.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes on to `System` as it came; counting touches no memory of the allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        // SAFETY: the caller keeps the contract of `alloc`, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_second_forward_allocates_nothing() {
    let layer = layer(8, 24, Best(2));
    let hidden = matrix(0, 40, 24);
    let offsets = [0, 10, 40];
    let context = TokenContext::new().with_sequences(&offsets);
    let mut workspace = Workspace::new();
    let mut y = Array2::zeros((40, 24));
    let mut rows = 0;
    let mut count = |tokens: usize| {
        let before = COUNT.get();
        let context = if tokens == 40 { context } else { TokenContext::new() };
        let mut observer = |routed: &moe_core::Routed<'_>| rows = routed.plan.rows();
        let (hidden, y) = (hidden.slice(ndarray::s![..tokens, ..]), y.slice_mut(ndarray::s![..tokens, ..]));
        layer.forward(hidden, context, &mut workspace, &mut observer, y).unwrap();
        COUNT.get() - before
    };
    assert!(count(40) > 0, "the first call grows the buffers, and the counter counts");
    assert_eq!(count(40), 0);
    assert_eq!(count(1), 0, "a smaller batch fits the same buffers");
    assert_eq!(count(40), 0);
    assert_eq!(rows, 80);
}

#[test]
fn a_workspace_says_what_it_holds() {
    let layer = layer(8, 24, Best(2));
    let hidden = matrix(0, 40, 24);
    let mut y = Array2::zeros((40, 24));
    let before = LIVE.get();
    let mut workspace = Workspace::new();
    assert_eq!(workspace.bytes(), 0);
    layer.forward(hidden.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut()).unwrap();
    assert_eq!(workspace.bytes(), LIVE.get().wrapping_sub(before));
}

#[test]
fn an_expert_cache_allocates_nothing_after_its_first_steps() {
    for policy in CachePolicy::FORMS.map(|form| form.replace("STEPS", "3").parse().unwrap()) {
        let sizes = ExpertSizes::equal(5, 8, 10).unwrap();
        let mut cache = ExpertCache::new(sizes, 130, policy).unwrap();
        // Room for all that one request could evict.
        let mut evicted = Vec::with_capacity(13);
        let before = COUNT.get();
        let mut loads = 0;
        for step in 0..600 {
            cache.begin_step();
            for layer in 0..5 {
                let plan = [step * 3 + layer, step * 5 + layer * 2 + 1].map(|n| n % 8);
                let plan = if plan[0] == plan[1] { &plan[..1] } else { &plan[..] };
                cache.begin_layer(layer, plan.iter().copied()).unwrap();
                for &expert in plan {
                    loads += usize::from(cache.request(expert, &mut evicted).unwrap() == Answer::Load);
                }
            }
        }
        assert!(loads > 100, "{policy}: the cache was at work");
        assert_eq!(COUNT.get() - before, 0, "{policy}");
    }
}
