//! Products with block-quantised weights, on every backend, against their scalar definitions bit for bit.

use moe_core::numerics::{self, IntegerBlock as Terms, add_int8_block, dot, quantise_int8};
use ndarray::Array2;

use crate::blocks::{IntegerBlock, with_integer_block};
use crate::tile::Tiling;
use crate::{Activations, Backend, BlockType, Dtype, Linear, LinearScratch, WeightFormat, WeightMatrix};

/// Pseudo-random bytes (a 64-bit linear congruence).
fn random_bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// A matrix of random blocks whose scales are finite.
fn random_matrix(block: BlockType, seed: u64, rows: usize, columns: usize) -> WeightMatrix {
    let mut bytes = random_bytes(seed, rows * block.row_bytes(columns).unwrap());
    for (i, bytes) in bytes.chunks_exact_mut(block.bytes()).enumerate() {
        let mut set = |at: usize| bytes[at + 1] = [0x2c, 0xa9, 0x0b, 0x80][i % 4] | bytes[at + 1] & 3;
        match block {
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => [0, 2].map(&mut set),
            BlockType::Q2K => [80, 82].map(&mut set),
            BlockType::Q3K => [108; 2].map(&mut set),
            BlockType::Q6K => [208; 2].map(&mut set),
            BlockType::Mxfp4 => {
                bytes[0] = 110 + bytes[0] % 20;
                continue;
            }
            _ => [0; 2].map(&mut set),
        };
    }
    WeightMatrix::new(bytes.into(), block, rows, columns).unwrap()
}

fn random_x(seed: u64, tokens: usize, columns: usize) -> Array2<f32> {
    let bytes = random_bytes(seed, tokens * columns);
    Array2::from_shape_fn((tokens, columns), |(t, c)| {
        let v = f32::from(bytes[t * columns + c] as i8) / 50.0;
        // Blocks of zeros, of tiny numbers and of very large ones, and one that stands out.
        match (c / 32 + t) % 11 {
            3 => 0.0,
            5 => v * 1e-37,
            6 => v * 1e18,
            _ if (c + t) % 97 == 0 => v * 37.5,
            _ => v,
        }
    })
}

/// `x · wᵀ` with int8 activations by the definition.
fn int8_product(x: &[f32], w: &[u8], block: BlockType) -> f32 {
    with_integer_block!(block, B => int8_product_of::<B>(x, w), else => unreachable!())
}

fn int8_product_of<B: IntegerBlock>(x: &[f32], w: &[u8]) -> f32 {
    let subs = B::ELEMENTS / B::SUB;
    let mut sum = 0.0;
    for (x, w) in x.chunks(B::ELEMENTS).zip(w.chunks(B::BYTES)) {
        let mut codes = vec![0u8; B::ELEMENTS];
        let (mut scales, mut minima) = (vec![1i8; subs], vec![0u8; subs]);
        B::quants(w, &mut codes);
        if B::SCALED {
            B::scales(w, &mut scales);
        }
        if B::MINIMA {
            B::minima(w, &mut minima);
        }
        let quant = |q: &u8| if B::SIGNED { i16::from(*q as i8) } else { i16::from(*q) - B::ZERO as i16 };
        let quants: Vec<i16> = codes.iter().map(quant).collect();
        let minimum = B::MINIMA.then(|| B::minimum(w));
        let terms = Terms { scale: B::scale(w), minimum, scales: &scales, minima: &minima, quants: &quants };
        let mut q = vec![0i8; B::ELEMENTS];
        let xs = quantise_int8(x, &mut q);
        sum = add_int8_block(sum, &terms, &q, xs);
    }
    sum
}

fn linear(w: &WeightMatrix, x: &Array2<f32>, activations: Activations, backend: Backend) -> Vec<u32> {
    let map = Linear::new(w.clone(), backend).with_input_precision(activations);
    assert_eq!(map.input_precision(), activations);
    let mut y = Array2::from_elem((x.nrows(), w.rows()), f32::NAN);
    map.forward(x.view(), &mut LinearScratch::default(), y.view_mut()).unwrap();
    y.iter().map(|v| v.to_bits()).collect()
}

/// Tokens, blocks of 256 columns, and rows of weights.
const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (1, 5, 50), (2, 2, 17), (3, 1, 48), (7, 3, 100), (9, 2, 16), (16, 4, 31), (133, 1, 49)];

#[test]
fn int8_is_the_definition() {
    for &block in BlockType::ALL.iter().filter(|block| block.has_int8()) {
        for (i, (tokens, blocks, rows)) in SHAPES.into_iter().enumerate() {
            // Rows of blocks of 32 may end anywhere.
            let columns = if block.elements() == 32 { blocks * 256 + 32 * (i % 8) } else { blocks * 256 };
            let w = random_matrix(block, i as u64, rows, columns);
            let x = random_x(i as u64 + 100, tokens, columns);
            let expected: Vec<u32> = (x.rows().into_iter())
                .flat_map(|x| (0..rows).map(move |n| (x, n)))
                .map(|(x, n)| int8_product(&x.to_vec(), w.view().row(n), block).to_bits())
                .collect();
            assert!(expected.iter().any(|v| f32::from_bits(*v) != 0.0));
            for backend in Backend::available() {
                let y = linear(&w, &x, Activations::Int8, backend);
                assert!(y == expected, "{block} {tokens} x {columns} x {rows} {backend}");
            }
        }
    }
}

