//! Products with bfloat16 activations: every backend against the definition, bit for bit, and what they refuse.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moe_core::{Dispatch, Experts, Scratch, numerics};
use moe_kernels::{
    Activations, Backend, Dtype, Error, Linear, LinearScratch, SwiGluExperts, SwiGluWeights, WeightMatrix,
};
use ndarray::{Array2, ArrayView2};
use support::{Values, bits, in_order};

/// `x · wᵀ` by the definition.
fn product(x: ArrayView2<'_, f32>, w: &WeightMatrix) -> Array2<f32> {
    let mut row = vec![0.0; w.columns()];
    let mut y = Array2::zeros((x.nrows(), w.rows()));
    for n in 0..w.rows() {
        w.widen_row(n, &mut row);
        for (x, mut y) in x.rows().into_iter().zip(y.rows_mut()) {
            y[n] = numerics::dot_bf16(&x.to_vec(), &row);
        }
    }
    y
}

fn weights(values: &mut Values, rows: usize, columns: usize) -> WeightMatrix {
    // None is too small: pseudo-random values are multiples of 2^-23.
    WeightMatrix::rounded(&values.take(rows * columns), Dtype::Bf16, rows, columns).unwrap()
}

fn linear(x: &Array2<f32>, w: &WeightMatrix, backend: Backend) -> Result<Array2<f32>, Error> {
    let mut y = Array2::from_elem((x.nrows(), w.rows()), f32::NAN);
    Linear::new(w.clone(), backend).with_input_precision(Activations::Bf16).forward(
        x.view(),
        &mut LinearScratch::default(),
        y.view_mut(),
    )?;
    Ok(y)
}

#[test]
fn linear_is_the_definition() {
    let mut values = Values::new(31);
    for (tokens, inner, outer) in [
        (1, 1, 1),
        (1, 1031, 53),
        (2, 64, 70),
        (3, 100, 5),
        (4, 2080, 31),
        (5, 32, 64),
        (7, 1060, 40),
        (11, 7, 9),
        (23, 1090, 50),
        (131, 40, 65),
        (140, 1100, 52),
        (260, 17, 3),
    ] {
        let w = weights(&mut values, outer, inner);
        let mut x = Array2::from_shape_vec((tokens, inner), values.take(tokens * inner)).unwrap();
        // Large, tiny, too tiny, and zeros of either sign.
        for (i, v) in x.iter_mut().enumerate() {
            *v *= [1.0, 1e4, 1.0, 3e-17, 1.0, 1e-20, 1.0, 0.0, -0.0, 1.0, 1e30][i % 11];
        }
        let expected = product(x.view(), &w);
        for backend in Backend::available() {
            let y = linear(&x, &w, backend).unwrap();
            assert_eq!(bits(&y), bits(&expected), "{tokens} x {inner} x {outer} {backend}");
        }
    }
}

/// Products near the least there are, whose sums cancel: what an instruction that takes denormals for zero must not meet.
#[test]
fn the_smallest_allowed_products_are_exact() {
    let least = numerics::BF16_LEAST;
    let tokens = 3;
    let factors = [1.0, 1.0078125, -1.0, -1.0078125, 1.5, -1.9921875];
    let w: Vec<f32> = (0..5 * 96).map(|i| least * factors[(i * 5 + i / 7) % 6]).collect();
    let w = WeightMatrix::rounded(&w, Dtype::Bf16, 5, 96).unwrap();
    let x = Array2::from_shape_fn((tokens, 96), |(t, i)| least * factors[(i + t) % 6]);
    let expected = product(x.view(), &w);
    assert!(expected.iter().any(|v| *v != 0.0));
    for backend in Backend::available() {
        assert_eq!(bits(&linear(&x, &w, backend).unwrap()), bits(&expected), "{backend}");
    }
}

