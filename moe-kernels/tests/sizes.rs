//! What only size, shape or a neighbour reaches: branches of many rows, every width, views that are not side by side, and
//! rows that are no numbers beside rows that are. Every backend against arithmetic of this file's own, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moe_core::{Dispatch, Experts, Scratch, numerics};
use moe_kernels::attention::{AttentionScratch, AttentionShape, KvRows, POSITIONS, attend};
use moe_kernels::{
    Activations, Backend, Dtype, Error, Linear, LinearScratch, SwiGluExperts, SwiGluWeights, WeightMatrix,
    narrow_row, padded_row_bytes, vector,
};
use ndarray::{Array2, ArrayView2, s};
use support::{DTYPES, Values, bits, in_order};

fn matrix(values: &mut Values, rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_vec((rows, columns), values.take(rows * columns)).unwrap()
}

/// The canonical dot product, written out: sixteen chains a block of 512, halved four times.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut total = 0.0;
    for start in (0..a.len()).step_by(512) {
        let mut lanes = [0.0f32; 16];
        for i in start..a.len().min(start + 512) {
            lanes[i % 16] = a[i].mul_add(b[i], lanes[i % 16]);
        }
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|i| lanes[i] += lanes[i + half]);
        }
        total += lanes[0];
    }
    total
}

fn product(x: ArrayView2<'_, f32>, w: &Array2<f32>) -> Array2<f32> {
    let x = x.as_standard_layout();
    Array2::from_shape_fn((x.nrows(), w.nrows()), |(t, n)| {
        dot(x.row(t).to_slice().unwrap(), w.row(n).to_slice().unwrap())
    })
}

/// What `w` is once it is stored.
fn stored(w: &WeightMatrix) -> Array2<f32> {
    let mut wide = Array2::zeros((w.rows(), w.columns()));
    for (n, mut row) in wide.rows_mut().into_iter().enumerate() {
        w.widen_row(n, row.as_slice_mut().unwrap());
    }
    wide
}

#[test]
fn norms_of_many_rows() {
    let mut values = Values::new(200);
    let weight = values.take(101);
    let x = matrix(&mut values, 400, 101);
    let expected = Array2::from_shape_fn((400, 101), |(t, c)| {
        let row = x.row(t).to_vec();
        weight[c] * (row[c] * (1.0 / (dot(&row, &row) / 101.0 + 1e-5).sqrt()))
    });
    // The same numbers column by column, and in every second column.
    let columns = x.t().as_standard_layout().into_owned();
    let mut spread = Array2::from_elem((400, 202), f32::NAN);
    spread.slice_mut(s![.., ..;2]).assign(&x);
    for backend in Backend::available() {
        for x in [x.view(), columns.t(), spread.slice(s![.., ..;2])] {
            let mut y = Array2::from_elem((400, 101), f32::NAN);
            vector::rms_norm(backend, x, &weight, 1e-5, y.view_mut());
            assert_eq!(bits(&y), bits(&expected), "{backend}");
            let mut y = Array2::from_elem((101, 400), f32::NAN);
            vector::rms_norm(backend, x, &weight, 1e-5, y.view_mut().reversed_axes());
            assert_eq!(bits(&y.t().to_owned()), bits(&expected), "{backend}, transposed output");
        }
    }
}

/// More outputs than one thread copies, and panels of them side by side, into and out of views of any kind.
#[test]
fn many_outputs_are_copied_where_they_belong() {
    let mut values = Values::new(201);
    for (tokens, inner, outer) in [(260, 3, 530), (30, 1030, 100)] {
        let columns = matrix(&mut values, inner, tokens);
        let x = columns.t();
        let side_by_side = x.as_standard_layout().into_owned();
        for dtype in DTYPES {
            let w = WeightMatrix::rounded(&values.take(outer * inner), dtype, outer, inner).unwrap();
            let expected = bits(&product(x, &stored(&w)));
            for backend in Backend::available() {
                let map = Linear::new(w.clone(), backend);
                let mut scratch = LinearScratch::default();
                for x in [x, side_by_side.view()] {
                    let mut y = Array2::from_elem((tokens, outer), f32::NAN);
                    map.forward(x, &mut scratch, y.view_mut()).unwrap();
                    assert_eq!(bits(&y), expected, "{tokens} x {inner} x {outer} {dtype} {backend}");
                    let mut y = Array2::from_elem((outer, tokens), f32::NAN);
                    map.forward(x, &mut scratch, y.view_mut().reversed_axes()).unwrap();
                    assert_eq!(bits(&y.t().to_owned()), expected, "{dtype} {backend}, transposed output");
                }
            }
        }
    }
}

