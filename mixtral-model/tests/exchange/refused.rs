//! What is damaged, or cannot be held, is refused.

use mixtral_model::lab::exchange::*;
use moe_router::trace::*;

use crate::*;

/// An array file of version 1.
fn npy(descr: &str, fortran: &str, shape: &str, numbers: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let length = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), numbers].concat()
}

#[test]
fn what_is_not_of_the_format_is_refused_with_its_place() {
    use TraceFormat::*;
    let megatron = |line: &str| line.as_bytes().to_vec();
    let cases: Vec<(TraceFormat, Vec<u8>, &str)> = vec![
        (
            Megatron,
            megatron("\n\n{\"step\": 0, \"layer\": 0, \"top_indices\": [[0, 4]]}"),
            "line 3: expected an expert below 4, the layer's number of experts, found 4",
        ),
        (
            Megatron,
            megatron("{\"step\": 0, \"layer\": 0, \"top_indices\": [[0, 0]]}"),
            "line 1: expected each once, found experts of a token: 0 twice",
        ),
        (
            Megatron,
            megatron("{\"step\": 0, \"layer\": 2, \"top_indices\": [[0, 1]]}"),
            "line 1: expected a layer below 2, found 2",
        ),
        (
            Megatron,
            megatron("{\"step\": 0, \"layer\": 0, \"num_tokens\": 2, \"top_indices\": [[0, 1]]}"),
            "line 1: expected 2 tokens with 2 experts each, as the line says, found 1 with 2",
        ),
        (
            Megatron,
            megatron("{\"step\": 0, \"layer\": 0, \"top_indices\": [[0, 1], [2]]}"),
            "line 1: expected a line of a router trace",
        ),
        (Megatron, vec![], "byte 0: expected a trace of the format megatron, found no route at all"),
        (Megatron, vec![0xff], "line 1: expected text in UTF-8"),
        (
            Lattice,
            megatron("{\"layer_idx\": 0, \"token_idx\": 0, \"selected_ids\": [1, 2], \"gate_weights\": [1]}"),
            "line 1: expected 2 gate_weights",
        ),
        (
            Lattice,
            megatron("{\"layer_idx\": 0, \"token_idx\": 4294967296, \"selected_ids\": [1, 2]}"),
            "line 1: expected a position below 2^32",
        ),
        (
            Lattice,
            megatron("{\"layer_idx\": 0, \"token_idx\": 0, \"selected_ids\": [1], \"gate_weights\": [1e39]}"),
            "number out of range",
        ),
        (LlamaCpp, megatron("0,1\n0,2\n0,3"), "line 3: expected 2 experts of a token in a layer, found 1"),
        (LlamaCpp, megatron("0,1\nlayer,expert"), "line 2: expected a layer, found layer"),
        (BigMoeOnEdge, megatron("turn,phase"), "line 1: expected # route_trace v1, found turn,phase"),
        (BigMoeOnEdge, megatron("# route_trace v1\nturn,phase,step"), "line 2: expected the columns"),
        (
            BigMoeOnEdge,
            megatron("# route_trace v1\nturn,phase,step,layer,slot,expert,weight\n0,0,-1,0,0,1,1"),
            "line 3: expected a step from 0 on, a token's position, found -1",
        ),
        (
            MoeBalance,
            megatron("{\"layer\": 0, \"batch_id\": \"a\", \"topk_experts\": []}"),
            "line 1: expected a line of a routing trace",
        ),
        (Npy, b"\x93NUMPX..".to_vec(), "byte 0: expected an array file of numpy, found another file"),
        (
            Npy,
            npy("<f4", "False", "(1, 2, 2)", &[0; 16]),
            "byte 10: expected whole numbers, little-endian, found <f4",
        ),
        (
            Npy,
            npy(">i2", "False", "(1, 2, 2)", &[0; 8]),
            "byte 10: expected whole numbers, little-endian, found >i2",
        ),
        (Npy, npy("<i2", "True", "(1, 2, 2)", &[0; 8]), "byte 10: expected fortran_order False, found True"),
        (
            Npy,
            npy("<i2", "False", "(2, 2)", &[0; 8]),
            "byte 10: expected descr, fortran_order and a shape of three axes",
        ),
        (
            Npy,
            npy("<i2", "False", "(4611686018427387904, 2, 2)", &[]),
            "byte 10: expected an array that a file can hold",
        ),
        (
            Npy,
            npy("<i2", "False", "(1000000000000, 2, 2)", &[0; 8]),
            "expected 8000000000000 bytes of numbers, found 8",
        ),
        (Npy, npy("<i2", "False", "(1000000000000000000, 0, 2)", &[]), "expected layers and choices"),
        (Npy, npy("<i2", "False", "(1, 2, 2)", &[0; 9]), "expected the end of the file, found more"),
        (
            Npy,
            npy("<i2", "False", "(1, 2, 2)", &[0, 0, 1, 0, 255, 255, 2, 0]),
            "expected an expert below 4, the layer's number of experts, found -1",
        ),
        (Npy, npy("<i2", "False", "(1, 3, 1)", &[0; 6]), "layers: expected 2, as given, found 3"),
        (
            PrimeRl,
            npy("<i4", "False", "(1, 2, 3)", &[0; 24]),
            "byte 0: expected int32 with as many weights as ids on the last axis",
        ),
        (
            Sglang,
            megatron("{\"meta_info\": {\"routed_experts\": \"AAA\"}}"),
            "response 0, number 0: expected base64",
        ),
        (
            Sglang,
            megatron("{\"meta_info\": {\"routed_experts\": \"AAAA\"}}"),
            "response 0, number 0: expected int32 for tokens of 2 layers with 2 each, found 3 bytes",
        ),
        (
            Sglang,
            megatron("{\"meta_info\": {}}"),
            "byte 0: expected a response with meta_info.routed_experts",
        ),
        (
            Sglang,
            megatron(
                "{\"meta_info\": {\"routed_experts\": \"AAAAAAEAAAAAAAAAAQAAAA==\", \"prompt_tokens\": 1, \"completion_tokens\": 2}}",
            ),
            "response 0, number 0: expected 3 tokens, all but the last, found 1",
        ),
        (
            Vllm,
            megatron("{\"choices\": [{\"routed_experts\": [[[1]]]}]}"),
            "byte 0: expected a response with choices",
        ),
        (
            Vllm,
            megatron("{\"choices\": [{\"routed_experts\": \"AAAA\"}]}"),
            "response 0, number 0: expected an array file of numpy, found the end of the file",
        ),
    ];
    for (format, file, expected) in cases {
        let error = imported(format, &file, &small(2)).unwrap_err().to_string();
        assert!(error.contains(expected), "{format}: {error}\nnot: {expected}");
    }
}

