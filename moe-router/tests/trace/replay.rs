//! Routing by a trace is routing as recorded.

use moe_core::{Router, RoutingPlan};
use moe_router::RouterSpec;
use moe_router::trace::{Replay, ReplayWeights};
use proptest::prelude::*;

use crate::{Batch, EXPERTS, SPECS, passes, record, route, router};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn routing_by_a_trace_is_routing_as_recorded(passes in passes(), spec in 0..SPECS.len()) {
        let own = router(SPECS[spec]);
        let (bytes, _) = record(&*own, &passes).unwrap();
        let recorded = Replay::read(&bytes[..], ReplayWeights::Recorded).unwrap();
        let live = Replay::read(&bytes[..], ReplayWeights::Live).unwrap();
        for pass in &passes {
            let batch = Batch::new(pass);
            for layer in 0..EXPERTS.len() {
                let plan = route(&*own, &batch, layer).unwrap();
                let again = route(&recorded, &batch, layer).unwrap();
                let pairs = |plan: &RoutingPlan| {
                    let of_token = |t| plan.choices(t).map(|c| (c.expert, c.rank, c.weight.to_bits())).collect::<Vec<_>>();
                    (0..plan.tokens()).map(of_token).collect::<Vec<_>>()
                };
                prop_assert_eq!(pairs(&again), pairs(&plan));
                prop_assert_eq!(again.refused().len(), plan.refused().len());
                // Token by token, as a session decodes.
                if let [(id, first, count)] = pass[..] {
                    for p in first..first + count {
                        let one = Batch::new(&vec![(id, p, 1)]);
                        let found = route(&recorded, &one, layer).unwrap();
                        prop_assert_eq!(&pairs(&found)[0], &pairs(&plan)[p - first]);
                    }
                }
                if spec == 0 {
                    let found = route(&live, &batch, layer).unwrap();
                    prop_assert_eq!(pairs(&found), pairs(&plan), "softmax over the same logits");
                }
            }
        }
        // Another text of the same length is not what was recorded.
        let (id, first, count) = passes[0][0];
        let mut other = Batch::new(&vec![(id, first, count)]);
        other.tokens[count - 1] += 1;
        let error = route(&recorded, &other, 1).unwrap_err().to_string();
        prop_assert!(error.contains("as it was recorded, found token "), "{}", error);
        // What was never recorded is no guess.
        let later = Batch::new(&vec![(3, 5000, 1)]);
        let error = route(&recorded, &later, 0).unwrap_err().to_string();
        prop_assert!(error.contains("expected position 5000 of sequence 3 in layer 0, found no such token"), "{}", error);
    }
}

/// A spec names a trace, which is read when something is first routed; the file decides then.
#[test]
fn a_spec_replays_a_file() {
    let passes = [vec![(3, 0, 5)], vec![(3, 5, 1)]];
    let own: RouterSpec = "capped(top-k:k=2,weights=all):factor=0.5".parse().unwrap();
    let (bytes, _) = record(&*own.build().unwrap(), &passes).unwrap();
    let dir = std::env::temp_dir().join(format!("route traces, {}: (1)=", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("a.trace");
    let text = format!("replay:trace=\"{}\"", path.display());
    let spec: RouterSpec = text.parse().unwrap();
    assert_eq!((spec.to_string(), spec.trace()), (text.clone(), Some(&*path)));
    let around: RouterSpec = format!("renormalized({text},weights=live)").parse().unwrap();
    assert_eq!(around.trace(), Some(&*path));
    assert_eq!(own.trace(), None);

    let (replayed, batch) = (spec.build().unwrap(), Batch::new(&passes[0]));
    let missing = route(&*replayed, &batch, 0).unwrap_err().to_string();
    assert!(missing.contains("a.trace") && missing.contains("trace"), "{missing}");
    std::fs::write(&path, &bytes[..bytes.len() - 32]).unwrap();
    let cut = route(&*replayed, &batch, 0).unwrap_err().to_string();
    assert!(cut.contains("the check that ends a trace"), "{cut}");
    std::fs::write(&path, &bytes).unwrap();
    for (layer, pass) in (0..EXPERTS.len()).flat_map(|n| passes.iter().map(move |pass| (n, pass))) {
        let batch = Batch::new(pass);
        let plan = |router: &dyn Router| {
            let plan = route(router, &batch, layer).unwrap();
            let tokens = 0..plan.tokens();
            tokens
                .map(|t| plan.choices(t).map(|c| (c.expert, c.weight.to_bits())).collect())
                .collect::<Vec<Vec<_>>>()
        };
        assert_eq!(plan(&*replayed), plan(&*own.build().unwrap()));
    }
    // It was read: the file is no more needed.
    std::fs::remove_dir_all(&dir).unwrap();
    route(&*replayed, &batch, 1).unwrap();

    for (text, expected) in [
        ("replay", "trace"),
        ("replay:trace=", "a path"),
        ("replay:trace=\"\"", "a path"),
        ("replay:trace=\"a", "a path"),
        ("replay:trace=a\"b", "a path"),
        ("replay:trace=a.trace,weights=stale", "one of recorded, live"),
    ] {
        let error = text.parse::<RouterSpec>().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let bare: RouterSpec = "replay: trace = some dir/a.trace , weights=live".parse().unwrap();
    assert_eq!(bare.to_string(), "replay:trace=some dir/a.trace,weights=live");
}
