//! A layer without a model.

use std::fmt::Write as _;
use std::time::Instant;

use bytes::Bytes;
use moe_core::numerics::uniform;
use moe_core::{MoeLayer, TokenContext, Workspace};
use moe_kernels::{Activations, Dtype, Linear, SwiGluExperts, SwiGluWeights, WeightMatrix};
use moe_router::TopK;
use ndarray::Array2;
use serde::Serialize;

use super::limits::Limits;
use super::{Spread, rounds};
use crate::args::{Bench, Common, LayerShape};
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;

/// One batch size.
#[derive(Serialize)]
struct Case {
    case: String,
    backend: String,
    dtype: String,
    activations: String,
    tokens: usize,
    /// Experts with tokens, of the last round.
    experts_touched: usize,
    threads: usize,
    seconds: f64,
    seconds_min: f64,
    seconds_max: f64,
    gflops: f64,
    gbytes_per_s: f64,
    share_of_fma_peak: f64,
    share_of_bandwidth: f64,
}

pub(super) fn run(common: &Common, args: &Bench, shape: LayerShape, interrupt: &Interrupt) -> Result<String> {
    let (backend, activations, dtype) =
        (common.backend.unwrap_or_default(), common.activations, args.dtype.into());
    if activations == Activations::Bf16 && dtype != Dtype::Bf16 {
        return Err(Failure::not_as_expected(
            "--dtype",
            format!("expected bf16 for bf16 activations, found {dtype}"),
        ));
    }
    let matrix = |seed, rows, columns| weights(seed, dtype, rows, columns);
    let gate = Linear::new(matrix(0, shape.experts, shape.dim)?, backend);
    // Experts have memory of their own each, but alike values, which are quickly made.
    let first = [
        matrix(1, shape.hidden, shape.dim)?,
        matrix(2, shape.dim, shape.hidden)?,
        matrix(3, shape.hidden, shape.dim)?,
    ];
    let copy =
        |w: &WeightMatrix| WeightMatrix::new(Bytes::from(w.bytes().to_vec()), dtype, w.rows(), w.columns());
    let bank = (0..shape.experts)
        .map(|_| Ok(SwiGluWeights { w1: copy(&first[0])?, w2: copy(&first[1])?, w3: copy(&first[2])? }))
        .collect::<Result<Vec<_>>>()?;
    let experts = SwiGluExperts::new(bank, backend)?.with_activations(activations);
    let layer = MoeLayer::new(Box::new(gate), Box::new(TopK::new(shape.chosen)?), Box::new(experts))?;

    let mut limits = Limits::new(backend, activations);
    let mut workspace = Workspace::new();
    let mut cases = Vec::new();
    for tokens in args.tokens.iter().map(|n| n.get()) {
        let mut y = Array2::zeros((tokens, shape.dim));
        let (mut seconds, mut bytes) = (Vec::new(), Vec::new());
        let rounds = rounds(args, tokens);
        // The first round makes room, and brings what fits into the caches.
        for round in 0..=rounds {
            let x = hidden(round as u64, tokens, shape.dim);
            let begun = Instant::now();
            layer.forward(x.view(), TokenContext::new(), &mut workspace, &mut (), y.view_mut())?;
            let elapsed = begun.elapsed().as_secs_f64();
            if interrupt.wished() {
                return Err(Failure::Interrupted);
            }
            if round > 0 {
                seconds.push(elapsed);
                let touched = touched(&workspace);
                bytes.push((touched * 3 * shape.dim * shape.hidden * dtype.bytes()) as f64 / elapsed);
                limits.measure();
            }
        }
        let (peak, read) = limits.take();
        let (spread, bytes) = (Spread::of(&seconds), Spread::of(&bytes).median);
        let flops = (6 * shape.dim * shape.hidden * shape.chosen * tokens) as f64 / spread.median;
        cases.push(Case {
            case: shape.to_string(),
            backend: backend.to_string(),
            dtype: dtype.to_string(),
            activations: activations.to_string(),
            tokens,
            experts_touched: touched(&workspace),
            threads: rayon::current_num_threads(),
            seconds: spread.median,
            seconds_min: spread.least,
            seconds_max: spread.greatest,
            gflops: flops / 1e9,
            gbytes_per_s: bytes / 1e9,
            share_of_fma_peak: flops / peak,
            share_of_bandwidth: bytes / read,
        });
    }
    if args.json {
        return Ok(serde_json::to_string_pretty(&cases).map_err(std::io::Error::other)? + "\n");
    }
    Ok(table(&cases))
}

fn table(cases: &[Case]) -> String {
    let mut text = String::new();
    if let Some(Case { case, backend, dtype, activations, threads, .. }) = cases.first() {
        let _ = writeln!(
            text,
            "layer {case}, {dtype} weights, {activations} activations, {backend}, {threads} threads"
        );
    }
    let _ = writeln!(
        text,
        "tokens  experts  milliseconds (least to most)     GFLOP/s  of peak     GB/s  of read"
    );
    for c in cases {
        let spread = format!("({:.2} to {:.2})", c.seconds_min * 1e3, c.seconds_max * 1e3);
        let _ = writeln!(
            text,
            "{:>6} {:>8} {:>10.2} {spread:<22} {:>7.1} {:>6.0} % {:>8.1} {:>6.0} %",
            c.tokens,
            c.experts_touched,
            c.seconds * 1e3,
            c.gflops,
            c.share_of_fma_peak * 100.0,
            c.gbytes_per_s,
            c.share_of_bandwidth * 100.0,
        );
    }
    text
}

/// Number of experts with tokens.
fn touched(workspace: &Workspace) -> usize {
    workspace.plan().expert_offsets().windows(2).filter(|w| w[0] < w[1]).count()
}

/// Pseudo-random weights, so that sums of products stay near 1.
fn weights(seed: u64, dtype: Dtype, rows: usize, columns: usize) -> Result<WeightMatrix> {
    /// A prime, so that no two rows are alike soon.
    const PERIOD: usize = 65_521;
    let scale = 2.0 / (columns as f32).sqrt();
    let some: Vec<f32> = (0..PERIOD as u64).map(|i| (uniform(seed, &[i]) - 0.5) * scale).collect();
    let values: Vec<f32> = some.iter().copied().cycle().take(rows * columns).collect();
    Ok(WeightMatrix::rounded(&values, dtype, rows, columns)?)
}

/// Pseudo-random hidden states.
fn hidden(seed: u64, tokens: usize, dim: usize) -> Array2<f32> {
    Array2::from_shape_fn((tokens, dim), |(t, d)| uniform(seed + 100, &[t as u64, d as u64]) * 2.0 - 1.0)
}
