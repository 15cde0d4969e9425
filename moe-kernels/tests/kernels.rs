//! Every kernel on every backend against its definition in `moe_core::numerics`, bit for bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moe_core::numerics;
use moe_core::{Dispatch, Experts, Scratch, ScratchValue};
use moe_kernels::attention::{
    AttentionScratch, AttentionShape, KvRows, POSITIONS, SequenceRows, attend, attend_each,
};
use moe_kernels::{
    Backend, Dtype, Linear, LinearScratch, SwiGluExperts, SwiGluWeights, WeightMatrix, narrow_row,
    padded_row_bytes, vector, widen_row,
};
use ndarray::{Array2, ArrayView2, Axis, Slice};
use proptest::prelude::*;
use support::{DTYPES, Values, bits, in_order};

/// `x · wᵀ` by the definition.
fn product(x: ArrayView2<'_, f32>, w: &WeightMatrix) -> Array2<f32> {
    let wide: Vec<Vec<f32>> = (0..w.rows())
        .map(|n| {
            let mut row = vec![0.0; w.columns()];
            w.widen_row(n, &mut row);
            row
        })
        .collect();
    Array2::from_shape_fn((x.nrows(), w.rows()), |(t, n)| numerics::dot(&x.row(t).to_vec(), &wide[n]))
}

#[test]
fn linear_is_the_definition() {
    let mut values = Values::new(1);
    let shapes = [
        (1, 1, 1),
        (1, 513, 33),
        (2, 64, 70),
        (3, 100, 5),
        (4, 1030, 31),
        (5, 16, 64),
        (7, 530, 40),
        (11, 7, 9),
        (131, 40, 65),
        (260, 17, 3),
        // Weights widened into a buffer where registers are few; then more of x than a second-level cache keeps.
        (23, 530, 50),
        (130, 1100, 52),
    ];
    for (tokens, inner, outer) in shapes {
        for dtype in DTYPES {
            let w = WeightMatrix::rounded(&values.take(outer * inner), dtype, outer, inner).unwrap();
            let x = Array2::from_shape_vec((tokens, inner), values.take(tokens * inner)).unwrap();
            let expected = product(x.view(), &w);
            for backend in Backend::available() {
                let mut y = Array2::from_elem((tokens, outer), f32::NAN);
                Linear::new(w.clone(), backend)
                    .forward(x.view(), &mut LinearScratch::default(), y.view_mut())
                    .unwrap();
                assert_eq!(bits(&y), bits(&expected), "{tokens} x {inner} x {outer} {dtype} {backend}");
            }
        }
    }
}

#[test]
fn unaligned_weights_and_strided_inputs() {
    let mut values = Values::new(2);
    let (tokens, inner, outer) = (6, 35, 37);
    for dtype in DTYPES {
        let mut storage = vec![0u8; 1 + outer * inner * dtype.bytes()];
        narrow_row(dtype, &values.take(outer * inner), &mut storage[1..]);
        let bytes = bytes::Bytes::from(storage).slice(1..);
        let w = WeightMatrix::new(bytes, dtype, outer, inner).unwrap();
        let wide = Array2::from_shape_vec((inner, tokens), values.take(tokens * inner)).unwrap();
        let x = wide.t();
        let expected = product(x, &w);
        for backend in Backend::available() {
            let mut y = Array2::zeros((outer, tokens));
            Linear::new(w.clone(), backend)
                .forward(x, &mut LinearScratch::default(), y.view_mut().reversed_axes())
                .unwrap();
            assert_eq!(bits(&y.t().to_owned()), bits(&expected), "{dtype} {backend}");
        }
    }
}

/// A bank of random experts of one element type, and rows cut into groups.
fn bank(values: &mut Values, experts: usize, dim: usize, hidden: usize, dtype: Dtype) -> Vec<SwiGluWeights> {
    let mut matrix = |rows: usize, columns: usize| {
        let scale = 1.0 / (columns as f32).sqrt();
        let v: Vec<f32> = values.take(rows * columns).iter().map(|v| v * scale).collect();
        WeightMatrix::rounded(&v, dtype, rows, columns).unwrap()
    };
    (0..experts)
        .map(|_| SwiGluWeights { w1: matrix(hidden, dim), w2: matrix(dim, hidden), w3: matrix(hidden, dim) })
        .collect()
}