#[test]
fn what_neither_file_nor_caller_says_is_wanting() {
    let trace = written(&plain(), TraceWeights::Combination);
    for format in TraceFormat::ALL {
        let file = exported(format, &trace, None).unwrap();
        let said = imported(format, &file, &ImportOptions::default());
        if format == TraceFormat::BigMoeOnEdge {
            assert!(said.is_ok());
            continue;
        }
        assert!(matches!(said, Err(ExchangeError::Wanting { .. })), "{format}");
        // One number for all layers, where the number of layers is known.
        let mut options = ImportOptions::default();
        (options.experts, options.layers, options.choices) = (vec![EXPERTS], Some(LAYERS), Some(2));
        assert_eq!(imported(format, &file, &options).unwrap().1.experts, [EXPERTS; 3], "{format}");
    }
}

#[test]
fn what_a_format_cannot_hold_is_not_exported() {
    use TraceFormat::*;
    let none = route(0, 0, (0, 1), Phase::Prefill, &[]);
    let far = route(0, 0, (0, u32::MAX), Phase::Prefill, &[pair(1, 0, 0.5), pair(2, 1, 0.5)]);
    let more = route(0, 0, (0, 1), Phase::Prefill, &[pair(1, 0, 1.0)]);
    let first = || plain().swap_remove(0);
    for (second, expected, formats) in [
        (
            &none,
            "experts: expected 2 for every token, and at least 1, found 0 at position 1 of sequence 0 in layer 0",
            &[Npy, PrimeRl, Sglang, Vllm, MoeBalance][..],
        ),
        (
            &more,
            "experts: expected 2 for every token of pass 0 in layer 0, found 1 of the token at position 1",
            &[Megatron],
        ),
        (
            &far,
            "position: expected less than 65540, for so few tokens of sequence 0, found 4294967295",
            &[Npy, PrimeRl, Sglang, Vllm, MoeBalance],
        ),
    ] {
        let trace = written(&[first(), second.clone()], TraceWeights::Combination);
        for &format in formats {
            assert_eq!(exported(format, &trace, None).unwrap_err().to_string(), expected, "{format}");
        }
    }
    let trace = written(&[first(), first()], TraceWeights::Combination);
    let error = exported(Npy, &trace, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "tokens: expected every token of a sequence once, found position 0 of sequence 0 twice in layer 0"
    );
}