#[test]
fn experts_are_the_definition() {
    let mut values = Values::new(32);
    for (dim, hidden, groups) in [
        (5, 3, vec![2, 0, 1]),
        (70, 1060, vec![0, 0, 6, 30]),
        (1030, 33, vec![1, 2, 3, 4, 5]),
        (33, 97, vec![140, 1]),
    ] {
        let bank: Vec<_> = (0..groups.len())
            .map(|_| SwiGluWeights {
                w1: weights(&mut values, hidden, dim),
                w2: weights(&mut values, dim, hidden),
                w3: weights(&mut values, hidden, dim),
            })
            .collect();
        let rows: usize = groups.iter().sum();
        let x = Array2::from_shape_vec((rows, dim), values.take(rows * dim)).unwrap();
        let offsets: Vec<usize> = std::iter::once(0)
            .chain(groups.iter().scan(0, |at, n| {
                Some({
                    *at += n;
                    *at
                })
            }))
            .collect();
        let mut expected = Array2::zeros((rows, dim));
        for (e, group) in offsets.windows(2).enumerate() {
            let rows = ndarray::s![group[0]..group[1], ..];
            let mut h = product(x.slice(rows), &bank[e].w1);
            h.zip_mut_with(&product(x.slice(rows), &bank[e].w3), |g, u| *g = numerics::silu(*g) * u);
            expected.slice_mut(rows).assign(&product(h.view(), &bank[e].w2));
        }
        for backend in Backend::available() {
            let experts =
                SwiGluExperts::new(bank.clone(), backend).unwrap().with_input_precision(Activations::Bf16);
            let mut y = Array2::from_elem((rows, dim), f32::NAN);
            let tokens = in_order(rows);
            let dispatch = Dispatch::new(x.view(), &tokens, &offsets).unwrap();
            experts.forward(dispatch, &mut Scratch::default(), y.view_mut()).unwrap();
            assert_eq!(bits(&y), bits(&expected), "{dim} x {hidden} {groups:?} {backend}");
        }
    }
}

/// Rounding x to 8 bits changes a dot product by at most 2⁻⁸ of the sum of its terms' magnitudes, besides rounding in f32.
#[test]
fn the_error_is_that_of_rounding() {
    let mut values = Values::new(33);
    let (tokens, inner, outer) = (9, 3000, 20);
    let w = weights(&mut values, outer, inner);
    let x = Array2::from_shape_vec((tokens, inner), values.take(tokens * inner)).unwrap();
    let y = linear(&x, &w, Backend::best()).unwrap();
    let mut row = vec![0.0; inner];
    let mut worst = 0.0f64;
    for n in 0..outer {
        w.widen_row(n, &mut row);
        for t in 0..tokens {
            let terms =
                x.row(t).iter().zip(&row).map(|(x, w)| f64::from(*x) * f64::from(*w)).collect::<Vec<_>>();
            let (exact, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
            worst = worst.max((f64::from(y[[t, n]]) - exact).abs() / size);
        }
    }
    assert!(worst < 2f64.powi(-8), "{worst}");
    assert!(worst > 1e-6, "they are rounded: {worst}");
    // The worst there is: 1 + 2⁻⁸ is halfway between two bfloat16.
    assert_eq!(numerics::dot_bf16(&[1.0 + 2f32.powi(-8)], &[1.0]), 1.0);
}

#[test]
fn other_weights_are_multiplied_exactly() {
    let mut values = Values::new(34);
    let x = Array2::from_shape_vec((5, 70), values.take(350)).unwrap();
    for dtype in [Dtype::F32, Dtype::F16] {
        let w = WeightMatrix::rounded(&values.take(210), dtype, 3, 70).unwrap();
        let map = Linear::new(w.clone(), Backend::best()).with_input_precision(Activations::Bf16);
        assert_eq!(map.input_precision(), Activations::F32);
        let mut exact = Array2::zeros((5, 3));
        Linear::new(w.clone(), Backend::best())
            .forward(x.view(), &mut LinearScratch::default(), exact.view_mut())
            .unwrap();
        assert_eq!(bits(&linear(&x, &w, Backend::best()).unwrap()), bits(&exact), "{dtype}");
    }
}

/// The kind of each matrix is its own: all mixtures of types give what each expert alone gives with its types.
#[test]
fn types_and_kinds_mix_in_one_bank() {
    let mut values = Values::new(35);
    let (dim, hidden) = (70, 100);
    let types = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let bank: Vec<_> = (0..9)
        .map(|e| {
            let mut matrix = |dtype, rows, columns| {
                WeightMatrix::rounded(&values.take(rows * columns), dtype, rows, columns).unwrap()
            };
            SwiGluWeights {
                w1: matrix(types[e % 3], hidden, dim),
                w2: matrix(types[(e / 3) % 3], dim, hidden),
                w3: matrix(types[(e + e / 3) % 3], hidden, dim),
            }
        })
        .collect();
    let offsets: Vec<usize> = (0..10).map(|e| e * (e + 1) / 2).collect();
    let rows = offsets[9];
    let x = Array2::from_shape_vec((rows, dim), values.take(rows * dim)).unwrap();
    for backend in Backend::available() {
        let run = |bank: Vec<SwiGluWeights>, x: ArrayView2<'_, f32>, offsets: &[usize]| {
            let bank = SwiGluExperts::new(bank, backend).unwrap().with_input_precision(Activations::Bf16);
            let mut y = Array2::from_elem(x.dim(), f32::NAN);
            let tokens = in_order(x.nrows());
            let grouped = Dispatch::new(x, &tokens, offsets).unwrap();
            bank.forward(grouped, &mut Scratch::default(), y.view_mut()).unwrap();
            y
        };
        let together = run(bank.clone(), x.view(), &offsets);
        for e in 0..9 {
            let rows = ndarray::s![offsets[e]..offsets[e + 1], ..];
            let alone = run(vec![bank[e].clone()], x.slice(rows), &[0, offsets[e + 1] - offsets[e]]);
            assert_eq!(bits(&together.slice(rows).to_owned()), bits(&alone), "expert {e}, {backend}");
        }
    }
}