fn swiglu_definition(weights: &SwiGluWeights, x: ArrayView2<'_, f32>) -> Array2<f32> {
    let (g, u) = (product(x, &weights.w1), product(x, &weights.w3));
    let h = Array2::from_shape_fn(g.dim(), |i| numerics::silu(g[i]) * u[i]);
    product(h.view(), &weights.w2)
}

#[test]
fn swiglu_bank_is_the_definition() {
    let mut values = Values::new(3);
    for (dim, hidden, groups) in [
        (5, 3, vec![2, 0, 1]),
        (64, 70, vec![1]),
        (40, 530, vec![0, 0, 6, 3]),
        (530, 33, vec![1, 2, 3, 4, 5]),
        (33, 97, vec![140, 1]),
    ] {
        for dtype in DTYPES {
            let weights = bank(&mut values, groups.len(), dim, hidden, dtype);
            let rows: usize = groups.iter().sum();
            let x = Array2::from_shape_vec((rows, dim), values.take(rows * dim)).unwrap();
            let offsets: Vec<usize> = std::iter::once(0)
                .chain(groups.iter().scan(0, |at, n| {
                    *at += n;
                    Some(*at)
                }))
                .collect();
            let tokens = in_order(rows);
            let dispatch = Dispatch::new(x.view(), &tokens, &offsets).unwrap();
            let of_expert = |e| x.slice_axis(Axis(0), Slice::from(dispatch.rows_of(e)));
            let expected: Vec<Array2<f32>> =
                weights.iter().enumerate().map(|(e, w)| swiglu_definition(w, of_expert(e))).collect();
            for backend in Backend::available() {
                let experts = SwiGluExperts::new(weights.clone(), backend).unwrap();
                let mut y = Array2::from_elem((rows, dim), f32::NAN);
                experts.forward(dispatch, &mut Scratch::default(), y.view_mut()).unwrap();
                for (e, expected) in expected.iter().enumerate() {
                    let found = y.slice(ndarray::s![offsets[e]..offsets[e + 1], ..]).to_owned();
                    assert_eq!(
                        bits(&found),
                        bits(expected),
                        "expert {e}, {dim} x {hidden}, {dtype} {backend}"
                    );
                }
            }
        }
    }
}

#[test]
fn one_thread_is_many_threads() {
    let mut values = Values::new(4);
    let (dim, hidden) = (272, 530);
    let weights = bank(&mut values, 3, dim, hidden, Dtype::Bf16);
    let x = Array2::from_shape_vec((19, dim), values.take(19 * dim)).unwrap();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let experts = SwiGluExperts::new(weights.clone(), Backend::best()).unwrap();
        let mut y = Array2::zeros((19, dim));
        let tokens = in_order(19);
        let dispatch = Dispatch::new(x.view(), &tokens, &[0, 11, 12, 19]).unwrap();
        pool.install(|| experts.forward(dispatch, &mut Scratch::default(), y.view_mut())).unwrap();
        bits(&y)
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}

