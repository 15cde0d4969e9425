//! Memory that a call left behind full of NaN, as a failed pass does, changes nothing in the next one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moe_core::{Dispatch, Experts, Scratch};
use moe_kernels::attention::{AttentionScratch, AttentionShape, KvRows, attend};
use moe_kernels::padded_row_bytes;
use moe_kernels::{
    Activations, Backend, Dtype, Linear, LinearScratch, SwiGluExperts, SwiGluWeights, WeightMatrix,
};
use ndarray::Array2;
use support::{Values, bits, in_order};

/// Shapes whose rows end within a chunk, from many rows to few.
const TOKENS: [usize; 4] = [33, 18, 5, 1];

fn no_numbers(rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_elem((rows, columns), f32::NAN)
}

fn numbers(random: &mut Values, rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_vec((rows, columns), random.take(rows * columns)).unwrap()
}

fn weight(random: &mut Values, rows: usize, columns: usize) -> WeightMatrix {
    WeightMatrix::rounded(&random.take(rows * columns), Dtype::Bf16, rows, columns).unwrap()
}

#[test]
fn of_linear_maps() {
    let mut random = Values::new(40);
    let (large, small) = (weight(&mut random, 101, 1100), weight(&mut random, 53, 523));
    for backend in Backend::available() {
        for activations in [Activations::F32, Activations::Bf16] {
            let map = |w: &WeightMatrix| Linear::new(w.clone(), backend).with_input_precision(activations);
            let mut used = LinearScratch::default();
            for tokens in TOKENS {
                let mut y = Array2::zeros((40, 101));
                map(&large).forward(no_numbers(40, 1100).view(), &mut used, y.view_mut()).unwrap();
                assert!(y.iter().all(|y| y.is_nan()), "NaN reaches every sum");
                let x = numbers(&mut random, tokens, 523);
                let run = |scratch: &mut LinearScratch| {
                    let mut y = Array2::zeros((tokens, 53));
                    map(&small).forward(x.view(), scratch, y.view_mut()).unwrap();
                    bits(&y)
                };
                assert_eq!(run(&mut used), run(&mut LinearScratch::default()), "{tokens} tokens, {backend}");
            }
        }
    }
}

#[test]
fn of_experts() {
    let mut random = Values::new(41);
    let mut bank = |dim: usize, hidden: usize, backend| {
        let mut expert = || SwiGluWeights {
            w1: weight(&mut random, hidden, dim),
            w2: weight(&mut random, dim, hidden),
            w3: weight(&mut random, hidden, dim),
        };
        SwiGluExperts::new(vec![expert(), expert()], backend).unwrap()
    };
    for backend in Backend::available() {
        let (large, small) = (bank(530, 600, backend), bank(75, 90, backend));
        let mut used = Scratch::default();
        for tokens in TOKENS {
            let (x, mut y) = (no_numbers(40, 530), Array2::zeros((40, 530)));
            let in_order = in_order(40);
            let dispatch = Dispatch::new(x.view(), &in_order, &[0, 35, 40]).unwrap();
            large.forward(dispatch, &mut used, y.view_mut()).unwrap();
            assert!(y.iter().all(|y| y.is_nan()), "NaN reaches every sum");
            let x = numbers(&mut Values::new(42), tokens, 75);
            let offsets = [0, tokens / 2, tokens];
            let run = |scratch: &mut Scratch| {
                let mut y = Array2::zeros((tokens, 75));
                let dispatch = Dispatch::new(x.view(), &in_order[..tokens], &offsets).unwrap();
                small.forward(dispatch, scratch, y.view_mut()).unwrap();
                bits(&y)
            };
            assert_eq!(run(&mut used), run(&mut Scratch::default()), "{tokens} tokens, {backend}");
        }
    }
}

#[test]
fn of_attention() {
    let mut random = Values::new(43);
    for backend in Backend::available() {
        let mut used = AttentionScratch::default();
        for tokens in TOKENS {
            let run = |head_dim: usize, count: usize, q: &Array2<f32>, fill: Option<f32>, scratch: &mut _| {
                let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim, scale: 0.2, window: None };
                let row_bytes = padded_row_bytes(Dtype::F32, head_dim);
                let mut values = Values::new(44);
                let mut rows = || -> Vec<u8> {
                    let mut row = || match fill {
                        Some(value) => vec![value; head_dim],
                        None => values.take(head_dim),
                    };
                    let padded = |mut row: Vec<f32>| {
                        row.resize(row_bytes / 4, 0.0);
                        row
                    };
                    (0..2 * count).flat_map(|_| padded(row())).flat_map(f32::to_le_bytes).collect()
                };
                let (keys, values) = (rows(), rows());
                let kv = KvRows { keys: &keys, values: &values, dtype: Dtype::F32, capacity: count };
                let mut y = Array2::zeros(q.dim());
                attend(backend, &shape, q.view(), count - q.nrows(), kv, scratch, y.view_mut()).unwrap();
                y
            };
            let all = run(75, 90, &no_numbers(50, 6 * 75), Some(f32::NAN), &mut used);
            assert!(all.iter().all(|y| y.is_nan()), "NaN reaches every result");
            let q = numbers(&mut random, tokens, 6 * 20);
            let fresh = run(20, 70, &q, None, &mut AttentionScratch::default());
            assert_eq!(bits(&run(20, 70, &q, None, &mut used)), bits(&fresh), "{tokens} tokens, {backend}");
        }
    }
}
