//! Mixtral in f64, as plainly as it can be written: what the error of a golden is measured against.

use mixtral_model::{Checkpoint, Config, ExpertMatrix, Manifest, RowOrder, TensorSpec};
use ndarray::{Array1, Array2, Axis, s};

/// Logits of a text, `[T, V]`. Windows and tied embeddings are left out.
pub(crate) fn logits(config: &Config, checkpoint: &Checkpoint, ids: &[u32]) -> Array2<f64> {
    assert!(config.sliding_window.is_none() && !config.tie_embeddings);
    let matrix = |spec: TensorSpec| matrix(config, checkpoint, &spec);
    let manifest = Manifest::new(config);
    let embedding = matrix(manifest.embedding());
    let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    let mut x = embedding.select(Axis(0), &ids);
    for n in 0..config.layers {
        let layer = manifest.layer(n);
        let normed = norm(config, &x, &matrix(layer.input_norm()));
        let [q, k, v] =
            [layer.q_proj(), layer.k_proj(), layer.v_proj()].map(|spec| normed.dot(&matrix(spec).t()));
        x += &attention(config, rotated(config, q), rotated(config, k), v).dot(&matrix(layer.o_proj()).t());

        let normed = norm(config, &x, &matrix(layer.post_attention_norm()));
        let scores = normed.dot(&matrix(layer.gate()).t());
        for t in 0..x.nrows() {
            let mut order: Vec<usize> = (0..config.experts.of(n)).collect();
            order.sort_by(|&a, &b| scores[(t, b)].total_cmp(&scores[(t, a)]));
            order.truncate(config.experts_per_token);
            let weights = softmax(order.iter().map(|&e| scores[(t, e)]).collect());
            for (&e, weight) in order.iter().zip(weights) {
                let [w1, w2, w3] = ExpertMatrix::ALL.map(|m| matrix(layer.expert(e, m)));
                let (gate, up) = (w1.dot(&normed.row(t)), w3.dot(&normed.row(t)));
                let h: Array1<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                x.row_mut(t).scaled_add(weight, &w2.dot(&h));
            }
        }
    }
    norm(config, &x, &matrix(manifest.final_norm())).dot(&matrix(manifest.head().unwrap()).t())
}

/// A tensor's values, rows of queries and keys in the model's order; a vector is one row.
fn matrix(config: &Config, checkpoint: &Checkpoint, spec: &TensorSpec) -> Array2<f64> {
    let place = checkpoint.place(spec, config).unwrap();
    let stored = checkpoint.matrix(&place).unwrap();
    let (mut values, mut row) = (Array2::zeros((place.rows, place.columns)), vec![0.0; place.columns]);
    let half = config.head_dim / 2;
    for i in 0..place.rows {
        let (head, at) = (i / (2 * half), i % (2 * half));
        let to = match place.order {
            RowOrder::Halves => i,
            RowOrder::Pairs => head * 2 * half + at / 2 + at % 2 * half,
        };
        stored.widen_row(i, &mut row);
        values.row_mut(to).assign(&row.iter().map(|&v| f64::from(v)).collect::<Array1<f64>>());
    }
    values
}

fn norm(config: &Config, x: &Array2<f64>, weight: &Array2<f64>) -> Array2<f64> {
    let mut y = x.clone();
    for mut row in y.rows_mut() {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        row /= (mean + f64::from(config.rms_norm_eps)).sqrt();
        row *= &weight.row(0);
    }
    y
}

/// Heads turned by the angles of their positions.
fn rotated(config: &Config, mut x: Array2<f64>) -> Array2<f64> {
    let dim = config.head_dim;
    for (t, mut row) in x.rows_mut().into_iter().enumerate() {
        for head in 0..row.len() / dim {
            for i in 0..dim / 2 {
                let angle = t as f64 / config.rope_theta.powf(2.0 * i as f64 / dim as f64);
                let (a, b) = (row[head * dim + i], row[head * dim + i + dim / 2]);
                row[head * dim + i] = a * angle.cos() - b * angle.sin();
                row[head * dim + i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    }
    x
}

fn attention(config: &Config, q: Array2<f64>, k: Array2<f64>, v: Array2<f64>) -> Array2<f64> {
    let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
    let mut y = Array2::zeros(q.dim());
    for head in 0..config.heads {
        let (own, shared) = (head * dim..(head + 1) * dim, head / group * dim..(head / group + 1) * dim);
        for t in 0..q.nrows() {
            let scores =
                k.slice(s![..=t, shared.clone()]).dot(&q.slice(s![t, own.clone()])) / (dim as f64).sqrt();
            let weights = Array1::from(softmax(scores.to_vec()));
            y.slice_mut(s![t, own.clone()]).assign(&weights.dot(&v.slice(s![..=t, shared.clone()])));
        }
    }
    y
}

fn softmax(mut values: Vec<f64>) -> Vec<f64> {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    values.iter_mut().for_each(|v| *v = (*v - most).exp());
    let sum: f64 = values.iter().sum();
    values.iter().map(|v| v / sum).collect()
}