#[test]
fn vectors_are_the_definitions() {
    let mut values = Values::new(5);
    for len in (1..40).chain([511, 512, 513, 1030]) {
        let mut x: Vec<f32> = values.take(len).iter().map(|v| v * 30.0).collect();
        if len > 3 {
            (x[0], x[1], x[2], x[3]) = (-200.0, 200.0, -1e-40, -95.0);
        }
        let each = |f: fn(f32) -> f32| x.iter().map(|v| f(*v).to_bits()).collect::<Vec<_>>();
        let mut soft = x.clone();
        numerics::softmax(&mut soft);
        let weight = values.take(len);
        let scale = 1.0 / (numerics::dot(&x, &x) / len as f32 + 1e-5).sqrt();
        let norm: Vec<u32> = x.iter().zip(&weight).map(|(v, w)| (w * (v * scale)).to_bits()).collect();
        for backend in Backend::available() {
            let run = |f: fn(Backend, &mut [f32])| {
                let mut y = x.clone();
                f(backend, &mut y);
                y.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(run(vector::exp), each(numerics::exp), "exp {len} {backend}");
            assert_eq!(run(vector::silu), each(numerics::silu), "silu {len} {backend}");
            assert_eq!(
                run(vector::softmax),
                soft.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
                "softmax {len} {backend}"
            );
            let x = ArrayView2::from_shape((1, len), &x).unwrap();
            let mut y = Array2::zeros((1, len));
            vector::rms_norm(backend, x, &weight, 1e-5, y.view_mut());
            assert_eq!(bits(&y), norm, "norm {len} {backend}");
        }
    }
}

#[test]
fn elementary_functions_on_every_kind_of_number() {
    // A stride prime to everything walks through all exponents, both signs, infinities and NaN.
    let x: Vec<f32> = (0..=u32::MAX).step_by(65_537).map(f32::from_bits).collect();
    for backend in Backend::available() {
        for (vectorised, scalar) in [
            (vector::exp as fn(Backend, &mut [f32]), numerics::exp as fn(f32) -> f32),
            (vector::silu, numerics::silu),
        ] {
            let mut y = x.clone();
            vectorised(backend, &mut y);
            for (x, y) in x.iter().zip(y) {
                let expected = scalar(*x);
                let same = y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan());
                assert!(same, "{backend}: {x:e}: expected {expected:e}, found {y:e}");
            }
        }
    }
}

/// Attention by its definition, for one query head.
fn attention_definition(
    q: &[f32],
    keys: &[Vec<f32>],
    values: &[Vec<f32>],
    visible: std::ops::Range<usize>,
    scale: f32,
) -> Vec<f32> {
    let scores: Vec<f32> = visible.clone().map(|j| numerics::dot(q, &keys[j]) * scale).collect();
    let top = numerics::max(&scores);
    let a: Vec<f32> = scores.iter().map(|s| numerics::exp(s - top)).collect();
    let (mut total, mut y) = (0.0f32, vec![0.0f32; q.len()]);
    let mut j = visible.start;
    while j < visible.end {
        let end = ((j / POSITIONS + 1) * POSITIONS).min(visible.end);
        let (mut sum, mut chain) = (0.0f32, vec![0.0f32; q.len()]);
        for i in j..end {
            let weight = a[i - visible.start];
            sum += weight;
            for (c, v) in chain.iter_mut().zip(&values[i]) {
                *c = weight.mul_add(*v, *c);
            }
        }
        total += sum;
        y.iter_mut().zip(chain).for_each(|(y, c)| *y += c);
        j = end;
    }
    y.iter().map(|y| y / total).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]
    #[test]
    fn attention_is_the_definition(
        seed: u64, kv_heads in 1usize..4, group in 1usize..10, half in prop_oneof![9 => 1usize..20, 1 => 20usize..300], first in 0usize..200, tokens in 1usize..20,
        window in prop_oneof![Just(None), (1usize..150).prop_map(Some)], spare in 0usize..9, dtype in 0usize..3,
    ) {
        let mut random = Values::new(seed);
        let (dtype, head_dim) = (DTYPES[dtype], 2 * half);
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim, scale: 0.3, window };
        let end = first + tokens;
        let capacity = window.map_or(end, |w| w + tokens - 1) + spare;
        let row_bytes = padded_row_bytes(dtype, head_dim);
        // What is stored is what is read, rounded.
        let mut rounded = || -> Vec<Vec<f32>> {
            (0..end * kv_heads)
                .map(|_| {
                    let mut stored = vec![0; row_bytes];
                    narrow_row(dtype, &random.take(head_dim), &mut stored);
                    let mut row = vec![0.0; head_dim];
                    widen_row(dtype, &stored, &mut row);
                    row
                })
                .collect()
        };
        let (keys, values) = (rounded(), rounded());
        let store = |rows: &[Vec<f32>]| {
            let mut bytes = vec![0; kv_heads * capacity * row_bytes];
            for position in end.saturating_sub(capacity)..end {
                for h in 0..kv_heads {
                    let at = (h * capacity + position % capacity) * row_bytes;
                    narrow_row(dtype, &rows[h * end + position], &mut bytes[at..at + row_bytes]);
                }
            }
            bytes
        };
        let (key_bytes, value_bytes) = (store(&keys), store(&values));
        let q = Array2::from_shape_vec((tokens, shape.heads * head_dim), random.take(tokens * shape.heads * head_dim)).unwrap();
        for backend in Backend::available() {
            let mut y = Array2::from_elem(q.dim(), f32::NAN);
            let kv = KvRows { keys: &key_bytes, values: &value_bytes, dtype, capacity };
            attend(backend, &shape, q.view(), first, kv, &mut AttentionScratch::default(), y.view_mut()).unwrap();
            for t in 0..tokens {
                for head in 0..shape.heads {
                    let h = head / group;
                    let columns = ndarray::s![t, head * head_dim..(head + 1) * head_dim];
                    let expected = attention_definition(
                        &q.slice(columns).to_vec(), &keys[h * end..(h + 1) * end], &values[h * end..(h + 1) * end],
                        shape.visible(first + t), shape.scale,
                    );
                    let found: Vec<u32> = y.slice(columns).iter().map(|v| v.to_bits()).collect();
                    let expected: Vec<u32> = expected.iter().map(|v| v.to_bits()).collect();
                    prop_assert_eq!(&found, &expected, "token {}, head {}, {}", t, head, backend);
                }
            }
        }
    }

    #[test]
    fn a_row_alone_is_the_row_in_any_batch(seed: u64, tokens in 1usize..12, inner in 1usize..600, outer in 1usize..70) {
        let mut values = Values::new(seed);
        let w = WeightMatrix::rounded(&values.take(outer * inner), Dtype::F16, outer, inner).unwrap();
        let x = Array2::from_shape_vec((tokens, inner), values.take(tokens * inner)).unwrap();
        let linear = Linear::new(w, Backend::best());
        let mut together = Array2::zeros((tokens, outer));
        linear.forward(x.view(), &mut LinearScratch::default(), together.view_mut()).unwrap();
        for t in 0..tokens {
            let mut alone = Array2::zeros((1, outer));
            linear.forward(x.slice(ndarray::s![t..t + 1, ..]), &mut LinearScratch::default(), alone.view_mut()).unwrap();
            prop_assert_eq!(bits(&alone), bits(&together.slice(ndarray::s![t..t + 1, ..]).to_owned()));
        }
    }
}

