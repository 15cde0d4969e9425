//! That each locality is what its name says, and no better could be claimed.

use moe_core::{Locality, Router, TokenContext};
use ndarray::{Array2, s};
use proptest::prelude::*;

use crate::listed::{Decision, batches, config, decisions, route, routers};

/// The decisions about the tokens `first..last`, routed as one sequence that starts at `from`.
fn stretch(router: &dyn Router, logits: &Array2<f32>, from: usize, last: usize) -> Vec<Vec<Decision>> {
    let positions: Vec<usize> = (from..last).collect();
    let context = TokenContext::new().with_seed(9).with_positions(&positions);
    let plan = route(router, logits.slice(s![from..last, ..]), context);
    (0..last - from).map(|t| decisions(&plan, t)).collect()
}

proptest! {
    #![proptest_config(config())]

    /// A token router decides the same in any chunk, a causal one in any prefix.
    #[test]
    fn localities_hold(batch in batches(), from: prop::sample::Index, to: prop::sample::Index) {
        let tokens = batch.tokens();
        let (a, b) = (from.index(tokens + 1), to.index(tokens + 1));
        let (from, to) = (a.min(b), a.max(b));
        for listed in batch.routers() {
            let whole = stretch(&*listed.router, &batch.logits, 0, tokens);
            let from = match listed.router.locality() {
                Locality::Token => from,
                Locality::Causal => 0,
                Locality::Batch => continue,
            };
            let part = stretch(&*listed.router, &batch.logits, from, to);
            prop_assert_eq!(&whole[from..to], &part[..], "{}: tokens {}..{}", &listed.name, from, to);
        }
    }
}

/// For every router that is not token-local there is a batch that shows it.
#[test]
fn localities_are_not_understated() {
    const EXPERTS: usize = 4;
    let mut shown = 0;
    for listed in routers(EXPERTS) {
        let locality = listed.router.locality();
        if locality == Locality::Token {
            continue;
        }
        let differs = (0..200u32).any(|seed| {
            let logits = Array2::from_shape_fn((12, EXPERTS), |(t, e)| {
                let mixed = (t as u32 * 31 + e as u32 * 7 + seed * 101 + 1).wrapping_mul(2_654_435_761);
                (mixed >> 16) as f32 / 8192.0
            });
            let whole = stretch(&*listed.router, &logits, 0, 12);
            match locality {
                // A chunk that does not start at the beginning decides otherwise.
                Locality::Causal => stretch(&*listed.router, &logits, 6, 12) != whole[6..],
                // Even a prefix does.
                _ => stretch(&*listed.router, &logits, 0, 6) != whole[..6],
            }
        });
        assert!(differs, "{} could claim more than {locality:?}", listed.name);
        shown += 1;
    }
    assert_eq!(shown, 39, "all capped and balanced routers and expert choice");
}

#[test]
fn the_localities_by_name() {
    let of = |part: &str| -> Vec<Locality> {
        routers(4).iter().filter(|l| l.name.contains(part)).map(|l| l.router.locality()).collect()
    };
    assert_eq!(of("Over"), [Locality::Token; 9]);
    assert_eq!(of("expert choice"), [Locality::Batch; 3]);
    let causal = routers(4).iter().filter(|l| l.router.locality() == Locality::Causal).count();
    assert_eq!(causal, 2, "absolute, token by token, by position, rerouting or not");
}
