//! The bits of the demo model's logits, as one number that every machine must give.

use std::path::Path;

use bytes::Bytes;
use mixtral_model::{Checkpoint, Compute, Config, Model, SessionOptions, Tokenizer};
use moe_kernels::{Activations, Backend};

use crate::tiny::read;

/// FNV-1a, 64 bits, over the logits' bits in little-endian order.
fn fingerprint(bits: &[u32]) -> u64 {
    bits.iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Logits `[300, 2048]` of the first 300 tokens of the held-out text, which is more than the sliding window of 256.
const DEMO: u64 = 0xa24d_dca3_80d2_8d1d;

/// The same with bf16 activations.
const DEMO_BF16_ACTIVATIONS: u64 = 0x1229_40fb_9a01_2d42;

#[test]
fn demo_logits() {
    let dir = Path::new("demo");
    let config = Config::from_json(include_bytes!("../../cli/demo/config.json"), dir).unwrap();
    let weights = Bytes::from_static(include_bytes!("../../cli/demo/model.safetensors"));
    let checkpoint = Checkpoint::from_bytes(dir, weights).unwrap();
    let tokenizer =
        Tokenizer::from_sentencepiece(include_bytes!("../../cli/demo/tokenizer.model"), dir).unwrap();
    let ids = &tokenizer.encode_prompt(include_str!("../../cli/demo/heldout.txt")).unwrap()[..300];
    for (activations, expected) in [(Activations::F32, DEMO), (Activations::Bf16, DEMO_BF16_ACTIVATIONS)] {
        for backend in Backend::available() {
            let model = Model::load(config.clone(), &checkpoint, Compute { backend, activations }).unwrap();
            for (threads, pieces) in [(1, [100, 1, 199]), (2, [7, 292, 1])] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let bits = pool.install(|| read(&model, ids, &pieces, SessionOptions::default(), &mut ()));
                let found = fingerprint(&bits);
                assert_eq!(found, expected, "{activations}, {backend}, {threads} threads: {found:#018x}");
            }
        }
    }
}