#[test]
fn damaged_files_are_refused_or_read() {
    let traces =
        [written(&plain(), TraceWeights::Combination), written(&crowded(), TraceWeights::Combination)];
    let mut dice = Dice(3);
    for format in TraceFormat::ALL {
        for trace in &traces {
            let file = exported(format, trace, Some(0)).unwrap();
            for _ in 0..1500 {
                let mut damaged = file.clone();
                for _ in 0..=dice.roll(3) {
                    // Most of what matters lies at the beginning.
                    let most = if dice.roll(2) == 0 { damaged.len().min(160) } else { damaged.len() };
                    let at = dice.roll(most.max(1));
                    match dice.roll(5) {
                        0 => damaged.truncate(at),
                        1 => damaged.insert(at.min(damaged.len()), b"-,[]{}\"\n019e."[dice.roll(13)]),
                        2 if !damaged.is_empty() => drop(damaged.remove(at)),
                        _ if !damaged.is_empty() => damaged[at] ^= 1 << dice.roll(8),
                        _ => {}
                    }
                }
                let mut options = options();
                options.prompt = Some(dice.roll(12) as u32);
                // Whatever is taken is a sound trace: reading it back is in there.
                let _ = imported(format, &damaged, &options);
            }
        }
    }
}

#[test]
fn a_line_without_end_is_refused() {
    for format in TraceFormat::ALL {
        let endless = BufReader::new(std::io::repeat(b' '));
        if matches!(format, TraceFormat::Sglang | TraceFormat::Vllm) {
            // These are read as a whole, up to a gigabyte.
            continue;
        }
        assert!(import(format, endless, vec![], &fitted(format, &options())).is_err(), "{format}");
    }
}

#[test]
fn formats_are_told_by_name() {
    for format in TraceFormat::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
        assert!(!format.about().is_empty() && !format.loses().is_empty() && !format.lacks().is_empty());
        let sentences = format.loses().iter().chain(format.lacks());
        assert!(sentences.into_iter().all(|sentence| sentence.ends_with('.')), "{format}");
    }
    let error = "GGUF".parse::<TraceFormat>().unwrap_err().to_string();
    let names = "megatron, npy, prime-rl, sglang, vllm, bigmoeonedge, lattice, moe-balance, llama.cpp";
    assert_eq!(error, format!("format: expected one of {names}, found \"GGUF\""));
}

/// What the file says, nobody else can; a sequence that is not there is no empty file.
#[test]
fn contradictions() {
    use TraceFormat::*;
    let trace = written(&plain(), TraceWeights::Combination);
    let given = |change: &dyn Fn(&mut ImportOptions)| {
        let mut options = ImportOptions::default();
        options.experts = vec![EXPERTS];
        change(&mut options);
        options
    };
    type Change = Box<dyn Fn(&mut ImportOptions)>;
    let cases: [(TraceFormat, Change, &str); 7] = [
        (
            Npy,
            Box::new(|o| o.choices = Some(7)),
            "choices: expected none to be given, for the file says it, found 7",
        ),
        (Vllm, Box::new(|o| o.choices = Some(2)), "choices: expected none to be given"),
        (Npy, Box::new(|o| o.layers = Some(2)), "layers: expected 3, as the file says, found 2"),
        (
            Lattice,
            Box::new(|o| (o.experts, o.layers) = (vec![8; 3], Some(2))),
            "layers: expected 3, as experts are listed, found 2",
        ),
        (BigMoeOnEdge, Box::new(|o| o.experts = vec![64]), "experts: expected 8, as the file says, found 64"),
        (BigMoeOnEdge, Box::new(|o| o.sequence = Some(7)), "sequence: expected none to be given"),
        (MoeBalance, Box::new(|o| o.sequence = Some(7)), "sequence: expected none to be given"),
    ];
    for (format, change, said) in &cases {
        let file = exported(*format, &trace, None).unwrap();
        let error = import(*format, &file[..], vec![], &given(change)).map_err(|error| error.to_string());
        let error = error.expect_err(said);
        assert!(error.starts_with(said), "{format}: {error}");
    }
    for format in TraceFormat::ALL {
        let error = exported(format, &trace, Some(99)).unwrap_err().to_string();
        assert_eq!(error, "sequence: expected one that the trace has, found 99", "{format}");
    }
    let two = written(&crowded(), TraceWeights::Combination);
    for format in [Megatron, BigMoeOnEdge, LlamaCpp] {
        let whole = exported(format, &two, None).unwrap();
        assert!(exported(format, &two, Some(1)).unwrap().len() < whole.len(), "{format}");
    }
    let several = exported(Lattice, &two, None).unwrap_err().to_string();
    assert_eq!(several, "sequences: expected one, or one to be named, found several");
}
