//! Memory that is not to be had is an error: each allocation of a routing that the batch's size decides is refused in turn. One
//! that is made as if it could not fail would end this process.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use moe_core::{Assignments, RouteInput, Routed, Router, RoutingPlan, TokenContext, TokenRows};
use moe_router::backward::{self, Weighting, weight_gradient};
use moe_router::losses::{
    Affinity, CommunicationBalance, DeviceBalance, Entropy, Importance, Load, LoadBalance, SequenceBalance,
    ZLoss, noisy,
};
use moe_router::{Perturbed, RouterSpec, Score, ThresholdEma, TopK, quantile_biases};
use ndarray::Array2;

/// Refuses one allocation among those that are large.
struct Refusing;

thread_local! {
    /// Large allocations that are still granted before one is refused; none is while it is `usize::MAX`.
    static GRANTED: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Bytes of a large allocation: less than one byte a token takes. What a router allocates of a size of its own is smaller.
const LARGE: usize = 3 * TOKENS / 4;
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
        let spec: RouterSpec = text.parse().unwrap();
        if spec.trace().is_some() {
            // Opening a file takes memory that cannot be refused; reading a trace is tried with the traces.
            continue;
        }
        let router = spec.build().unwrap();
        refusals += each_refused(&text, || {
            let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
            out.reset(TOKENS, EXPERTS)?;
            router.route(&input, &mut out)?;
            plan.seal(&out)
        });
    }
    assert!(refusals > 100, "{refusals}");
}

/// What is measured, learned and derived of a routing: losses and their gradients, state that follows the load.
#[test]
fn so_does_what_training_needs() {
    let logits =
        Array2::from_shape_fn((TOKENS, EXPERTS), |(t, e)| ((t * 37 + e * 11) % 53) as f32 * 0.1 - 2.0);
    let input = RouteInput::new(logits.view(), TokenContext::new()).unwrap();
    let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
    out.reset(TOKENS, EXPERTS).unwrap();
    let top = TopK::new(2).unwrap();
    top.route(&input, &mut out).unwrap();
    plan.seal(&out).unwrap();
    let upstream = vec![1.0; plan.rows()];
    let outputs = Array2::ones((plan.rows(), 3));
    let of_y = Array2::ones((TOKENS, 3));
    let (chosen, of_choices) = (vec![[0, 1]; TOKENS], vec![[1.0; 2]; TOKENS]);
    let noise = Perturbed::gaussian(top, 0.5).unwrap();
    let deviations = Array2::from_elem(logits.dim(), 0.5f32);

    // A sequence each token.
    let offsets: Vec<usize> = (0..=TOKENS).collect();
    let context = TokenContext::new().with_sequences(&offsets);
    let routed = Routed::new(logits.view(), &plan, context).unwrap();
    let input = RouteInput::new(logits.view(), context).unwrap();
    let devices: Vec<usize> = (0..EXPERTS).map(|e| e / 4).collect();

    let load = Load::of(&input, logits.view(), 2, 0.5).unwrap();
    type Work<'a> = (&'a str, Box<dyn FnMut() -> moe_core::Result<()> + 'a>);
    let work: [Work<'_>; 18] = [
        ("noisy", Box::new(|| noisy(&noise, &input).map(drop))),
        ("z", Box::new(|| ZLoss::of(&input).gradient().map(drop))),
        ("entropy", Box::new(|| Entropy::of(&input).gradient().map(drop))),
        ("importance", Box::new(|| Importance::of(&input).gradient().map(drop))),
        ("balance", Box::new(|| LoadBalance::per_sequence(&routed).gradient().map(drop))),
        ("over all", Box::new(|| LoadBalance::over_all(&[routed, routed]).gradients().map(drop))),
        (
            "by tokens",
            Box::new(|| LoadBalance::of_first_choices(&routed).weighted_by_tokens().gradient().map(drop)),
        ),
        ("sequences", Box::new(|| SequenceBalance::of(&routed, Affinity::Sigmoid).gradient().map(drop))),
        (
            "devices",
            Box::new(|| DeviceBalance::of(&routed, Affinity::Softmax, &devices).gradient().map(drop)),
        ),
        (
            "communication",
            Box::new(|| {
                CommunicationBalance::of(&routed, Affinity::Softmax, &devices, 2).gradient().map(drop)
            }),
        ),
        ("load", Box::new(|| Load::of(&input, logits.view(), 2, 0.5).map(drop))),
        (
            "load of others",
            Box::new(|| Load::excluding_self(&input, logits.view(), 2, deviations.view()).map(drop)),
        ),
        ("gradient of load", Box::new(|| load.gradient().map(drop))),
        ("weights", Box::new(|| top.weighting().over_refused_too().weights(logits.view(), &plan).map(drop))),
        (
            "weighting",
            Box::new(|| Weighting::new(Score::Sigmoid).gradient(logits.view(), &plan, &upstream).map(drop)),
        ),
        ("combination", Box::new(|| weight_gradient(&plan, outputs.view(), of_y.view()).map(drop))),
        (
            "sparse mixer",
            Box::new(|| {
                backward::SparseMixer::new(0.1).gradient(logits.view(), &chosen, &of_choices).map(drop)
            }),
        ),
        ("quantiles", Box::new(|| quantile_biases(&input, Score::Sigmoid, 2).map(drop))),
    ];
    for (what, work) in work {
        assert!(each_refused(what, work) > 0, "{what} has no list of that size");
    }
    // Values are made sequence by sequence, of which nothing is kept.
    let values = || -> moe_core::Result<()> {
        let balance = LoadBalance::per_sequence(&routed);
        let sequences = SequenceBalance::of(&routed, Affinity::Softmax);
        let of_devices = DeviceBalance::of(&routed, Affinity::Softmax, &devices);
        let sent = CommunicationBalance::of(&routed, Affinity::Softmax, &devices, 2).weighted_by_tokens();
        let importance = Importance::of(&input);
        assert_eq!(balance.groups().count(), TOKENS);
        assert_eq!(sequences.per_sequence().chain(importance.per_sequence()).count(), 2 * TOKENS);
        let values =
            [balance.value(), sequences.value(), of_devices.value(), sent.value(), importance.value()];
        assert!(values.iter().all(|value| value.is_finite()), "{values:?}");
        Ok(())
    };
    assert_eq!(each_refused("values", values), 0, "losses keep lists of sequences");
    assert!(each_refused("thresholds", || ThresholdEma::new(2.0, 0.9).unwrap().update_over(&input)) > 0);
}
