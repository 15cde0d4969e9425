//! Choice within groups by the sum of their best, as Megatron Core has it; `tests/fixtures/megatron_groups.py` made the answers.

use moe_core::{Assignments, RouteInput, Router, TokenContext};
use moe_router::{ExpertGroups, Score, ScoredTopK};
use ndarray::Array2;
use serde_json::Value;

#[test]
fn megatron_groups() {
    let answers: Value = serde_json::from_str(include_str!("../fixtures/megatron_groups.json")).unwrap();
    let cases = answers["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let size = |name: &str| case["settings"][name].as_u64().unwrap() as usize;
        let row = |row: &Value| -> Vec<f32> {
            row.as_array().unwrap().iter().map(|x| x.to_string().parse().unwrap()).collect()
        };
        let scores: Vec<Vec<f32>> = case["scores"].as_array().unwrap().iter().map(row).collect();
        let scores = Array2::from_shape_fn((scores.len(), scores[0].len()), |(t, e)| scores[t][e]);
        let (k, kept) = (size("k"), size("kept"));
        let groups = ExpertGroups::by_sum_of_best(size("groups"), kept, k / kept).unwrap();
        let router = ScoredTopK::new(k, Score::Logit).unwrap().within(groups);
        let mut out = Assignments::new();
        out.reset(scores.nrows(), scores.ncols()).unwrap();
        router.route(&RouteInput::new(scores.view(), TokenContext::new()).unwrap(), &mut out).unwrap();
        for t in 0..scores.nrows() {
            let found: Vec<u64> =
                out.granted().iter().filter(|p| p.token as usize == t).map(|p| p.expert.into()).collect();
            let ids = case["ids"][t].as_array().unwrap();
            let expected: Vec<u64> = ids.iter().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!(found, expected, "token {t}");
        }
    }
}