/// Sequences of a batch, some without a query, whose caches differ in room and type: each as if it were alone, on any threads.
#[test]
fn sequences_together_are_sequences_alone() {
    let mut random = Values::new(31);
    for (kv_heads, group, head_dim, window) in [(2, 3, 40, Some(70)), (1, 1, 16, None), (8, 4, 32, None)] {
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim, scale: 0.2, window };
        // Queries, and the position of the first.
        for lengths in [&[(1, 0), (1, 500), (1, 63), (1, 64)][..], &[(0, 3), (40, 0), (0, 0), (1, 9), (0, 7)]]
        {
            let caches: Vec<_> = lengths
                .iter()
                .zip(DTYPES.iter().cycle())
                .map(|(&(tokens, first), &dtype)| {
                    let capacity = first + tokens + random.take(1)[0].abs() as usize;
                    let row_bytes = padded_row_bytes(dtype, head_dim);
                    let mut rows = || {
                        let mut bytes = vec![0; kv_heads * capacity * row_bytes];
                        for row in bytes.chunks_mut(row_bytes) {
                            narrow_row(dtype, &random.take(head_dim), row);
                        }
                        bytes
                    };
                    (rows(), rows(), dtype, capacity)
                })
                .collect();
            let sequence = |s: usize| {
                let ((tokens, first), (keys, values, dtype, capacity)) = (lengths[s], &caches[s]);
                let kv = KvRows { keys, values, dtype: *dtype, capacity: *capacity };
                SequenceRows { tokens, first, kv }
            };
            let (tokens, width) = (lengths.iter().map(|(n, _)| n).sum(), shape.heads * head_dim);
            let q = Array2::from_shape_vec((tokens, width), random.take(tokens * width)).unwrap();
            for backend in Backend::available() {
                let mut expected = Array2::from_elem(q.dim(), f32::NAN);
                let mut row = 0;
                for s in 0..lengths.len() {
                    let SequenceRows { tokens, first, kv } = sequence(s);
                    let rows = ndarray::s![row..row + tokens, ..];
                    let (q, y) = (q.slice(rows), expected.slice_mut(rows));
                    attend(backend, &shape, q, first, kv, &mut AttentionScratch::default(), y).unwrap();
                    row += tokens;
                }
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut y = Array2::from_elem(q.dim(), f32::NAN);
                    let scratch = &mut AttentionScratch::default();
                    pool.install(|| {
                        attend_each(
                            backend,
                            &shape,
                            q.view(),
                            lengths.len(),
                            &sequence,
                            scratch,
                            y.view_mut(),
                        )
                    })
                    .unwrap();
                    assert_eq!(bits(&y), bits(&expected), "{backend}, {threads} threads, {lengths:?}");
                }
            }
        }
    }
}

