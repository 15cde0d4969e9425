//! Choices that ties leave in doubt, told by the gradient of a balance loss.

use moe_core::numerics;
use ndarray::Array2;

/// (token, expert) of the k best scores of each token, padding included, in the order that the reference had.
///
/// For n rows in one group `∂L/∂l[e] = p[e] (c[e] - Σ c p)`, with `c[e] = E / n² · choices of e`: every row of the gradient gives c up to a
/// constant, and so, as all choices are n k, how often each expert was chosen. What is certain of that is certain by the
/// scores; among those that are (nearly) tied, some choice has to make up the rest. Which one does not matter to the loss.
pub(crate) fn choices(
    logits: &Array2<f32>,
    is_padding: impl Fn(usize) -> bool,
    k: usize,
    gradient: &[f32],
) -> Vec<(usize, usize)> {
    let experts = logits.ncols();
    let present: Vec<usize> = (0..logits.nrows()).filter(|&t| !is_padding(t)).collect();
    let scores = |t: usize| {
        let mut scores = logits.row(t).to_vec();
        numerics::softmax(&mut scores);
        scores
    };
    let mut counts: Vec<usize> = vec![];
    let n = present.len() as f64;
    for &t in &present {
        let row = &gradient[t * experts..][..experts];
        let c: Vec<f64> = row.iter().zip(scores(t)).map(|(&g, p)| f64::from(g) / f64::from(p)).collect();
        let scale = n * n / experts as f64;
        let shift = (n * k as f64 / scale - c.iter().sum::<f64>()) / experts as f64;
        let times: Vec<f64> = c.iter().map(|c| (c + shift) * scale).collect();
        assert!(times.iter().all(|x| (x - x.round()).abs() < 0.01), "no whole numbers: {times:?}");
        let times: Vec<usize> = times.iter().map(|x| x.round() as usize).collect();
        assert!(counts.is_empty() || counts == times, "two rows disagree: {counts:?}, {times:?}");
        counts = times;
    }

    let rows: Vec<Row> = present.iter().map(|&t| Row::of(&scores(t), k)).collect();
    for row in &rows {
        row.certain.iter().for_each(|&e| counts[e] -= 1);
    }
    let mut chosen = vec![vec![]; logits.nrows()];
    assert!(complete(&rows, &mut counts, &present, &mut chosen), "no choice makes those counts");
    for (row, &t) in rows.iter().zip(&present) {
        chosen[t].extend(&row.certain);
    }
    // Padding counts nowhere; any k will do.
    let of_token = |(t, list): (usize, Vec<usize>)| {
        let list = if is_padding(t) { (0..k).collect() } else { list };
        list.into_iter().map(move |e| (t, e))
    };
    chosen.into_iter().enumerate().flat_map(of_token).collect()
}

/// What the scores say of one token's choice.
struct Row {
    certain: Vec<usize>,
    in_doubt: Vec<usize>,
    /// How many of those in doubt are chosen.
    missing: usize,
}

impl Row {
    fn of(scores: &[f32], k: usize) -> Self {
        /// Relative: what the reference data calls nearly tied.
        const NEAR: f32 = 1e-6;
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let last = sorted[k - 1];
        let (above, below) = (last * (1.0 + NEAR), last * (1.0 - NEAR));
        let experts = || scores.iter().enumerate();
        let certain: Vec<usize> = experts().filter(|(_, s)| **s > above).map(|(e, _)| e).collect();
        let in_doubt = experts().filter(|(_, s)| (below..=above).contains(*s)).map(|(e, _)| e).collect();
        Self { missing: k - certain.len(), certain, in_doubt }
    }
}

/// Chooses among those in doubt so that nothing is left of `counts`, trying all ways.
fn complete(rows: &[Row], counts: &mut [usize], tokens: &[usize], chosen: &mut [Vec<usize>]) -> bool {
    let ([row, rows @ ..], [t, tokens @ ..]) = (rows, tokens) else {
        return counts.iter().all(|&n| n == 0);
    };
    for subset in (0..1u32 << row.in_doubt.len()).filter(|s| s.count_ones() as usize == row.missing) {
        let taken = row.in_doubt.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1);
        let taken: Vec<usize> = taken.map(|(_, &e)| e).collect();
        if taken.iter().any(|&e| counts[e] == 0) {
            continue;
        }
        taken.iter().for_each(|&e| counts[e] -= 1);
        if complete(rows, counts, tokens, chosen) {
            chosen[*t] = taken;
            return true;
        }
        taken.iter().for_each(|&e| counts[e] += 1);
    }
    false
}
