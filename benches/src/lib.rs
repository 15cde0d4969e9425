//! Layers of given shape with pseudo-random weights, for the benches.

use moe_core::numerics::uniform;
use moe_core::{Dispatch, MoeLayer, Scratch};
use moe_kernels::{Backend, Dtype, Linear, SwiGluExperts, SwiGluWeights, WeightMatrix};
use moe_router::TopK;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

/// The README's code is compiled and run as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Shape of a layer: D, H, E and k.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Width of a hidden state, D.
    pub dim: usize,
    /// Hidden width of an expert, H.
    pub hidden: usize,
    /// Experts, E.
    pub experts: usize,
    /// Experts a token, k.
    pub chosen: usize,
}

impl Shape {
    /// Useful floating-point operations of T tokens: a multiplication and an addition for each active weight.
    pub fn flops(&self, tokens: usize) -> u64 {
        (6 * self.dim * self.hidden * self.chosen * tokens) as u64
    }

    /// The dense layer of as many active parameters: one expert k times as wide, which every token passes.
    pub fn dense_of_equal_active(&self) -> Self {
        Self { hidden: self.hidden * self.chosen, experts: 1, chosen: 1, ..*self }
    }

    /// The dense layer of as many parameters in all.
    pub fn dense_of_equal_total(&self) -> Self {
        Self { hidden: self.hidden * self.experts, experts: 1, chosen: 1, ..*self }
    }

    /// The layer's name in a bench: `DxHxExk`.
    pub fn name(&self) -> String {
        format!("{}x{}x{}x{}", self.dim, self.hidden, self.experts, self.chosen)
    }
}

/// A matrix of pseudo-random values, scaled so that products stay of order 1.
pub fn matrix(seed: u64, dtype: Dtype, rows: usize, columns: usize) -> WeightMatrix {
    let scale = 2.0 / (columns as f32).sqrt();
    // A long period is random enough for timing, and quick to make.
    let period: Vec<f32> = (0..65_521).map(|i| (uniform(seed, &[i]) - 0.5) * scale).collect();
    let values: Vec<f32> = period.iter().copied().cycle().take(rows * columns).collect();
    WeightMatrix::rounded(&values, dtype, rows, columns).expect("as many values as the shape says")
}

/// The experts of a layer.
pub fn bank(shape: Shape, dtype: Dtype, backend: Backend) -> SwiGluExperts {
    let Shape { dim, hidden, experts, .. } = shape;
    let weights = (0..experts as u64)
        .map(|e| SwiGluWeights {
            w1: matrix(3 * e, dtype, hidden, dim),
            w2: matrix(3 * e + 1, dtype, dim, hidden),
            w3: matrix(3 * e + 2, dtype, hidden, dim),
        })
        .collect();
    SwiGluExperts::new(weights, backend).expect("shapes fit")
}

/// A whole layer: gate, top-k router, experts.
pub fn layer(shape: Shape, dtype: Dtype, backend: Backend) -> MoeLayer {
    let gate = Linear::new(matrix(999, dtype, shape.experts, shape.dim), backend);
    let router = TopK::new(shape.chosen).expect("k is at least 1");
    MoeLayer::new(Box::new(gate), Box::new(router), Box::new(bank(shape, dtype, backend)))
        .expect("shapes fit")
}

/// T hidden states of order 1.
pub fn tokens(count: usize, dim: usize) -> Array2<f32> {
    Array2::from_shape_fn((count, dim), |(t, d)| uniform(5, &[t as u64, d as u64]) * 2.0 - 1.0)
}

/// Runs a dense feed-forward network: a bank of one expert on all rows.
pub fn dense(bank: &SwiGluExperts, x: ArrayView2<'_, f32>, scratch: &mut Scratch, y: ArrayViewMut2<'_, f32>) {
    use moe_core::Experts;
    let (tokens, offsets) = (Vec::from_iter(0..x.nrows() as u32), [0, x.nrows()]);
    let dispatch = Dispatch::new(x, &tokens, &offsets).expect("offsets ascend");
    bank.forward(dispatch, scratch, y).expect("shapes fit");
}
