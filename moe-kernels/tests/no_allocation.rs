//! In steady state a forward pass of a layer allocates nothing, on any thread.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use moe_core::{MoeLayer, TokenContext, Workspace};
use moe_kernels::{
    Activations, Backend, BlockType, Dtype, Linear, SwiGluExperts, SwiGluWeights, WeightMatrix,
};
use moe_router::TopK;
use ndarray::Array2;
use support::{Values, random_blocks};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract, and all memory is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

// One test, as the counter counts whatever runs.
#[test]
fn steady_state() {
    for activations in [Activations::F32, Activations::Bf16, Activations::Int8] {
        steady_state_with(activations);
    }
}

/// Enough that outputs are combined by several threads.
const TOKENS: usize = 1100;

fn steady_state_with(activations: Activations) {
    let mut values = Values::new(20);
    // Blocks of 32 for int8 activations, and a width that is no whole number of chunks otherwise.
    let (dim, hidden, count) = if activations == Activations::Int8 { (128, 256, 5) } else { (130, 250, 5) };
    let mut matrix = |rows: usize, columns: usize| {
        if activations == Activations::Int8 && rows.max(columns) == hidden {
            return random_blocks(BlockType::Q4_0, 22, rows, columns);
        }
        WeightMatrix::rounded(&values.take(rows * columns), Dtype::Bf16, rows, columns).unwrap()
    };
    let gate = Linear::new(matrix(count, dim), Backend::best());
    let experts = (0..count)
        .map(|_| SwiGluWeights { w1: matrix(hidden, dim), w2: matrix(dim, hidden), w3: matrix(hidden, dim) })
        .collect();
    let experts = SwiGluExperts::new(experts, Backend::best()).unwrap();
    let experts = experts.with_input_precision(activations);
    let layer = MoeLayer::new(Box::new(gate), Box::new(TopK::new(2).unwrap()), Box::new(experts)).unwrap();
    let x = Array2::from_shape_vec((TOKENS, dim), Values::new(21).take(TOKENS * dim)).unwrap();
    let mut y = Array2::zeros((TOKENS, dim));
    let mut workspace = Workspace::new();
    let threads = 3;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    // Counted inside the pool: entering it from outside allocates a block of its queue now and then.
    pool.install(|| {
        let mut allocations = |tokens: usize| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let rows = ndarray::s![..tokens, ..];
            let (x, y) = (x.slice(rows), y.slice_mut(rows));
            layer.forward(x, TokenContext::new(), &mut workspace, &mut (), y).unwrap();
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        assert!(allocations(TOKENS) > 0, "the counter counts");
        // A thread of the pool allocates once, when it first takes work from another.
        let passes = (0..100).filter(|i| allocations([TOKENS, 1, 17, 2][i % 4]) > 0).count();
        assert!(passes <= threads, "{passes} of 100 passes allocate");
    });
}
