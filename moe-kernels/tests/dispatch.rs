//! The bank reads its rows by index, as if they had been copied side by side.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod support;

use moe_core::{Dispatch, Experts, Scratch};
use moe_kernels::{Activations, Backend, Dtype, SwiGluExperts, SwiGluWeights, WeightMatrix};
use ndarray::{Array2, ShapeBuilder};
use support::{Values, bits, in_order};

#[test]
fn rows_by_index_are_the_rows_gathered() {
    let (tokens, experts, dim, hidden) = (17, 3, 37, 53);
    let mut values = Values::new(5);
    let mut matrix = |rows, columns| {
        WeightMatrix::rounded(&values.take(rows * columns), Dtype::Bf16, rows, columns).unwrap()
    };
    let bank: Vec<_> = (0..experts)
        .map(|_| SwiGluWeights { w1: matrix(hidden, dim), w2: matrix(dim, hidden), w3: matrix(hidden, dim) })
        .collect();
    let x = Array2::from_shape_vec((tokens, dim), values.take(tokens * dim)).unwrap();
    let mut columns_first = Array2::zeros((tokens, dim).f());
    columns_first.assign(&x);
    // Expert 0 takes every second token, 1 none, 2 all.
    let row_tokens: Vec<u32> = (0..tokens as u32).step_by(2).chain(0..tokens as u32).collect();
    let rows = row_tokens.len();
    let offsets = [0, rows - tokens, rows - tokens, rows];
    let weights = values.take(rows);
    for backend in Backend::available() {
        for activations in [Activations::F32, Activations::Bf16] {
            let bank = SwiGluExperts::new(bank.clone(), backend).unwrap().with_input_precision(activations);
            let run = |dispatch: Dispatch<'_>| {
                let mut y = Array2::from_elem((rows, dim), f32::NAN);
                bank.forward(dispatch, &mut Scratch::default(), y.view_mut()).unwrap();
                bits(&y)
            };
            for hidden in [&x, &columns_first] {
                let plain = Dispatch::new(hidden.view(), &row_tokens, &offsets).unwrap();
                for dispatch in [plain, plain.with_input_weights(&weights).unwrap()] {
                    let mut gathered = Array2::zeros((rows, dim));
                    dispatch.gather(0..rows, gathered.view_mut());
                    let tokens = in_order(rows);
                    let side_by_side = Dispatch::new(gathered.view(), &tokens, &offsets).unwrap();
                    assert_eq!(run(dispatch), run(side_by_side), "{backend} {activations:?}");
                }
            }
        }
    }
}
