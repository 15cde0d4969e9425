//! The bits of the demo model's logits, as one number that every machine must give.

use mixtral_model::Compute;
use moe_kernels::{Activations, Backend};

use crate::demo::{HELDOUT, demo, tokenizer};
use crate::support::logits;

/// FNV-1a, 64 bits, over the logits' bits in little-endian order.
fn fingerprint<'a>(logits: impl Iterator<Item = &'a f32>) -> u64 {
    logits
        .flat_map(|logit| logit.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Logits `[300, 2048]` of the first 300 tokens of the held-out text, which is more than the sliding window of 256.
const DEMO: u64 = 0xa24d_dca3_80d2_8d1d;

/// The same with bf16 activations.
const DEMO_BF16_ACTIVATIONS: u64 = 0x1229_40fb_9a01_2d42;

#[test]
fn demo_logits() {
    let ids = &tokenizer().encode_prompt(HELDOUT).unwrap()[..300];
    for (activations, expected) in [(Activations::F32, DEMO), (Activations::Bf16, DEMO_BF16_ACTIVATIONS)] {
        for backend in Backend::available() {
            let model = demo(Compute { backend, activations });
            for (threads, pieces) in [(1, [100, 1, 199]), (2, [7, 292, 1])] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let logits = pool.install(|| logits(&model, ids, &pieces, &mut ()));
                let found = fingerprint(logits.iter());
                assert_eq!(found, expected, "{activations}, {backend}, {threads} threads: {found:#018x}");
            }
        }
    }
}