/// Every width on either side of tiles, panels and blocks.
#[test]
fn every_width() {
    let mut values = Values::new(202);
    for width in 1..=97 {
        let (wide, narrow) = (matrix(&mut values, 5, 19), matrix(&mut values, 5, width));
        for dtype in DTYPES {
            // As many outputs, then as many inputs.
            for (x, outer) in [(&wide, width), (&narrow, 3)] {
                let inner = x.ncols();
                let w = WeightMatrix::rounded(&values.take(outer * inner), dtype, outer, inner).unwrap();
                let expected = product(x.view(), &stored(&w));
                for backend in Backend::available() {
                    for rows in [1, 5] {
                        let x = x.slice(s![..rows, ..]);
                        let mut y = Array2::from_elem((rows, outer), f32::NAN);
                        let map = Linear::new(w.clone(), backend);
                        map.forward(x, &mut LinearScratch::default(), y.view_mut()).unwrap();
                        let expected = expected.slice(s![..rows, ..]).to_owned();
                        assert_eq!(bits(&y), bits(&expected), "{rows} x {inner} x {outer} {dtype} {backend}");
                    }
                }
            }
        }
    }
}

/// One user's NaN does not touch another's session: neither in one pass, nor by what a pass leaves in memory.
#[test]
fn a_row_of_nan_is_no_concern_of_others() {
    let mut values = Values::new(203);
    // Widths that end within a vector; hidden rows too.
    for (dim, hidden, tokens) in [(35, 21, 6), (531, 50, 9), (21, 1037, 3)] {
        let mut weights = |rows: usize, columns: usize, dtype| {
            WeightMatrix::rounded(&values.take(rows * columns), dtype, rows, columns).unwrap()
        };
        let kinds = DTYPES.map(|dtype| (dtype, Activations::F32));
        for (dtype, activations) in kinds.into_iter().chain([(Dtype::Bf16, Activations::Bf16)]) {
            let bank = vec![SwiGluWeights {
                w1: weights(hidden, dim, dtype),
                w2: weights(dim, hidden, dtype),
                w3: weights(hidden, dim, dtype),
            }];
            let x = matrix(&mut Values::new(204), tokens, dim);
            for backend in Backend::available() {
                let map = Linear::new(bank[0].w1.clone(), backend).with_input_precision(activations);
                let experts =
                    SwiGluExperts::new(bank.clone(), backend).unwrap().with_input_precision(activations);
                let (mut scratch, mut of_map) = (Scratch::default(), LinearScratch::default());
                let mut run = |x: &Array2<f32>| {
                    let (order, offsets) = (in_order(tokens), [0, tokens]);
                    let dispatch = Dispatch::new(x.view(), &order, &offsets).unwrap();
                    let mut outs = (Array2::zeros((tokens, dim)), Array2::zeros((tokens, hidden)));
                    experts.forward(dispatch, &mut scratch, outs.0.view_mut()).unwrap();
                    map.forward(x.view(), &mut of_map, outs.1.view_mut()).unwrap();
                    outs
                };
                let alone = run(&x);
                for (bad, number) in (0..tokens).zip([f32::NAN, f32::INFINITY].into_iter().cycle()) {
                    let mut beside = x.clone();
                    beside.row_mut(bad).fill(number);
                    let found = run(&beside);
                    for t in (0..tokens).filter(|t| *t != bad) {
                        let rows = [(&found.0, &alone.0), (&found.1, &alone.1)];
                        for (found, alone) in rows.map(|(found, alone)| (found.row(t), alone.row(t))) {
                            let same =
                                found.iter().map(|v| v.to_bits()).eq(alone.iter().map(|v| v.to_bits()));
                            assert!(same, "row {t} beside {bad}, {dim} x {hidden} {dtype} {backend}");
                        }
                    }
                    assert!(run(&x) == alone, "after row {bad}, {dim} x {hidden} {dtype} {backend}");
                }
            }
        }
    }
}

#[test]
fn a_weight_too_small_is_found_wherever_it_is() {
    // Three stretches of 64 KiB and a part.
    let (rows, columns) = (100, 1000);
    let x = Array2::ones((1, columns));
    let run = |small: &[usize]| {
        let mut w = vec![0.5; rows * columns];
        small.iter().for_each(|&at| w[at] = 1e-30);
        let w = WeightMatrix::rounded(&w, Dtype::Bf16, rows, columns).unwrap();
        let map = Linear::new(w, Backend::best()).with_input_precision(Activations::Bf16);
        map.forward(x.view(), &mut LinearScratch::default(), Array2::zeros((1, rows)).view_mut())
    };
    run(&[]).unwrap();
    for at in [0, 32_767, 32_768, 40_000, 65_535, 65_536, 70_000, 98_303, 98_304, 99_999] {
        let error = run(&[at, 99_999]).unwrap_err();
        let Error::TooSmall { row, column, .. } = error else { panic!("{error}") };
        assert_eq!(row * columns + column, at);
    }
}

