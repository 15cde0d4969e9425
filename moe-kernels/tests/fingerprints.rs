//! The bits of each kernel over fixed pseudo-random operands, as numbers that every machine, backend and thread count must give.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moe_core::{Dispatch, Experts, Scratch};
use moe_kernels::attention::{AttentionScratch, AttentionShape, KvRows, attend};
use moe_kernels::{
    Activations, Backend, BlockType, Dtype, Linear, LinearScratch, SwiGluExperts, SwiGluWeights,
    WeightMatrix, narrow_row, padded_row_bytes, vector,
};
use ndarray::{Array2, ArrayView2};
use support::{Values, in_order, random_blocks};

/// FNV-1a, 64 bits, over the results' bits in little-endian order.
fn fingerprint<'a>(values: impl IntoIterator<Item = &'a f32>) -> u64 {
    values
        .into_iter()
        .flat_map(|v| v.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn weights(values: &mut Values, dtype: Dtype, rows: usize, columns: usize) -> WeightMatrix {
    let scaled: Vec<f32> = values.take(rows * columns).iter().map(|v| v / (columns as f32).sqrt()).collect();
    WeightMatrix::rounded(&scaled, dtype, rows, columns).unwrap()
}

fn linear(backend: Backend, dtype: Dtype, tokens: usize) -> u64 {
    let mut values = Values::new(10);
    let w = weights(&mut values, dtype, 77, 1100);
    let x = Array2::from_shape_vec((tokens, 1100), values.take(tokens * 1100)).unwrap();
    let mut y = Array2::zeros((tokens, 77));
    Linear::new(w, backend).forward(x.view(), &mut LinearScratch::default(), y.view_mut()).unwrap();
    fingerprint(&y)
}

/// The products of one matrix of every type that has products with int8 activations.
fn blocks(backend: Backend, activations: Activations, tokens: usize) -> u64 {
    let all = BlockType::ALL.iter().filter(|block| block.has_int8()).flat_map(|&block| {
        let x = Array2::from_shape_vec((tokens, 1024), Values::new(16).take(tokens * 1024)).unwrap();
        let mut y = Array2::zeros((tokens, 77));
        Linear::new(random_blocks(block, 15, 77, 1024), backend)
            .with_input_precision(activations)
            .forward(x.view(), &mut LinearScratch::default(), y.view_mut())
            .unwrap();
        y
    });
    fingerprint(&all.collect::<Vec<_>>())
}

fn swiglu(backend: Backend, dtype: Dtype) -> u64 {
    let mut values = Values::new(11);
    let (dim, hidden) = (200, 523);
    let experts = (0..4)
        .map(|_| {
            let mut matrix = |rows, columns| weights(&mut values, dtype, rows, columns);
            SwiGluWeights { w1: matrix(hidden, dim), w2: matrix(dim, hidden), w3: matrix(hidden, dim) }
        })
        .collect();
    let x = Array2::from_shape_vec((24, dim), values.take(24 * dim)).unwrap();
    let mut y = Array2::zeros((24, dim));
    let tokens = in_order(24);
    let dispatch = Dispatch::new(x.view(), &tokens, &[0, 1, 1, 4, 24]).unwrap();
    SwiGluExperts::new(experts, backend)
        .unwrap()
        .forward(dispatch, &mut Scratch::default(), y.view_mut())
        .unwrap();
    fingerprint(&y)
}

fn attention(backend: Backend, dtype: Dtype, tokens: usize) -> u64 {
    let mut values = Values::new(12);
    let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 40, scale: 0.158, window: Some(150) };
    let capacity = 170;
    let mut rows = || {
        let row_bytes = padded_row_bytes(dtype, shape.head_dim);
        let mut bytes = vec![0; shape.kv_heads * capacity * row_bytes];
        bytes.chunks_mut(row_bytes).for_each(|row| narrow_row(dtype, &values.take(shape.head_dim), row));
        bytes
    };
    let (keys, values_) = (rows(), rows());
    let q = Array2::from_shape_vec((tokens, 240), values.take(tokens * 240)).unwrap();
    let mut y = Array2::zeros((tokens, 240));
    let kv = KvRows { keys: &keys, values: &values_, dtype, capacity };
    attend(backend, &shape, q.view(), 200, kv, &mut AttentionScratch::default(), y.view_mut()).unwrap();
    fingerprint(&y)
}

fn vectors(backend: Backend, f: fn(Backend, &mut [f32])) -> u64 {
    let mut x: Vec<f32> = Values::new(13).take(3001).iter().map(|v| v * 60.0).collect();
    f(backend, &mut x);
    fingerprint(&x)
}

fn rms_norm(backend: Backend, x: &mut [f32]) {
    let weight = Values::new(14).take(x.len());
    let input = x.to_vec();
    let view = |x| ArrayView2::from_shape((1, input.len()), x).unwrap();
    let mut y = Array2::zeros((1, input.len()));
    vector::rms_norm(backend, view(&input), &weight, 1e-5, y.view_mut());
    x.copy_from_slice(y.as_slice().unwrap());
}

#[test]
fn fingerprints_on_every_backend_and_thread_count() {
    type Case<'a> = (&'a str, u64, &'a (dyn Fn(Backend) -> u64 + Sync));
    let cases: [Case<'_>; 19] = [
        ("linear f32", 0x480f_3f8b_c049_abcb, &|b| linear(b, Dtype::F32, 9)),
        ("linear f16", 0x4b77_aa9e_401b_c5a7, &|b| linear(b, Dtype::F16, 9)),
        ("linear bf16", 0xa9db_1ac9_92a2_4c00, &|b| linear(b, Dtype::Bf16, 9)),
        ("linear bf16, 130 tokens", 0x50e3_bfee_ce00_6aff, &|b| linear(b, Dtype::Bf16, 130)),
        ("blocks, exact, 9 tokens", 0xabb9_b43f_0717_acb3, &|b| blocks(b, Activations::F32, 9)),
        ("blocks, exact, one token", 0xf698_9afd_1e61_278c, &|b| blocks(b, Activations::F32, 1)),
        ("blocks, int8, 9 tokens", 0xe15f_527b_5b48_6c48, &|b| blocks(b, Activations::Int8, 9)),
        ("blocks, int8, one token", 0x809c_bf71_c4db_7754, &|b| blocks(b, Activations::Int8, 1)),
        ("swiglu f32", 0xb072_e6f0_ab94_428e, &|b| swiglu(b, Dtype::F32)),
        ("swiglu f16", 0xf764_96b3_4ded_67b6, &|b| swiglu(b, Dtype::F16)),
        ("swiglu bf16", 0x6b9d_0520_be84_c0fa, &|b| swiglu(b, Dtype::Bf16)),
        ("attention f32", 0x1809_ff8b_dd51_2553, &|b| attention(b, Dtype::F32, 5)),
        ("attention f16", 0xf665_b243_cc68_04ba, &|b| attention(b, Dtype::F16, 5)),
        ("attention bf16", 0x4782_fcf3_fdb1_2c12, &|b| attention(b, Dtype::Bf16, 5)),
        ("attention f32, one token", 0x3370_ca86_cd85_1e2c, &|b| attention(b, Dtype::F32, 1)),
        ("exp", 0x7040_b11e_31cb_ecf4, &|b| vectors(b, vector::exp)),
        ("silu", 0xd019_a58d_b840_5268, &|b| vectors(b, vector::silu)),
        ("softmax", 0xa5be_b67b_3213_6aae, &|b| vectors(b, vector::softmax)),
        ("rms norm", 0xbdd4_083a_5815_de6f, &|b| vectors(b, rms_norm)),
    ];
    let mut failures = Vec::new();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for backend in Backend::available() {
            for (name, expected, run) in &cases {
                let found = pool.install(|| run(backend));
                if found != *expected {
                    failures.push(format!("(\"{name}\", {found:#018x}) on {backend}, {threads} threads"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
