//! What other projects write is read.

use mixtral_model::lab::exchange::*;
use moe_router::trace::*;

use crate::*;

#[test]
fn megatron_as_its_tracer_writes_it() {
    let file = br#"{"step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 0, "rank": 0, "num_tokens": 2, "topk": 2, "top_indices": [[0, 3], [1, 2]]}
{"step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 1, "rank": 0, "num_tokens": 2, "topk": 2, "top_indices": [[1, 3], [0, 1]], "hs_offset": 0}
{"step": 0, "stage": "pre_dispatch", "block": "mtp", "mtp_idx": 0, "layer": 0, "rank": 0, "num_tokens": 2, "topk": 2, "top_indices": [[0, 9], [1, 9]]}
{"step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": 0, "rank": 0, "num_tokens": 1, "topk": 2, "top_indices": [[2, 3]]}
{"step": 4, "stage": "pre_dispatch", "block": "decoder", "layer": 1, "rank": 0, "num_tokens": 1, "topk": 2, "top_indices": [[0, 2]]}
"#;
    let (imported, header, routes) = imported(TraceFormat::Megatron, file, &small(2)).unwrap();
    assert_eq!((imported.routes, imported.passed_over, header.weights), (6, 1, TraceWeights::None));
    assert_eq!(header.program.as_deref(), Some("imported, megatron"));
    let expected = [
        ([0, 0, 0, 0], 'p', vec![0, 3]),
        ([0, 0, 0, 1], 'p', vec![1, 2]),
        ([0, 1, 0, 0], 'p', vec![1, 3]),
        ([0, 1, 0, 1], 'p', vec![0, 1]),
        ([1, 0, 0, 2], 'd', vec![2, 3]),
        ([4, 1, 0, 3], 'd', vec![0, 2]),
    ];
    assert_eq!(told(&routes), expected);
}

#[test]
fn bigmoeonedge_as_it_writes_it() {
    let file = b"# route_trace v1
# model=/a b/m.gguf arch=qwen3moe n_layer=2 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=10 dense_bytes=20
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped
0,0,0,0,0,3,0.75,0,10,0
0,0,0,0,1,1,0.25,1,0,0
0,0,1,0,0,2,0.6,0,10,0
0,0,1,0,1,0,0.4,0,0,1
0,0,1,1,0,1,1,0,10,0
0,0,1,1,1,2,0,0,10,0
0,1,2,0,0,0,0.5,2,0,0
0,1,2,0,1,3,0.5,2,0,0
0,1,3,0,0,0,0.5,2,0,0
0,1,3,0,1,3,0.5,2,0,0
";
    // It says everything that a header needs.
    let (_, header, routes) = imported(TraceFormat::BigMoeOnEdge, file, &ImportOptions::default()).unwrap();
    assert_eq!((&header.experts[..], header.model.as_deref()), (&[4, 4][..], Some("/a b/m.gguf")));
    let expected = [
        ([0, 0, 0, 0], 'p', vec![3, 1]),
        ([0, 0, 0, 1], 'p', vec![2]),
        ([0, 1, 0, 1], 'p', vec![1, 2]),
        ([1, 0, 0, 2], 'd', vec![0, 3]),
        ([2, 0, 0, 3], 'd', vec![0, 3]),
    ];
    assert_eq!(told(&routes), expected);
    assert_eq!(routes[1].kept, [pair(2, 0, 0.6)]);
    assert_eq!(routes[1].refused, [pair(0, 1, 0.0)]);
    // An older file without the last column, of a graph that does not show weights.
    let text = String::from_utf8_lossy(file).replace(",dropped", "");
    let old: Vec<_> = text.lines().map(|line| line.replace(",0.5,2,0,0", ",nan,2,0")).collect();
    let old = [&old[..4], &old[10..]].concat().join("\n");
    let (_, header, routes) =
        imported(TraceFormat::BigMoeOnEdge, old.as_bytes(), &ImportOptions::default()).unwrap();
    assert_eq!((header.weights, routes.len()), (TraceWeights::None, 2));
}

#[test]
fn bigmoeonedge_tells_weights_from_none_whatever_is_dropped_first() {
    for weights in [TraceWeights::Combination, TraceWeights::None] {
        let weight = if weights == TraceWeights::None { 0.0 } else { 0.5 };
        let mut dropped = route(0, 0, (0, 0), Phase::Prefill, &[]);
        dropped.refused = vec![pair(1, 0, 0.0), pair(2, 1, 0.0)];
        let mut kept = route(0, 0, (0, 1), Phase::Prefill, &[pair(3, 1, weight)]);
        kept.refused = vec![pair(1, 0, 0.0)];
        for routes in [vec![dropped.clone(), kept], vec![dropped]] {
            let file = exported(TraceFormat::BigMoeOnEdge, &written(&routes, weights), None).unwrap();
            let (_, header, back) = imported(TraceFormat::BigMoeOnEdge, &file, &options()).unwrap();
            assert_eq!(back, routes);
            assert!(header.weights == weights || routes.len() == 1);
        }
    }
}

#[test]
fn lines_of_others_are_read() {
    let lattice = br#"{"layer_idx":0,"token_idx":0,"selected_ids":[3,1],"gate_weights":[0.75,0.25]}
{"layer_idx":1,"token_idx":0,"selected_ids":[0,1],"gate_weights":[0.5,0.5],"more":[[1]]}

{"layer_idx":0,"token_idx":1,"selected_ids":[2,1],"gate_weights":[0.9,0.1]}
"#;
    let (_, header, routes) = imported(TraceFormat::Lattice, lattice, &small(2)).unwrap();
    let expected =
        [([0, 0, 0, 0], 'd', vec![3, 1]), ([0, 1, 0, 0], 'd', vec![0, 1]), ([1, 0, 0, 1], 'd', vec![2, 1])];
    assert_eq!((told(&routes), header.weights), (expected.to_vec(), TraceWeights::Combination));
    assert_eq!(routes[2].kept, [pair(2, 0, 0.9), pair(1, 1, 0.1)]);

    let balance = br#"{"layer": 0, "batch_id": 12, "origin_rows": [0, 1], "topk_experts": [[3, 0], [-1, -1]]}
{"layer": 1, "batch_id": 12, "request_id": "x", "topk_experts": [[1, 0], [2, 3]]}
{"layer": 0, "batch_id": 7, "origin_rows": [0], "topk_experts": [[1, 3]]}
"#;
    let (counts, header, routes) = imported(TraceFormat::MoeBalance, balance, &small(2)).unwrap();
    let expected = [
        ([0, 0, 12, 0], 'd', vec![3, 0]),
        ([0, 1, 12, 0], 'p', vec![1, 0]),
        ([0, 1, 12, 1], 'p', vec![2, 3]),
        ([1, 0, 7, 0], 'd', vec![1, 3]),
    ];
    assert_eq!((told(&routes), header.weights, counts.unknown), (expected.to_vec(), TraceWeights::None, 1));

    let llama = b"layer,expert\n0,3\n0,1\n0,2\n0,0\n1,1\n1,0\n0,2\n0,3\n";
    let expected = [
        ([0, 0, 0, 0], 'p', vec![3, 1]),
        ([0, 0, 0, 1], 'p', vec![2, 0]),
        ([0, 1, 0, 0], 'd', vec![1, 0]),
        ([1, 0, 0, 2], 'd', vec![2, 3]),
    ];
    for file in [&llama[..], &llama[13..]] {
        assert_eq!(told(&imported(TraceFormat::LlamaCpp, file, &small(2)).unwrap().2), expected);
    }
}

#[test]
fn arrays_that_numpy_wrote_are_read() {
    let npy = include_bytes!("../fixtures/exchange/vllm.npy");
    let mut one = small(1);
    one.prompt = Some(2);
    let expected = [
        ([0, 0, 0, 0], 'd', vec![3, 0]),
        ([0, 1, 0, 0], 'p', vec![1, 2]),
        ([0, 1, 0, 1], 'p', vec![0, 3]),
        ([1, 0, 0, 2], 'd', vec![2, 1]),
        ([1, 1, 0, 2], 'd', vec![3, 1]),
    ];
    let (counts, header, routes) = imported(TraceFormat::Npy, npy, &one).unwrap();
    assert_eq!((told(&routes), counts.unknown), (expected.to_vec(), 1));
    assert_eq!((&header.experts[..], header.weights), (&[4, 4][..], TraceWeights::None));
    let trace = written_as(&header, &routes);
    assert_eq!(exported(TraceFormat::Npy, &trace, None).unwrap(), npy, "numpy's bytes");

    let sglang = include_bytes!("../fixtures/exchange/sglang.json");
    let (counts, _, routes) = imported(TraceFormat::Sglang, sglang, &small(2)).unwrap();
    assert_eq!((told(&routes), counts.unknown), (expected.to_vec(), 1));

    let vllm = include_bytes!("../fixtures/exchange/vllm.json");
    let (_, _, routes) = imported(TraceFormat::Vllm, vllm, &one).unwrap();
    let expected = [
        ([0, 0, 0, 0], 'p', vec![3, 0]),
        ([0, 0, 0, 1], 'p', vec![2, 1]),
        ([0, 1, 0, 0], 'p', vec![1, 2]),
        ([0, 1, 0, 1], 'p', vec![3, 1]),
    ];
    assert_eq!(told(&routes), expected);
    assert_eq!(routes.iter().map(|route| route.token).collect::<Vec<_>>(), [7, 8, 7, 8].map(Some));
    let small_numbers = include_bytes!("../fixtures/exchange/vllm_uint8.npy");
    assert_eq!(told(&imported(TraceFormat::Npy, small_numbers, &small(1)).unwrap().2), expected);

    let packed = include_bytes!("../fixtures/exchange/prime_rl.npy");
    let (_, header, routes) = imported(TraceFormat::PrimeRl, packed, &small(1)).unwrap();
    assert_eq!((told(&routes), header.weights), (expected.to_vec(), TraceWeights::Combination));
    assert_eq!(routes[3].kept, [pair(3, 0, 1e-40), pair(1, 1, 0.3)]);
    let trace = written_as(&header, &routes);
    assert_eq!(exported(TraceFormat::PrimeRl, &trace, None).unwrap(), packed, "numpy's bytes");
}
