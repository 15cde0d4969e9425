//! Routers of Hugging Face `transformers` 5.24; `tests/fixtures/transformers_5_24.py` made the answers.

use std::sync::LazyLock;

use moe_core::{Assignments, RouteInput, Router, TokenContext};
use moe_router::{
    ExpertScales, MappedLogits, Normalization, Normalizer, Score, ScoredHash, ScoredTopK, TopK,
};
use ndarray::Array2;
use serde_json::Value;

static ANSWERS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../fixtures/transformers_5_24.json")).unwrap());

/// Bound of the relative distance of weights: scores differ by 10 units of 2⁻²⁴ at most (as `scored` derives), their sum by as
/// much and a rounding for each of up to six terms, and division and scales round four times.
const BOUND: f64 = (10.0 + 10.0 + 6.0 + 4.0) / 16_777_216.0;

fn cases(group: &str, count: usize) -> &'static [Value] {
    let cases = ANSWERS["groups"][group].as_array().unwrap();
    assert_eq!(cases.len(), count);
    cases
}

fn singles(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|x| x.to_string().parse().unwrap()).collect()
}

fn single(case: &Value, name: &str) -> f32 {
    case["settings"][name].to_string().parse().unwrap()
}

fn size(case: &Value, name: &str) -> usize {
    case["settings"][name].as_u64().unwrap() as usize
}

/// `[T, E]`.
fn logits(case: &Value) -> Array2<f32> {
    let rows: Vec<Vec<f32>> = case["inputs"]["logits"].as_array().unwrap().iter().map(singles).collect();
    Array2::from_shape_fn((rows.len(), rows[0].len()), |(t, e)| rows[t][e])
}

/// What the reference gave token t: pairs of expert and weight, in ascending order of experts.
fn expected(case: &Value, t: usize) -> Vec<(usize, f32)> {
    let ids = case["outputs"]["ids"][t].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as usize);
    let mut pairs: Vec<_> = ids.zip(singles(&case["outputs"]["weights"][t])).collect();
    pairs.sort_by_key(|pair| pair.0);
    pairs
}

/// Compares experts exactly and weights within `bound`.
fn compare(router: &dyn Router, logits: &Array2<f32>, context: TokenContext<'_>, bound: f64, case: &Value) {
    compare_with(router, logits, context, bound, |t| expected(case, t));
}

fn compare_with(
    router: &dyn Router,
    logits: &Array2<f32>,
    context: TokenContext<'_>,
    bound: f64,
    expected: impl Fn(usize) -> Vec<(usize, f32)>,
) {
    let mut out = Assignments::new();
    out.reset(logits.nrows(), logits.ncols()).unwrap();
    router.route(&RouteInput::new(logits.view(), context).unwrap(), &mut out).unwrap();
    assert!(out.refused().is_empty());
    for t in 0..logits.nrows() {
        let of_token = out.granted().iter().filter(|p| p.token as usize == t);
        let mut found: Vec<_> = of_token.map(|p| (p.expert as usize, p.weight)).collect();
        found.sort_by_key(|pair| pair.0);
        let expected = expected(t);
        let near = |(a, b): (&(usize, f32), &(usize, f32))| {
            // Below the normal numbers an ulp is no share of them.
            let near = bound * f64::from(b.1.abs()) + f64::from(f32::MIN_POSITIVE);
            a.0 == b.0 && (f64::from(a.1) - f64::from(b.1)).abs() <= near
        };
        let alike = found.len() == expected.len() && found.iter().zip(&expected).all(near);
        assert!(alike, "token {t}: {found:?}, expected {expected:?}");
    }
}

#[test]
fn muse_spark() {
    for case in cases("muse_spark", 2) {
        let scored = ScoredTopK::new(size(case, "k"), Score::Sigmoid)
            .and_then(|r| r.with_bias(singles(&case["inputs"]["bias"])))
            .and_then(|r| r.normalized(Normalizer::Sum { epsilon: single(case, "epsilon") }))
            .and_then(|r| r.scaled(single(case, "scale")))
            .unwrap();
        let router = MappedLogits::scaled(scored, single(case, "multiplier")).unwrap();
        compare(&router, &logits(case), TokenContext::new(), BOUND, case);
    }
}

#[test]
fn gemma4() {
    for case in cases("gemma4", 2) {
        let top = TopK::new(size(case, "k")).unwrap().normalized(Normalization::OverAllRenormalized);
        let router = ExpertScales::new(top, singles(&case["inputs"]["scales"])).unwrap();
        compare(&router, &logits(case), TokenContext::new(), BOUND, case);
    }
}

#[test]
fn deepseek_v4_hash() {
    let wholes = |list: &Value| -> Vec<u32> {
        list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    for case in cases("deepseek_v4_hash", 2) {
        let score = match case["settings"]["score"].as_str().unwrap() {
            "sigmoid" => Score::Sigmoid,
            _ => Score::SqrtSoftplus,
        };
        let table: Vec<u32> = case["inputs"]["table"].as_array().unwrap().iter().flat_map(wholes).collect();
        let router = ScoredHash::new(size(case, "k"), score)
            .and_then(|r| r.normalized(Normalizer::Sum { epsilon: 1e-20 }))
            .and_then(|r| r.scaled(single(case, "scale")))
            .and_then(|r| r.table(table))
            .unwrap();
        let ids = wholes(&case["inputs"]["token_ids"]);
        compare(&router, &logits(case), TokenContext::new().with_token_ids(&ids), BOUND, case);
    }
}

#[test]
fn inkling() {
    for case in cases("inkling", 3) {
        let (k, shared) = (size(case, "k"), size(case, "shared"));
        let bias = singles(&case["inputs"]["bias"]);
        let router = ScoredTopK::inkling(k, shared, bias, single(case, "scale")).unwrap();
        let logits = logits(case);
        let routed = logits.ncols() - shared;
        let with_shared = |t: usize| {
            let mut pairs = expected(case, t);
            pairs.extend((routed..).zip(singles(&case["outputs"]["shared_gammas"][t])));
            pairs
        };
        // The reference rounds logarithms of sigmoids, which are as great as the logits, and their difference.
        let greatest = logits.iter().fold(0.0f32, |m, l| m.max(l.abs()));
        let bound = BOUND + f64::from(greatest) * 4.0 / 16_777_216.0;
        compare_with(&router, &logits, TokenContext::new(), bound, with_shared);
    }
}