#[test]
fn a_window_is_so_many_positions() {
    for window in 1..200 {
        let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 16, scale: 1.0, window: Some(window) };
        for position in 0..300 {
            let seen: Vec<usize> = (0..=position).filter(|j| position - j < window).collect();
            assert_eq!(shape.visible(position).collect::<Vec<_>>(), seen, "{window} at {position}");
        }
    }
}

/// So many outputs that threads share the copying of them, with and without a window.
#[test]
fn attention_of_many_tokens() {
    let (tokens, heads, width) = (300, 4, 128);
    let mut random = Values::new(205);
    let q = matrix(&mut random, tokens, heads * width);
    let (keys, values) = (matrix(&mut random, tokens, width), matrix(&mut random, tokens, width));
    let store = |rows: &Array2<f32>| {
        let mut bytes = vec![0; tokens * padded_row_bytes(Dtype::F32, width)];
        narrow_row(Dtype::F32, rows.as_slice().unwrap(), &mut bytes);
        bytes
    };
    let (key_bytes, value_bytes) = (store(&keys), store(&values));
    for window in [None, Some(70)] {
        let shape = AttentionShape { heads, kv_heads: 1, head_dim: width, scale: 0.09, window };
        let expected = |t: usize, head: usize| {
            let q = q.slice(s![t, head * width..(head + 1) * width]).to_vec();
            let seen: Vec<usize> = (0..=t).filter(|j| window.is_none_or(|w| t - j < w)).collect();
            let score = |&j: &usize| dot(&q, keys.row(j).to_slice().unwrap()) * 0.09;
            let scores: Vec<f32> = seen.iter().map(score).collect();
            let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (mut total, mut y) = (0.0, vec![0.0; width]);
            let positions: Vec<(usize, f32)> =
                seen.into_iter().zip(scores.iter().map(|score| numerics::exp(score - top))).collect();
            for block in positions.chunk_by(|a, b| a.0 / POSITIONS == b.0 / POSITIONS) {
                let (mut sum, mut chain) = (0.0, vec![0.0f32; width]);
                for (j, weight) in block {
                    sum += weight;
                    chain.iter_mut().zip(values.row(*j)).for_each(|(c, v)| *c = weight.mul_add(*v, *c));
                }
                total += sum;
                y.iter_mut().zip(chain).for_each(|(y, c)| *y += c);
            }
            y.into_iter().map(|y| y / total).collect::<Vec<f32>>()
        };
        let mut whole = Array2::zeros(q.dim());
        for t in 0..tokens {
            for head in 0..heads {
                let to = whole.slice_mut(s![t, head * width..(head + 1) * width]);
                to.into_iter().zip(expected(t, head)).for_each(|(to, from)| *to = from);
            }
        }
        for backend in Backend::available() {
            let kv = KvRows { keys: &key_bytes, values: &value_bytes, dtype: Dtype::F32, capacity: tokens };
            let mut y = Array2::from_elem(q.dim(), f32::NAN);
            attend(backend, &shape, q.view(), 0, kv, &mut AttentionScratch::default(), y.view_mut()).unwrap();
            assert_eq!(bits(&y), bits(&whole), "{backend}");
            let mut y = Array2::from_elem((heads * width, tokens), f32::NAN);
            let out = y.view_mut().reversed_axes();
            attend(backend, &shape, q.view(), 0, kv, &mut AttentionScratch::default(), out).unwrap();
            assert_eq!(bits(&y.t().to_owned()), bits(&whole), "{backend}, transposed output");
        }
    }
}

/// Numbers between two of the least that a half has, and at the border to what it cannot have: to the nearest, ties to even.
#[test]
fn the_least_numbers_are_rounded_to_nearest() {
    // The least number of each type, and how many steps of it lead to the least normal one.
    for (dtype, least, normal) in
        [(Dtype::F16, 2f32.powi(-24), 1024), (Dtype::Bf16, f32::from_bits(1 << 16), 128)]
    {
        for steps in [0, 1, 2, 3, 4, normal / 2 - 1, normal / 2, normal - 2, normal - 1, normal, normal + 1] {
            for (eighths, up) in [(0, 0), (1, 0), (3, 0), (4, steps % 2), (5, 1), (7, 1)] {
                let value = f32::from(steps * 8 + eighths) * (least / 8.0);
                for (sign, bit) in [(1.0, 0), (-1.0, 0x8000)] {
                    let mut bytes = [0; 2];
                    narrow_row(dtype, &[sign * value], &mut bytes);
                    assert_eq!(u16::from_le_bytes(bytes), (steps + up) | bit, "{value:e} {dtype}");
                }
            }
        }
    }
}
