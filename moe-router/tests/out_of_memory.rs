//! Memory that is not to be had is an error: each allocation of a routing that the batch's size decides is refused in turn. One
//! that is made as if it could not fail would end this process.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use moe_core::{Assignments, RouteInput, RoutingPlan, TokenContext, TokenRows};
use moe_router::RouterSpec;
use ndarray::Array2;

/// Refuses one allocation among those that are large.
struct Refusing;

thread_local! {
    /// Large allocations that are still granted before one is refused; none is while it is `usize::MAX`.
    static GRANTED: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Bytes of a large allocation: less than one byte a token takes. What a router allocates of a size of its own is smaller.
const LARGE: usize = TOKENS / 2;
const TOKENS: usize = 1024;
const EXPERTS: usize = 16;

/// Whether this allocation is the one to refuse.
fn refused(bytes: usize) -> bool {
    let granted = GRANTED.get();
    if bytes < LARGE || granted == usize::MAX {
        return false;
    }
    GRANTED.set(granted.wrapping_sub(1));
    granted == 0
}

// SAFETY: every call that is not refused goes on to `System` as it came; null is how an allocation is refused.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract of `alloc`, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if refused(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: `ptr` came from `System` with this layout, and the caller keeps the contract.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// Runs `work` with its n-th large allocation refused, for every n until none is left to refuse; each must be told as an error.
/// Gives how many there were.
fn each_refused<E: std::fmt::Display>(what: &str, mut work: impl FnMut() -> Result<(), E>) -> usize {
    for n in 0.. {
        GRANTED.set(n);
        let result = work();
        let left = GRANTED.replace(usize::MAX);
        // Wrapped around: the refusal has happened.
        if left <= n {
            assert!(result.is_ok(), "{what}: nothing was refused");
            return n;
        }
        let error = result.err().unwrap_or_else(|| panic!("{what}: refusal {n} was not told")).to_string();
        assert!(error.contains("no memory for"), "{what}: {error}");
    }
    unreachable!()
}

#[test]
fn every_router_says_so() {
    let logits =
        Array2::from_shape_fn((TOKENS, EXPERTS), |(t, e)| ((t * 37 + e * 11) % 53) as f32 * 0.1 - 2.0);
    let ids: Vec<u32> = (0..TOKENS as u32).map(|t| t % 500).collect();
    let noise = vec![0.0; TOKENS * EXPERTS];
    let padding: Vec<bool> = (0..TOKENS).map(|t| t % 9 == 8).collect();
    let context = TokenContext::new().with_token_ids(&ids).with_padding(&padding);
    let context = context.with_noise_logits(TokenRows::new(&noise, EXPERTS).unwrap());
    let input = RouteInput::new(logits.view(), context).unwrap();
    let mut refusals = 0;
    for entry in RouterSpec::catalogue() {
        let text = entry.example.replace("groups=8,kept=3", "groups=4,kept=2");
        let text = text.replace("groups=8,kept=4", "groups=4,kept=2").replace("k=12", "k=2");
        let text = text.replace(&["0.5"; 8].join(","), &["0.5"; EXPERTS].join(","));
        let router = text.parse::<RouterSpec>().unwrap().build().unwrap();
        refusals += each_refused(&text, || {
            let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
            out.reset(TOKENS, EXPERTS)?;
            router.route(&input, &mut out)?;
            plan.seal(&out)
        });
    }
    assert!(refusals > 100, "{refusals}");
}
