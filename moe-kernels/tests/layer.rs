//! A whole layer of SwiGLU experts against the same mathematics in f64, whose bound on f32's rounding is carried along.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use moe_core::numerics::{BLOCK, LANES};
use moe_core::{MoeLayer, TokenContext, Workspace};
use moe_kernels::{Backend, Dtype, Linear, SwiGluExperts, SwiGluWeights, WeightMatrix};
use moe_router::TopK;
use ndarray::Array2;
use support::{DTYPES, Values, bits};

/// Half a unit in the last place, relative.
const U: f64 = f32::EPSILON as f64 / 2.0;

/// A number in exact arithmetic, and how far its f32 counterpart may lie from it.
#[derive(Clone, Copy, Debug)]
struct Bounded {
    value: f64,
    error: f64,
}

impl Bounded {
    fn exact(value: f32) -> Self {
        Self { value: value.into(), error: 0.0 }
    }

    /// The largest magnitude of the f32 counterpart.
    fn magnitude(self) -> f64 {
        self.value.abs() + self.error
    }

    /// A result of value `value` whose operands' errors make `error`, rounded within `roundings` half units.
    fn rounded(value: f64, error: f64, roundings: f64) -> Self {
        Self { value, error: error + roundings * 1.01 * U * (value.abs() + error) }
    }

    fn times(self, other: Self) -> Self {
        let error = self.magnitude() * other.error + self.error * other.magnitude();
        Self::rounded(self.value * other.value, error, 1.0)
    }

    /// The derivative of silu is at most 1.1; its own error is 2.5 units, which is 5 half units.
    fn silu(self) -> Self {
        Self::rounded(self.value / (1.0 + (-self.value).exp()), 1.1 * self.error, 5.0)
    }
}

/// A canonical dot product: a term passes at most so many roundings, one a step of its chain, four in the tree, one a block.
fn dot(a: &[Bounded], b: &[f32]) -> Bounded {
    let roundings = (BLOCK / LANES + 4 + a.len().div_ceil(BLOCK)) as f64 * 1.01;
    let terms = a.iter().zip(b).map(|(a, b)| {
        (a.value * f64::from(*b), a.magnitude() * f64::from(b.abs()), a.error * f64::from(b.abs()))
    });
    let (value, magnitude, error) = terms.fold((0.0, 0.0, 0.0), |s, t| (s.0 + t.0, s.1 + t.1, s.2 + t.2));
    Bounded { value, error: error + roundings * U * magnitude }
}

fn rows(w: &WeightMatrix) -> Vec<Vec<f32>> {
    let widen = |n| {
        let mut row = vec![0.0; w.columns()];
        w.widen_row(n, &mut row);
        row
    };
    (0..w.rows()).map(widen).collect()
}

fn product(x: &[Bounded], w: &WeightMatrix) -> Vec<Bounded> {
    rows(w).iter().map(|row| dot(x, row)).collect()
}

fn expert(x: &[Bounded], w: &SwiGluWeights) -> Vec<Bounded> {
    let (g, u) = (product(x, &w.w1), product(x, &w.w3));
    let h: Vec<Bounded> = g.iter().zip(&u).map(|(g, u)| g.silu().times(*u)).collect();
    product(&h, &w.w2)
}

/// Softmax over all logits. With d the largest error of a logit, an exponential is off by a factor of at most exp(2d), and by
/// 1.05 units of its own; sum and quotient add a rounding a term and one.
fn softmax(logits: &[Bounded]) -> Vec<Bounded> {
    let top = logits.iter().map(|l| l.value).fold(f64::MIN, f64::max);
    let d = logits.iter().map(|l| l.error + U * (l.magnitude() + top.abs())).fold(0.0, f64::max);
    let total: f64 = logits.iter().map(|l| (l.value - top).exp()).sum();
    let roundings = 2.0 * 2.1 + logits.len() as f64 + 1.0;
    logits
        .iter()
        .map(|l| {
            let value = (l.value - top).exp() / total;
            Bounded::rounded(value, value * ((4.0 * d).exp() - 1.0), roundings)
        })
        .collect()
}

/// `Σ wₑ fₑ(x)` over all experts.
fn mixture(x: &[f32], gate: &WeightMatrix, bank: &[SwiGluWeights]) -> Vec<Bounded> {
    let x: Vec<Bounded> = x.iter().map(|v| Bounded::exact(*v)).collect();
    let weights = softmax(&product(&x, gate));
    let mut y = vec![Bounded::exact(0.0); x.len()];
    for (w, weights) in bank.iter().zip(weights) {
        for (y, out) in y.iter_mut().zip(expert(&x, w)) {
            let term = weights.times(out);
            *y = Bounded::rounded(y.value + term.value, y.error + term.error, 1.0);
        }
    }
    y
}

struct Layer {
    gate: WeightMatrix,
    bank: Vec<SwiGluWeights>,
}

