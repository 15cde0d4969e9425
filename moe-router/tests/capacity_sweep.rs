//! What capacities drop of recorded choices: by hand, and the same as a router that makes the choices under the capacity.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

use moe_core::{Assignments, RouteInput, Router, RoutingPlan, TokenContext};
use moe_router::metrics::capacity_sweep;
use moe_router::{Capacity, Capped, TopK};
use ndarray::Array2;

#[test]
fn by_hand() {
    // First choices: 0, 0, 0, 1; second ones: 1, 1, 2, 0.
    let choices = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 2), (3, 1), (3, 0)];
    let sweep = |context, capacities: &[Capacity]| {
        let found = capacity_sweep(&choices, 4, 3, context, capacities.iter().copied()).unwrap();
        found.iter().map(|d| (d.requested, d.dropped, d.tokens_without)).collect::<Vec<_>>()
    };
    let places = [1, 2, 3, 4].map(Capacity::absolute);
    // One place: of the first choices (0,0) and (3,1) are granted, of the second (2,2); token 1 goes without.
    // Two: the first of token 2 and the second of 1 and 3 are lost. Three: only the last one.
    assert_eq!(sweep(TokenContext::new(), &places), [(8, 5, 1), (8, 3, 0), (8, 1, 0), (8, 0, 0)]);
    // Of two sequences each has places of its own.
    assert_eq!(sweep(TokenContext::new().with_sequences(&[0, 2, 4]), &places[..2]), [(8, 3, 1), (8, 0, 0)]);
    // Padding makes no choices: (0,0), (3,1) and (2,2) are granted.
    let padding = [false, true, false, false];
    assert_eq!(sweep(TokenContext::new().with_padding(&padding), &places[..1]), [(6, 3, 0)]);
    assert_eq!(capacity_sweep(&[], 0, 3, TokenContext::new(), places).unwrap()[0].rate(), 0.0);
}

#[test]
fn as_a_router_under_the_capacity() {
    let (tokens, experts) = (37, 6);
    let logits =
        Array2::from_shape_fn((tokens, experts), |(t, e)| ((t * 7 + e * e * 5) % 11) as f32 - e as f32);
    let offsets = [0, 20, 37];
    let context = TokenContext::new().with_sequences(&offsets);
    let input = RouteInput::new(logits.view(), context).unwrap();
    let top = || TopK::new(2).unwrap();
    let plan = |router: &dyn Router| {
        let (mut out, mut plan) = (Assignments::new(), RoutingPlan::new());
        out.reset(tokens, experts).unwrap();
        router.route(&input, &mut out).unwrap();
        plan.seal(&out).unwrap();
        plan
    };
    let free = plan(&top());
    let choices: Vec<(u32, u32)> = (0..tokens)
        .flat_map(|t| free.choices(t).map(move |c| (t as u32, c.expert as u32)).collect::<Vec<_>>())
        .collect();
    let factors = [0.25, 0.5, 1.0, 1.25, 2.0, 6.0];
    let sweep =
        capacity_sweep(&choices, tokens, experts, context, factors.map(Capacity::factor_of_choices)).unwrap();
    for (found, factor) in sweep.iter().zip(factors) {
        let capped = plan(&Capped::new(top(), Capacity::factor_of_choices(factor)).unwrap());
        assert_eq!((found.requested, found.dropped), (free.rows(), capped.refused().len()), "{factor}");
        assert_eq!(found.capacity, Capacity::factor_of_choices(factor));
    }
    assert!(sweep.is_sorted_by(|a, b| a.rate() > b.rate() || b.rate() == 0.0));
    assert!(sweep[0].rate() > 0.5 && sweep[5].rate() == 0.0);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let error = |choices: &[(u32, u32)], tokens, factor| {
        let capacity = [Capacity::factor_of_choices(factor)];
        capacity_sweep(choices, tokens, 2, TokenContext::new(), capacity).unwrap_err().to_string()
    };
    assert_eq!(error(&[(2, 0)], 2, 1.0), "router: expected a token below 2, found 2");
    assert_eq!(error(&[(1, 2)], 2, 1.0), "router: token 1: expected an expert below 2, found 2");
    assert_eq!(
        error(&[(1, 1), (1, 1)], 2, 2.0),
        "router: token 1: expected distinct experts, found expert 1 twice"
    );
    assert_eq!(error(&[], 2, 0.0), "router: capacity factor: expected a finite number above 0, found 0");
    assert!(error(&[], usize::MAX, 1.0).starts_with("tokens times experts: expected less than"));
}
