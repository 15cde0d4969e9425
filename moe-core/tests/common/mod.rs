//! A small layer to test with: a gate that copies, simple routers, linear experts.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use moe_core::{
    Assignments, Error, Expert, Gate, Locality, MoeLayer, PerExpert, Result, RouteInput, Router,
    TokenContext, Workspace, numerics,
};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

/// The logits are the first E numbers of the hidden state, exactly.
pub struct FirstColumns {
    pub experts: usize,
    pub dim: usize,
}

impl Gate for FirstColumns {
    fn experts(&self) -> usize {
        self.experts
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn logits(
        &self,
        hidden: ArrayView2<'_, f32>,
        _: &TokenContext<'_>,
        _: &mut moe_core::Scratch,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<()> {
        out.assign(&hidden.slice(ndarray::s![.., ..self.experts]));
        Ok(())
    }
}

/// The k best experts with their softmax over all; ties to the lower.
pub struct Best(pub usize);

impl Router for Best {
    fn route(&self, input: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        out.with_scratch(|out, scratch| {
            for (token, logits) in input.logits.rows().into_iter().enumerate() {
                scratch.values.clear();
                scratch.values.extend(logits);
                numerics::softmax(&mut scratch.values);
                for _ in 0..self.0 {
                    let left = scratch.values.iter().enumerate().rev();
                    let best = left.max_by(|a, b| a.1.total_cmp(b.1)).map(|(e, &w)| (e, w));
                    let (expert, weight) = best.ok_or_else(|| Error::router("no expert left"))?;
                    out.assign(token, expert, weight);
                    scratch.values[expert] = -1.0;
                }
            }
            Ok(())
        })
    }

    fn locality(&self) -> Locality {
        Locality::Token
    }
}

/// Pushes the same pairs whatever the input.
pub struct Fixed(pub Vec<(usize, usize, f32)>);

impl Router for Fixed {
    fn route(&self, _: &RouteInput<'_>, out: &mut Assignments) -> Result<()> {
        self.0.iter().for_each(|&(token, expert, weight)| out.assign(token, expert, weight));
        Ok(())
    }
}

/// `f(x) = W x`.
pub struct Linear(pub Array2<f32>);

impl Expert for Linear {
    fn dim(&self) -> usize {
        self.0.ncols()
    }

    fn forward(&self, rows: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) -> Result<()> {
        for (x, mut y) in rows.rows().into_iter().zip(out.rows_mut()) {
            for (w, y) in self.0.rows().into_iter().zip(&mut y) {
                *y = numerics::dot(x.as_slice().unwrap(), w.as_slice().unwrap());
            }
        }
        Ok(())
    }
}

/// A fixed, irregular number in -1..1 for each (seed, i).
pub fn noise(seed: usize, i: usize) -> f32 {
    let mut z = (seed as u64) << 32 | i as u64;
    z = (z ^ z >> 16).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z >> 40) as f32 - 8_388_608.0) / 8_388_608.0
}

pub fn matrix(seed: usize, rows: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(r, c)| noise(seed, r * columns + c))
}

/// Weights of the experts, `[D, D]` each.
pub fn weights(experts: usize, dim: usize) -> Vec<Array2<f32>> {
    (0..experts).map(|e| matrix(1000 + e, dim, dim)).collect()
}

pub fn layer(experts: usize, dim: usize, router: impl Router + 'static) -> MoeLayer {
    let bank = PerExpert::new(weights(experts, dim).into_iter().map(Linear).collect()).unwrap();
    MoeLayer::new(Box::new(FirstColumns { experts, dim }), Box::new(router), Box::new(bank)).unwrap()
}

/// One forward pass with a fresh workspace and the default context.
pub fn forward(layer: &MoeLayer, hidden: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
    let mut y = Array2::from_elem(hidden.dim(), f32::NAN);
    layer.forward(hidden, TokenContext::new(), &mut Workspace::new(), &mut (), y.view_mut())?;
    Ok(y)
}

/// The bits of an array, for comparisons that see the sign of zero.
pub fn bits(y: &Array2<f32>) -> Vec<u32> {
    y.iter().map(|v| v.to_bits()).collect()
}

/// What the experts of one token would give alone, for oracles: `W x` in f64.
pub fn linear_f64(w: &Array2<f32>, x: &Array1<f32>) -> Array1<f64> {
    w.mapv(f64::from).dot(&x.mapv(f64::from))
}
