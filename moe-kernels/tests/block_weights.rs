//! Banks with block-quantised weights, exact and with int8 activations: a row's bits are its own, whatever surrounds it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moe_core::{Dispatch, Experts, Scratch};
use moe_kernels::{
    Activations, Backend, BlockType, Dtype, Error, Linear, LinearScratch, SwiGlu, SwiGluExperts, SwiGluView,
    SwiGluWeights, WeightFormat, WeightMatrix, WeightView,
};
use ndarray::{Array2, ArrayView2, s};
use support::{Values, bits, in_order, random_blocks};

const DIM: usize = 256;
const HIDDEN: usize = 512;

/// An expert whose matrices are stored so.
fn expert(seed: u64, formats: [WeightFormat; 3]) -> SwiGluWeights {
    let matrix = |seed, format, rows: usize, columns: usize| match format {
        WeightFormat::Blocks(block) => random_blocks(block, seed, rows, columns),
        WeightFormat::Plain(dtype) => {
            WeightMatrix::rounded(&Values::new(seed).take(rows * columns), dtype, rows, columns).unwrap()
        }
        _ => unreachable!(),
    };
    SwiGluWeights {
        w1: matrix(3 * seed, formats[0], HIDDEN, DIM),
        w2: matrix(3 * seed + 1, formats[1], DIM, HIDDEN),
        w3: matrix(3 * seed + 2, formats[2], HIDDEN, DIM),
    }
}

/// Rows of a size that keeps hidden values finite whatever the scales.
fn rows(seed: u64, count: usize) -> Array2<f32> {
    let values = Values::new(seed).take(count * DIM);
    Array2::from_shape_vec((count, DIM), values).unwrap()
}

fn run(bank: &SwiGluExperts, x: ArrayView2<'_, f32>, offsets: &[usize]) -> Array2<f32> {
    let mut y = Array2::from_elem(x.dim(), f32::NAN);
    let tokens = in_order(x.nrows());
    let dispatch = Dispatch::new(x, &tokens, offsets).unwrap();
    bank.forward(dispatch, &mut Scratch::default(), y.view_mut()).unwrap();
    y
}

/// Every type there is, in turns, so that one bank mixes them with each other, with plain ones, and from matrix to matrix.
fn mixed_bank(experts: usize) -> Vec<SwiGluWeights> {
    let plain = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(WeightFormat::from);
    let all: Vec<WeightFormat> =
        BlockType::ALL.iter().filter(|b| b.has_int8()).map(|&b| b.into()).chain(plain).collect();
    let format = |i: usize| all[i % all.len()];
    (0..experts).map(|e| expert(e as u64, [format(e), format(5 * e + 3), format(7 * e + 1)])).collect()
}

#[test]
fn a_row_does_not_depend_on_the_others_nor_on_threads_nor_on_the_backend() {
    let weights = mixed_bank(16);
    let counts = [1, 0, 9, 2, 3, 17, 1, 4, 8, 5, 1, 33, 6, 7, 140, 2];
    let mut offsets = vec![0];
    offsets.extend(counts.iter().scan(0, |at, n| {
        *at += n;
        Some(*at)
    }));
    let x = rows(1, offsets[16]);
    for activations in [Activations::F32, Activations::Bf16, Activations::Int8] {
        let bank =
            |backend| SwiGluExperts::new(weights.clone(), backend).unwrap().with_input_precision(activations);
        let expected = run(&bank(Backend::portable()), x.view(), &offsets);
        assert!(expected.iter().all(|y| y.is_finite()) && expected.iter().any(|y| *y != 0.0));
        for backend in Backend::available() {
            let bank = bank(backend);
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let y = pool.install(|| run(&bank, x.view(), &offsets));
                assert_eq!(bits(&y), bits(&expected), "{activations} {backend} {threads} threads");
            }
            // Each expert's first row alone, and all of its rows cut in two.
            for e in 0..16 {
                let (from, until) = (offsets[e], offsets[e + 1]);
                for part in [from..until.min(from + 1), from..from + (until - from) / 2] {
                    let alone: Vec<usize> = (0..=16).map(|i| if i <= e { 0 } else { part.len() }).collect();
                    let y = run(&bank, x.slice(s![part.clone(), ..]), &alone);
                    let expected = expected.slice(s![part, ..]).to_owned();
                    assert_eq!(bits(&y), bits(&expected), "{activations} {backend} expert {e}");
                }
            }
        }
    }
}

