//! Gates other than the linear one.

use moe_core::{Gate, LinearGate, MoeLayer, PerExpert, Scratch, TokenContext};
use moe_router::{CosineGate, ScoredTopK, SoftCapped};
use ndarray::{Array2, ArrayView2, s};

const DIM: usize = 37;
const REDUCED: usize = 21;
const EXPERTS: usize = 5;

/// Numbers between -1 and 1 that look irregular enough.
fn wave(rows: usize, columns: usize, seed: usize) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(r, c)| {
        ((r * columns + c + seed * 1000 + 1) as f32 * 1.7).powi(2).rem_euclid(2.0) - 1.0
    })
}

fn cosine() -> CosineGate {
    CosineGate::new(wave(REDUCED, DIM, 1), wave(EXPERTS, REDUCED, 2), 0.07).unwrap()
}

fn logits(gate: &dyn Gate, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut out = Array2::zeros((hidden.nrows(), gate.experts()));
    gate.logits(hidden, &TokenContext::new(), &mut Scratch::default(), out.view_mut()).unwrap();
    out
}

/// A cosine is off by no more than the rounding of its sums: D terms for a projection, whose terms may cancel, and d for the
/// lengths and the product, in units of 2⁻²⁴ of vectors of length √D and 1. The temperature multiplies all.
#[test]
fn cosines_against_f64() {
    const BOUND: f64 = ((DIM as f64 + 2.0) * 4.0 + 2.0 * REDUCED as f64) / (1 << 24) as f64 / 0.07;
    let (projection, experts) =
        (wave(REDUCED, DIM, 1).mapv(f64::from), wave(EXPERTS, REDUCED, 2).mapv(f64::from));
    let hidden = wave(9, DIM, 3);
    let found = logits(&cosine(), hidden.view());
    for (t, x) in hidden.rows().into_iter().enumerate() {
        let q = projection.dot(&x.mapv(f64::from));
        for (e, m) in experts.rows().into_iter().enumerate() {
            let exact = q.dot(&m) / (q.dot(&q) * m.dot(&m)).sqrt() / 0.07;
            let off = (f64::from(found[[t, e]]) - exact).abs();
            assert!(off <= BOUND, "token {t}, expert {e}: {exact} {off:e}");
            assert!(found[[t, e]].abs() <= 1.0001 / 0.07);
        }
    }
}

/// Lengths do not matter, not even those whose squares f32 does not hold.
#[test]
fn cosines_know_no_length() {
    let hidden = wave(4, DIM, 3);
    let expected = logits(&cosine(), hidden.view());
    // Powers of two scale exactly.
    for factor in [2f32.powi(-90), 0.25, 8.0, 2f32.powi(90)] {
        assert_eq!(logits(&cosine(), (&hidden * factor).view()), expected, "{factor}");
        let gate = CosineGate::new(wave(REDUCED, DIM, 1), wave(EXPERTS, REDUCED, 2) * factor, 0.07).unwrap();
        assert_eq!(logits(&gate, hidden.view()), expected, "{factor}");
    }
    assert_eq!(logits(&cosine(), Array2::zeros((2, DIM)).view()), Array2::<f32>::zeros((2, EXPERTS)));
    let mut broken = hidden.clone();
    (broken[[0, 3]], broken[[1, 3]]) = (f32::NAN, f32::INFINITY);
    let found = logits(&cosine(), broken.view());
    assert!(found.slice(s![..2, ..]).iter().all(|l| l.is_nan()), "{found}");
    assert_eq!(found.slice(s![2.., ..]), expected.slice(s![2.., ..]));
}

#[test]
fn a_token_alone_is_the_token_in_any_batch() {
    let (hidden, capped) = (wave(11, DIM, 5), SoftCapped::new(cosine(), 3.0).unwrap());
    let whole = logits(&capped, hidden.view());
    // Columns of a wider array: rows that are not contiguous.
    let strided = Array2::from_shape_fn((11, 2 * DIM), |(t, d)| hidden[[t, d / 2]]);
    assert_eq!(logits(&capped, strided.slice(s![.., ..;2])), whole);
    for t in 0..11 {
        assert_eq!(logits(&capped, hidden.slice(s![t..=t, ..])), whole.slice(s![t..=t, ..]));
    }
}

#[test]
fn soft_caps_bound_and_keep_the_order() {
    let capped = SoftCapped::new(LinearGate::new(Array2::eye(7)), 30.0).unwrap();
    let row = Array2::from_shape_vec((1, 7), vec![-1e6, -40.0, -1e-3, 0.0, 1e-3, 40.0, 1e6]).unwrap();
    let found = logits(&capped, row.view());
    assert_eq!((found[[0, 0]], found[[0, 3]], found[[0, 6]]), (-30.0, 0.0, 30.0));
    assert!(found.iter().is_sorted());
    assert!((found[[0, 4]] - 1e-3).abs() < 1e-9 && (found[[0, 5]] - 30.0 * (4f32 / 3.0).tanh()).abs() < 1e-4);
}

#[test]
fn gates_fit_a_layer() {
    struct Same;
    impl moe_core::Expert for Same {
        fn dim(&self) -> usize {
            DIM
        }
        fn forward(
            &self,
            rows: ArrayView2<'_, f32>,
            mut out: ndarray::ArrayViewMut2<'_, f32>,
        ) -> moe_core::Result<()> {
            out.assign(&rows);
            Ok(())
        }
    }
    let bank = PerExpert::new((0..EXPERTS).map(|_| Same).collect()).unwrap();
    let router = ScoredTopK::afmoe(2, vec![0.1; EXPERTS], 1.0).unwrap();
    let gate = SoftCapped::new(cosine(), 30.0).unwrap();
    let layer = MoeLayer::new(Box::new(gate), Box::new(router), Box::new(bank)).unwrap();
    let (hidden, mut y) = (wave(6, DIM, 8), Array2::zeros((6, DIM)));
    let mut workspace = moe_core::Workspace::new();
    layer.forward(hidden.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut()).unwrap();
    assert!((&y - &hidden).iter().all(|d| d.abs() < 1e-6));
}

#[test]
fn settings_that_cannot_work_are_errors() {
    let (p, m) = (|| wave(REDUCED, DIM, 1), || wave(EXPERTS, REDUCED, 2));
    let message = |gate: moe_core::Result<CosineGate>| gate.unwrap_err().to_string();
    assert_eq!(
        message(CosineGate::new(p(), wave(EXPERTS, 3, 1), 0.1)),
        "expert vectors: expected shape [5, 21], found [5, 3]"
    );
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(message(CosineGate::new(p(), m(), temperature)).starts_with("gate: temperature"));
        assert!(SoftCapped::new(cosine(), temperature).is_err());
    }
    for bad in [0.0, f32::NAN, f32::INFINITY] {
        let mut experts = m();
        experts.row_mut(3).fill(bad);
        assert!(message(CosineGate::new(p(), experts, 0.1)).contains("expert 3"));
    }
    let mut out = Array2::zeros((2, EXPERTS + 1));
    let error = cosine().logits(
        wave(2, DIM, 1).view(),
        &TokenContext::new(),
        &mut Scratch::default(),
        out.view_mut(),
    );
    assert_eq!(error.unwrap_err().to_string(), "gate output: expected shape [2, 5], found [2, 6]");
}
