//! Memory that is not to be had is an error, and the session stays as it was: each allocation of a pass that the number of tokens
//! decides is refused in turn. One that is made as if it could not fail would end this process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mixtral_model::{
    Checkpoint, Compute, Config, Error, Model, Session, SessionOptions, Step, Wanted, Workspace,
};
use moe_kernels::{Activations, Backend};

/// Refuses one allocation among those that are large, on whatever thread.
struct Refusing;

/// Large allocations that are still granted before one is refused; none is refused while it is this many.
static GRANTED: AtomicUsize = AtomicUsize::new(ALL);
const ALL: usize = usize::MAX;

/// Bytes of a large allocation: less than four bytes a token take, and more than threads of a pool allocate for themselves.
const LARGE: usize = 3 * TOKENS;
const TOKENS: usize = 500;

/// Whether this allocation is the one to refuse.
fn refused(bytes: usize) -> bool {
    let one_less = |granted: usize| (granted != ALL).then(|| granted.wrapping_sub(1));
    bytes >= LARGE && GRANTED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less) == Ok(0)
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

fn model(activations: Activations) -> Model {
    let dir = Path::new("demo");
    let config = Config::from_json(include_bytes!("../cli/demo/config.json"), dir).unwrap();
    let weights = Bytes::from_static(include_bytes!("../cli/demo/model.safetensors"));
    let checkpoint = Checkpoint::from_bytes(dir, weights).unwrap();
    Model::load(config, &checkpoint, Compute { activations, backend: Backend::best() }).unwrap()
}

/// A pass of two sessions; a number made of the bits of all logits.
fn pass(
    model: &Model,
    tokens: &[u32],
    sessions: &mut [Session; 2],
    workspace: &mut Workspace,
) -> Result<u64, Error> {
    let [a, b] = sessions;
    let mut steps =
        [Step::new(a, tokens).wanted(Wanted::All), Step::new(b, &tokens[..3]).wanted(Wanted::Last)];
    let logits = model.forward(&mut steps, workspace, &mut ())?;
    Ok(logits.iter().fold(0, |sum, v| u64::wrapping_mul(sum, 0x100_0000_01b3) ^ u64::from(v.to_bits())))
}

#[test]
fn every_pass_says_so() {
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|i| 3 + i * 7 % 2000).collect();
    for activations in [Activations::F32, Activations::Bf16] {
        let model = model(activations);
        let fresh = || [(); 2].map(|()| model.session(SessionOptions::default()).unwrap());
        let expected = pass(&model, &tokens, &mut fresh(), &mut Workspace::new()).unwrap();
        let mut refusals = 0;
        loop {
            let (mut sessions, mut workspace) = (fresh(), Workspace::new());
            GRANTED.store(refusals, Ordering::Relaxed);
            let result = pass(&model, &tokens, &mut sessions, &mut workspace);
            let left = GRANTED.swap(ALL, Ordering::Relaxed);
            // Not wrapped around: there was nothing left to refuse.
            if left <= refusals {
                assert_eq!(result.unwrap(), expected);
                break;
            }
            let error = result.expect_err(&format!("refusal {refusals} was not told")).to_string();
            assert!(error.contains("no memory for"), "{error}");
            assert!(sessions.iter().all(|session| session.position() == 0), "{error}");
            // The same sessions and the same workspace, once there is memory.
            assert_eq!(
                pass(&model, &tokens, &mut sessions, &mut workspace).unwrap(),
                expected,
                "after {error}"
            );
            refusals += 1;
        }
        println!("{activations}: {refusals} refusals");
        assert!(refusals > 20, "{refusals}");
    }
}