#[test]
fn refuses_weights_that_are_too_small() {
    let x = Array2::zeros((2, 40));
    let mut values = vec![0.5; 120];
    values[40 + 7] = -numerics::BF16_LEAST;
    let fine = WeightMatrix::rounded(&values, Dtype::Bf16, 3, 40).unwrap();
    linear(&x, &fine, Backend::best()).unwrap();
    values[40 + 7] *= 0.99;
    values[50] = 1e-30;
    let w = WeightMatrix::rounded(&values, Dtype::Bf16, 3, 40).unwrap();
    let error = linear(&x, &w, Backend::best()).unwrap_err();
    assert!(matches!(error, Error::TooSmall { row: 1, column: 7, .. }), "{error}");
    Linear::new(w.clone(), Backend::best())
        .forward(x.view(), &mut LinearScratch::default(), Array2::zeros((2, 3)).view_mut())
        .unwrap();

    let square = WeightMatrix::rounded(&[0.5; 9], Dtype::Bf16, 3, 3).unwrap();
    let small = WeightMatrix::rounded(&[1e-30; 9], Dtype::Bf16, 3, 3).unwrap();
    let expert = |w3: &WeightMatrix| SwiGluWeights { w1: square.clone(), w2: square.clone(), w3: w3.clone() };
    let experts = SwiGluExperts::new(vec![expert(&square), expert(&small)], Backend::best()).unwrap();
    let experts = experts.with_input_precision(Activations::Bf16);
    let x = Array2::zeros((1, 3));
    let run = |offsets: &[usize]| {
        let dispatch = Dispatch::new(x.view(), &[0], offsets).unwrap();
        experts.forward(dispatch, &mut Scratch::default(), Array2::zeros((1, 3)).view_mut())
    };
    run(&[0, 1, 1]).expect("an expert without rows is not asked");
    let error = run(&[0, 0, 1]).unwrap_err().to_string();
    assert!(
        error.contains("expert 1 w3: row 0, column 0: expected a weight of zero or at least 2^-56"),
        "{error}"
    );
}
