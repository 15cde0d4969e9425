//! The bank reads its rows by index, as if they had been copied side by side.
#![allow(clippy::unwrap_used, reason = "a function that fails here is a test that fails")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use moe_core::{Assignments, Dispatch, Error, Experts, RoutingPlan, Scratch, combine, combine_from};
use moe_kernels::{Activations, Backend, Dtype, SwiGluExperts, SwiGluWeights, WeightMatrix, over_rows};
use ndarray::{Array2, ArrayViewMut2, ShapeBuilder};
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

#[test]
fn outputs_combine_in_parallel_as_they_do_alone() {
    let (tokens, experts, dim) = (301, 5, 523);
    let mut values = Values::new(9);
    let mut assignments = Assignments::new();
    assignments.reset(tokens, experts).unwrap();
    for (t, x) in values.take(tokens).into_iter().enumerate() {
        // None to three experts a token.
        (0..t % 4).for_each(|e| assignments.assign(t, (t + e) % experts, x + e as f32));
    }
    let mut plan = RoutingPlan::new();
    plan.seal(&assignments).unwrap();
    let out = Array2::from_shape_vec((plan.rows(), dim), values.take(plan.rows() * dim)).unwrap();
    let mut expected = Array2::from_elem((tokens, dim), f32::NAN);
    combine(&plan, out.view(), true, expected.view_mut());
    for threads in [1, 2, 3, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = Array2::from_elem((tokens, dim), f32::NAN);
        let stretches = AtomicUsize::new(0);
        let work = |first, y: ArrayViewMut2<'_, f32>| {
            stretches.fetch_add(1, Ordering::Relaxed);
            combine_from(first, &plan, out.view(), true, y);
            Ok(())
        };
        pool.install(|| over_rows(y.view_mut(), &work)).unwrap();
        assert_eq!(bits(&y), bits(&expected), "{threads} threads");
        assert!(stretches.into_inner() > 4, "worth cutting");
        // Of several errors the earliest comes through.
        let work = |first, y: ArrayViewMut2<'_, f32>| match first + y.nrows() > 100 {
            true => Err(Error::TooLarge { what: "rows", found: first }),
            false => Ok(()),
        };
        let error = pool.install(|| over_rows(y.view_mut(), &work)).unwrap_err();
        assert!(matches!(error, Error::TooLarge { found: ..=100, .. }), "{error}");
    }
}