/// Keys and values of later tokens, no numbers, beside queries that share their vectors and tiles with those who see them.
#[test]
fn what_a_query_does_not_see_changes_nothing() {
    let mut random = Values::new(30);
    for group in [1, 4, 6] {
        let shape = AttentionShape { heads: group, kv_heads: 1, head_dim: 80, scale: 0.1, window: Some(70) };
        let (tokens, seen, row) = (40, 20, 80 * 4);
        let q = Array2::from_shape_vec((tokens, group * 80), random.take(tokens * group * 80)).unwrap();
        let mut rows = || random.take(tokens * 80).iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (keys, values) = (rows(), rows());
        for backend in Backend::available() {
            let attend = |keys: &[u8], values: &[u8]| {
                let mut y = Array2::zeros(q.dim());
                let kv = KvRows { keys, values, dtype: Dtype::F32, capacity: tokens };
                attend(backend, &shape, q.view(), 0, kv, &mut AttentionScratch::default(), y.view_mut())
                    .unwrap();
                bits(&y.slice(ndarray::s![..seen, ..]).to_owned())
            };
            let expected = attend(&keys, &values);
            let (mut keys, mut values) = (keys.clone(), values.clone());
            for (i, number) in
                [f32::NAN, f32::INFINITY].into_iter().cycle().take((tokens - seen) * 80).enumerate()
            {
                keys[seen * row + 4 * i..][..4].copy_from_slice(&number.to_le_bytes());
                values[seen * row + 4 * i..][..4].copy_from_slice(&number.to_le_bytes());
            }
            assert_eq!(attend(&keys, &values), expected, "{backend}");
        }
    }
}

/// A ring that holds what each query sees, but not what all of them do: the last one's key lies where the first one's was.
#[test]
#[should_panic(expected = "the cache holds every position that one of the queries sees")]
fn attention_wants_room_for_the_whole_chunk() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 16, scale: 1.0, window: Some(4) };
    let bytes = vec![0; 4 * padded_row_bytes(Dtype::F32, 16)];
    let kv = KvRows { keys: &bytes, values: &bytes, dtype: Dtype::F32, capacity: 4 };
    let (q, mut y) = (Array2::zeros((3, 16)), Array2::zeros((3, 16)));
    attend(Backend::best(), &shape, q.view(), 10, kv, &mut AttentionScratch::default(), y.view_mut())
        .unwrap();
}

#[test]
fn memory_that_is_not_to_be_had() {
    // More rows than a processor of today can address once they are packed; without output, there need be none.
    let rows = 1 << 41;
    let weight = WeightMatrix::new(bytes::Bytes::new(), Dtype::F32, 0, 1).unwrap();
    let one = Array2::zeros((1, 1));
    let mut y = Array2::zeros((rows, 0));
    let x = one.broadcast((rows, 1)).unwrap();
    let scratch = &mut LinearScratch::default();
    let error = Linear::new(weight, Backend::best()).forward(x, scratch, y.view_mut()).unwrap_err();
    assert_eq!(error.to_string(), format!("packed rows: no memory for {} bytes", 64 * rows));
    assert!(scratch.bytes() < 1000, "what could not grow is empty");
}