#[test]
fn what_each_matrix_does_to_its_input() {
    let q4 = WeightFormat::from(BlockType::Q4K);
    let grid = WeightFormat::from(BlockType::Iq2S);
    let formats = [[q4, Dtype::Bf16.into(), grid], [Dtype::F32.into(), q4, q4]];
    let of = |activations| {
        let bank = SwiGlu::new(DIM, HIDDEN, formats, activations, Backend::best()).unwrap();
        [bank.input_precision(0), bank.input_precision(1)]
    };
    let (f32, bf16, int8) = (Activations::F32, Activations::Bf16, Activations::Int8);
    assert_eq!(of(f32), [[f32; 3]; 2]);
    assert_eq!(of(bf16), [[f32, bf16, f32], [f32; 3]]);
    assert_eq!(of(int8), [[int8, f32, f32], [f32, int8, int8]]);
}

/// A bank over bytes that somebody else holds: no tensor type of this crate but views.
#[test]
fn borrowed_bytes_are_multiplied_where_they_lie() {
    let weights = mixed_bank(4);
    let bank =
        SwiGluExperts::new(weights.clone(), Backend::best()).unwrap().with_input_precision(Activations::Int8);
    let (x, offsets) = (rows(2, 11), [0, 3, 3, 10, 11]);
    let expected = run(&bank, x.view(), &offsets);

    let formats = weights.iter().map(|w| [w.w1.format(), w.w2.format(), w.w3.format()]);
    let borrowed = SwiGlu::new(DIM, HIDDEN, formats, Activations::Int8, Backend::best()).unwrap();
    let view = |e: usize| {
        let of = |w: &WeightMatrix| {
            // At any address.
            let mut bytes = vec![0; 1 + w.bytes().len()];
            bytes[1..].copy_from_slice(w.bytes());
            (bytes, w.format(), w.rows(), w.columns())
        };
        [of(&weights[e].w1), of(&weights[e].w2), of(&weights[e].w3)]
    };
    let bytes: Vec<_> = (0..4).map(view).collect();
    let views = |e: usize| {
        assert_ne!(e, 1, "an expert without rows is not asked for");
        let of = |m: usize| {
            let (bytes, format, rows, columns) = &bytes[e][m];
            WeightView::new(&bytes[1..], *format, *rows, *columns).unwrap()
        };
        SwiGluView { w1: of(0), w2: of(1), w3: of(2) }
    };
    let mut y = Array2::zeros((11, DIM));
    let tokens = in_order(11);
    let dispatch = Dispatch::new(x.view(), &tokens, &offsets).unwrap();
    borrowed.forward(views, dispatch, &mut Scratch::default(), y.view_mut()).unwrap();
    assert_eq!(bits(&y), bits(&expected));
    // Weights of another format than was said.
    let wrong = |_: usize| weights[1].view();
    let error = borrowed.forward(wrong, dispatch, &mut Scratch::default(), y.view_mut()).unwrap_err();
    assert!(error.to_string().contains("expert 0 w1: expected q8_0 weights, found q4_0"), "{error}");
}

#[test]
fn matrices_of_partial_blocks_are_refused() {
    let error = WeightMatrix::new(vec![0; 144].into(), BlockType::Q4K, 1, 255).unwrap_err();
    assert!(matches!(error, Error::Bytes { .. }), "{error}");
    let error = WeightMatrix::new(vec![0; 144].into(), BlockType::Q4K, 2, 256).unwrap_err().to_string();
    assert_eq!(error, "2 x 256 q4_k matrix: expected 288 bytes, found 144");
}

/// Maps of one x, of several kinds, are what each of them is.
#[test]
fn maps_together_are_maps_alone() {
    let x = rows(3, 21);
    for backend in Backend::available() {
        let map = |format: WeightFormat, seed, outputs| {
            let w = match format {
                WeightFormat::Blocks(block) => random_blocks(block, seed, outputs, DIM),
                _ => WeightMatrix::rounded(&Values::new(seed).take(outputs * DIM), Dtype::Bf16, outputs, DIM)
                    .unwrap(),
            };
            Linear::new(w, backend).with_input_precision(Activations::Int8)
        };
        let maps = [
            map(BlockType::Q4_0.into(), 1, 100),
            map(BlockType::Q6K.into(), 2, 33),
            map(Dtype::Bf16.into(), 3, 7),
        ];
        let mut ys = [100, 33, 7].map(|n| Array2::zeros((21, n)));
        let [a, b, c] = &mut ys;
        let outs = [a.view_mut(), b.view_mut(), c.view_mut()];
        Linear::forward_each([&maps[0], &maps[1], &maps[2]], x.view(), &mut LinearScratch::default(), outs)
            .unwrap();
        for (map, together) in maps.iter().zip(&ys) {
            let mut y = Array2::zeros(together.dim());
            map.forward(x.view(), &mut LinearScratch::default(), y.view_mut()).unwrap();
            assert_eq!(bits(&y), bits(together), "{backend}");
        }
    }
}
