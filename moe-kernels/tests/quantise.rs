//! Weights rounded to blocks: the error that is left, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use half::f16;
use moe_kernels::BlockType;

const ROWS: usize = 32;
const COLUMNS: usize = 1024;

fn made() -> impl Iterator<Item = BlockType> {
    BlockType::ALL.iter().copied().filter(|ty| ty.can_be_made())
}

fn round_trip(ty: BlockType, row: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut bytes = vec![0xff; ty.row_bytes(row.len()).unwrap()];
    ty.quantise_row(row, importance, &mut bytes).unwrap();
    let mut widened = vec![0.0; row.len()];
    ty.dequantise_row(&bytes, &mut widened).unwrap();
    widened
}

/// Of `tests/data/make_errors.py`.
fn weights(distribution: usize) -> Vec<f32> {
    let bytes = include_bytes!("data/weights.bin").chunks_exact(2).skip(distribution * ROWS * COLUMNS);
    bytes.take(ROWS * COLUMNS).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

fn importance() -> Vec<f32> {
    (0..COLUMNS).map(|i| ((1 + i * 37 % 61).pow(2)) as f32 / 64.0).collect()
}

/// `Σ c (x - y)² / Σ c x²` over all weights x that become y.
fn error(ty: BlockType, weights: &[f32], importance: Option<&[f32]>) -> f64 {
    let (mut off, mut all) = (0.0, 0.0);
    for row in weights.chunks_exact(COLUMNS) {
        for (i, (x, y)) in row.iter().zip(round_trip(ty, row, importance)).enumerate() {
            let c = importance.map_or(1.0, |c| f64::from(c[i]));
            off += c * (f64::from(*x) - f64::from(y)).powi(2);
            all += c * f64::from(*x).powi(2);
        }
    }
    off / all
}

/// With `--nocapture` it prints the table of `docs/quantisation.md`.
#[test]
fn errors_are_below_those_of_ggml() {
    let goldens: HashMap<_, f64> = include_str!("data/errors.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once('\t').unwrap())
        .map(|(case, error)| (case, error.parse().unwrap()))
        .collect();
    let importance = importance();
    let distributions = [("normal", weights(0)), ("heavy", weights(1)), ("student", weights(2))];
    for ty in made() {
        print!("| `{ty}` |");
        for (kind, importance) in [("plain", None), ("weighted", Some(&importance[..]))] {
            for (distribution, weights) in &distributions {
                let theirs = goldens[format!("{ty}\t{distribution}\t{kind}").as_str()];
                let ours = error(ty, weights, importance);
                print!(" {ours:.2e}, {:.2} |", ours / theirs);
                assert!(ours < theirs, "{ty} {distribution} {kind}: {ours:e}, ggml {theirs:e}");
            }
        }
        println!();
    }
    assert_eq!(goldens.len(), 6 * made().count());
}

#[test]
fn a_block_depends_on_its_own_elements_alone() {
    let (row, importance) = (&weights(1)[..COLUMNS], importance());
    for ty in made() {
        let whole = round_trip(ty, row, Some(&importance));
        for ((part, importance), whole) in row
            .chunks_exact(ty.elements())
            .zip(importance.chunks_exact(ty.elements()))
            .zip(whole.chunks_exact(ty.elements()))
        {
            assert_eq!(round_trip(ty, part, Some(importance)), whole, "{ty}");
        }
    }
}

#[test]
fn extreme_values_become_the_nearest_there_are() {
    for ty in made() {
        assert!(round_trip(ty, &[0.0; 256], None).iter().all(|y| *y == 0.0), "{ty}");
        assert!(round_trip(ty, &[-0.0; 256], Some(&[0.0; 256])).iter().all(|y| *y == 0.0), "{ty}");
        let mut row: Vec<f32> = (0..256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        for scale in [1e-45, 1e-38, 1e-20, 1e-12, 1e-7, 1e-3, 1.0, 1e3, 1e5, 1e10, 1e30, f32::MAX] {
            let scaled: Vec<f32> = row.iter().map(|x| x * scale).collect();
            let widened = round_trip(ty, &scaled, None);
            // Nothing is worse than zeros would be, and what f16 scales reach is close.
            let (mut off, mut all) = (0.0, 0.0);
            for (x, y) in scaled.iter().zip(&widened) {
                assert!(y.is_finite(), "{ty} {scale:e}");
                off += ((f64::from(*x) - f64::from(*y)) / f64::from(scale)).powi(2);
                all += (f64::from(*x) / f64::from(scale)).powi(2);
            }
            assert!(off <= all, "{ty} {scale:e}: {off} of {all}");
            if (1e-3..1e4).contains(&scale) {
                assert!(off < 0.1 * all, "{ty} {scale:e}: {off} of {all}");
            }
        }
        row[7] = 1e4;
        let widened = round_trip(ty, &row, None);
        assert!((widened[7] - 1e4).abs() < 2000.0, "{ty}: {}", widened[7]);
        for constant in [0.75, -0.75] {
            let widened = round_trip(ty, &[constant; 256], None);
            assert!(widened.iter().all(|y| (y - constant).abs() < 0.01), "{ty}: {}", widened[0]);
        }
    }
}

#[test]
fn what_counts_more_is_closer() {
    let row = &weights(0)[..256];
    for ty in made() {
        let importance: Vec<f32> = (0..256).map(|i| if i % 16 == 3 { 1e4 } else { 0.0 }).collect();
        let off =
            |widened: Vec<f32>| -> f32 { (3..256).step_by(16).map(|i| (row[i] - widened[i]).powi(2)).sum() };
        let (with, without) = (off(round_trip(ty, row, Some(&importance))), off(round_trip(ty, row, None)));
        assert!(with < without, "{ty}: {with} {without}");
        // And the rest is no noise.
        let all: f32 =
            row.iter().zip(round_trip(ty, row, Some(&importance))).map(|(x, y)| (x - y).powi(2)).sum();
        assert!(all < row.iter().map(|x| x * x).sum(), "{ty}: {all}");
    }
}

#[test]
fn what_cannot_be_rounded_is_refused() {
    let (ty, ones, mut to) = (BlockType::Q8_0, [1.0; 32], [0; 34]);
    let mut refused = |from: &[f32], importance: Option<&[f32]>| {
        ty.quantise_row(from, importance, &mut to).unwrap_err().to_string()
    };
    let mut bad = ones;
    bad[5] = f32::NAN;
    assert_eq!(
        refused(&bad, None),
        "element of column 5: expected a finite number, an importance not below zero, found NaN"
    );
    bad[5] = f32::NEG_INFINITY;
    assert!(refused(&bad, None).ends_with("found -inf"));
    bad[5] = -1.0;
    assert!(refused(&ones, Some(&bad)).starts_with("importance of column 5"));
    assert_eq!(refused(&ones, Some(&[1.0; 31])), "importances: expected 32, one an element, found 31");
    assert_eq!(refused(&ones[1..], None), "q8_0 row: expected a multiple of 32 columns, found 31");
    let error = BlockType::Iq2Xs.quantise_row(&[1.0; 256], None, &mut [0; 74]).unwrap_err().to_string();
    assert!(
        error.starts_with("iq2_xs: expected a type that weights can be rounded to, one of q8_0, "),
        "{error}"
    );
}