#[test]
fn exact_is_the_definition() {
    for &block in BlockType::ALL {
        for (i, (tokens, blocks, rows)) in SHAPES.into_iter().enumerate() {
            let columns = if block.elements() == 32 { blocks * 256 + 32 * (i % 8) } else { blocks * 256 };
            let w = random_matrix(block, i as u64 + 50, rows, columns);
            let x = random_x(i as u64 + 150, tokens, columns);
            let mut wide = vec![0.0; columns];
            let mut expected = vec![0; tokens * rows];
            for n in 0..rows {
                w.widen_row(n, &mut wide);
                for (t, x) in x.rows().into_iter().enumerate() {
                    expected[t * rows + n] = dot(&x.to_vec(), &wide).to_bits();
                }
            }
            for backend in Backend::available() {
                let y = linear(&w, &x, Activations::F32, backend);
                // The scales of some types may be no numbers, which have no bits of their own.
                let same = |(a, b): (&u32, &u32)| {
                    a == b || f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan()
                };
                assert!(y.iter().zip(&expected).all(same), "{block} {tokens} x {columns} x {rows} {backend}");
            }
        }
    }
}

/// Which tiling is taken depends on what the processor is found to be; the bits do not.
#[test]
fn every_tiling_gives_the_same_bits() {
    let formats = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(WeightFormat::Plain);
    for format in formats.into_iter().chain([BlockType::Q4K, BlockType::Q8_0].map(WeightFormat::Blocks)) {
        for (i, (tokens, blocks, rows)) in SHAPES.into_iter().chain([(17, 5, 96), (64, 9, 54)]).enumerate() {
            // Rows of plain elements may end anywhere.
            let columns = blocks * 256 + if matches!(format, WeightFormat::Plain(_)) { 37 * i } else { 0 };
            let w = match format {
                WeightFormat::Plain(dtype) => {
                    let values = random_x(i as u64 + 30, rows, columns).mapv(|v| v % 4.0);
                    let values: Vec<f32> =
                        values.iter().map(|v| if v.abs() < 0.1 { 0.0 } else { *v }).collect();
                    WeightMatrix::rounded(&values, dtype, rows, columns).unwrap()
                }
                WeightFormat::Blocks(block) => random_matrix(block, i as u64, rows, columns),
            };
            let x = random_x(i as u64 + 60, tokens, columns);
            for activations in [Activations::F32, Activations::Bf16] {
                for backend in Backend::available() {
                    let found = [Tiling::Narrow, Tiling::Square, Tiling::Wide].map(|tiling| {
                        let map = Linear::new(w.clone(), backend).with_input_precision(activations);
                        let mut y = Array2::from_elem((tokens, rows), f32::NAN);
                        let map = map.with_tiling(tiling);
                        map.forward(x.view(), &mut LinearScratch::default(), y.view_mut()).unwrap();
                        y.mapv(f32::to_bits)
                    });
                    let [three, four, six] = &found;
                    assert!(three == four && four == six, "{format} {tokens} x {columns} x {rows} {backend}");
                }
            }
        }
    }
}

/// What quantising changes is at most half a step of each activation.
#[test]
fn the_error_of_int8_is_that_of_rounding() {
    let (tokens, columns, rows) = (5, 1024, 20);
    for &block in BlockType::ALL.iter().filter(|block| block.has_int8()) {
        let w = random_matrix(block, 3, rows, columns);
        let x = Array2::from_shape_fn((tokens, columns), |(t, c)| ((t * 31 + c * 17) as f32).sin());
        let y = linear(&w, &x, Activations::Int8, Backend::best());
        let mut wide = vec![0.0; columns];
        let mut worst = 0.0f64;
        for n in 0..rows {
            w.widen_row(n, &mut wide);
            let size: f64 = wide.iter().map(|w| f64::from(w.abs())).sum();
            for t in 0..tokens {
                let terms =
                    x.row(t).iter().zip(&wide).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                let step = 1.0 / 127.0;
                worst = worst.max((f64::from(f32::from_bits(y[t * rows + n])) - terms).abs() / (size * step));
            }
        }
        assert!(worst < 0.5 + 1e-3 && worst > 1e-4, "{block}: {worst}");
    }
}

#[test]
fn what_is_not_finite_is_refused_by_row() {
    let w = random_matrix(BlockType::Q4K, 1, 20, 512);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = random_x(1, 12, 512);
        x[[9, 400]] = bad;
        x[[7, 0]] = bad;
        let map = Linear::new(w.clone(), Backend::best()).with_input_precision(Activations::Int8);
        let mut y = Array2::zeros((12, 20));
        let error = map.forward(x.view(), &mut LinearScratch::default(), y.view_mut()).unwrap_err();
        assert!(matches!(error, crate::Error::InputNotFinite { row: 7 }), "{error}");
    }
    // A largest of 127 at the edges of what a block may be.
    let mut q = [0i8; 2];
    assert_eq!(quantise_int8(&[numerics::INT8_LEAST, 0.0], &mut q), numerics::INT8_LEAST / 127.0);
}