impl Layer {
    fn new(seed: u64, dtype: Dtype, dim: usize, hidden: usize, experts: usize) -> Self {
        let mut values = Values::new(seed);
        let mut matrix = |rows: usize, columns: usize| {
            let scaled: Vec<f32> =
                values.take(rows * columns).iter().map(|v| 2.0 * v / (columns as f32).sqrt()).collect();
            WeightMatrix::rounded(&scaled, dtype, rows, columns).unwrap()
        };
        let gate = matrix(experts, dim);
        let bank = (0..experts)
            .map(|_| SwiGluWeights {
                w1: matrix(hidden, dim),
                w2: matrix(dim, hidden),
                w3: matrix(hidden, dim),
            })
            .collect();
        Self { gate, bank }
    }

    fn forward(&self, k: usize, x: &Array2<f32>) -> Array2<f32> {
        let backend = Backend::best();
        let layer = MoeLayer::new(
            Box::new(Linear::new(self.gate.clone(), backend)),
            Box::new(TopK::new(k).unwrap()),
            Box::new(SwiGluExperts::new(self.bank.clone(), backend).unwrap()),
        );
        let mut y = Array2::zeros(x.dim());
        layer
            .unwrap()
            .forward(x.view(), TokenContext::new(), &mut Workspace::new(), &mut (), y.view_mut())
            .unwrap();
        y
    }
}

fn tokens(seed: u64, count: usize, dim: usize) -> Array2<f32> {
    Array2::from_shape_vec((count, dim), Values::new(seed).take(count * dim)).unwrap()
}

/// Notes results beyond the bound, and gives the largest share of it that is used.
fn check(what: &str, y: &Array2<f32>, exact: impl Fn(&[f32]) -> Vec<Bounded>, x: &Array2<f32>) -> f64 {
    let mut share = 0.0f64;
    for (x, y) in x.rows().into_iter().zip(y.rows()) {
        for (y, exact) in y.iter().zip(exact(x.to_slice().unwrap())) {
            let distance = (f64::from(*y) - exact.value).abs();
            assert!(
                distance <= exact.error,
                "{what}: {y} is {distance:e} from {}, bound {:e}",
                exact.value,
                exact.error
            );
            share = share.max(distance / exact.error);
        }
    }
    share
}

#[test]
fn all_experts_chosen_is_the_dense_mixture() {
    for (i, dtype) in (0..).zip(DTYPES) {
        for (dim, hidden, experts, count) in [(37, 29, 5, 7), (530, 70, 3, 9), (21, 600, 2, 3)] {
            let layer = Layer::new(30 + i, dtype, dim, hidden, experts);
            let x = tokens(40 + i, count, dim);
            let y = layer.forward(experts, &x);
            let share =
                check(&format!("{dtype} {dim} x {hidden}"), &y, |x| mixture(x, &layer.gate, &layer.bank), &x);
            println!("{dtype} {dim} x {hidden} x {experts}: {share:.3} of the bound");
            // A bound that is never approached at all would prove nothing.
            assert!(share > 1e-4);
        }
    }
}

#[test]
fn one_expert_is_a_plain_network() {
    for dtype in DTYPES {
        let layer = Layer::new(50, dtype, 45, 61, 1);
        let x = tokens(51, 6, 45);
        let plain =
            |x: &[f32]| expert(&x.iter().map(|v| Bounded::exact(*v)).collect::<Vec<_>>(), &layer.bank[0]);
        check(&format!("{dtype}"), &layer.forward(1, &x), plain, &x);
    }
}

#[test]
fn equal_experts_are_one_dense_network() {
    let mut layer = Layer::new(60, Dtype::Bf16, 40, 33, 8);
    layer.bank = vec![layer.bank[0].clone(); 8];
    let x = tokens(61, 11, 40);
    for k in [1, 2, 8] {
        // The weights sum to 1 within a rounding a term, each term and partial sum is rounded once more.
        let dense = |x: &[f32]| {
            let y = expert(&x.iter().map(|v| Bounded::exact(*v)).collect::<Vec<_>>(), &layer.bank[0]);
            y.into_iter().map(|y| Bounded::rounded(y.value, y.error, 3.0 * k as f64 + 5.0)).collect()
        };
        check(&format!("k = {k}"), &layer.forward(k, &x), dense, &x);
    }
}

#[test]
fn permuting_tokens_permutes_outputs() {
    let layer = Layer::new(70, Dtype::F16, 50, 41, 6);
    let x = tokens(71, 23, 50);
    let y = layer.forward(2, &x);
    let order: Vec<usize> = (0..23).map(|t| (t * 7 + 3) % 23).collect();
    let permuted = |a: &Array2<f32>| a.select(ndarray::Axis(0), &order);
    assert_eq!(bits(&layer.forward(2, &permuted(&x))), bits(&permuted(&y)));
    for t in 0..23 {
        let alone = layer.forward(2, &x.select(ndarray::Axis(0), &[t]));
        assert_eq!(bits(&alone), bits(&y.select(ndarray::Axis(0), &[t])), "token {t} alone");
    }
}
