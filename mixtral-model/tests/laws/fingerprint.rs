//! The bits of the demo model's logits, as one number that every machine must give.

use std::path::Path;

use bytes::Bytes;
use mixtral_model::{Checkpoint, Config, Model, SessionOptions, Tokenizer};
use moe_kernels::Backend;

use crate::tiny::read;

/// FNV-1a, 64 bits, over the logits' bits in little-endian order.
fn fingerprint(bits: &[u32]) -> u64 {
    bits.iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Logits `[300, 2048]` of the first 300 tokens of the held-out text, which is more than the sliding window of 256.
const DEMO: u64 = 0xa24d_dca3_80d2_8d1d;

#[test]
fn demo_logits() {
    let dir = Path::new("demo");
    let config = Config::from_json(include_bytes!("../../cli/demo/config.json"), dir).unwrap();
    let weights = Bytes::from_static(include_bytes!("../../cli/demo/model.safetensors"));
    let checkpoint = Checkpoint::from_bytes(dir, weights).unwrap();
    let tokenizer =
        Tokenizer::from_sentencepiece(include_bytes!("../../cli/demo/tokenizer.model"), dir).unwrap();
    let ids = &tokenizer.encode_with_bos(include_str!("../../cli/demo/heldout.txt"))[..300];
    for backend in Backend::available() {
        let model = Model::load(config.clone(), &checkpoint, backend).unwrap();
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let bits = pool.install(|| read(&model, ids, &[100, 1, 199], SessionOptions::default(), &mut ()));
            let found = fingerprint(&bits);
            assert_eq!(found, DEMO, "{backend}, {threads} threads: {found:#018x}");
        }
    }
}
